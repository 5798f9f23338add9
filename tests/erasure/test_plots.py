"""Pictures of erasure: what is bracketed is what was found, texts stay text, and figures show the numbers."""

import re

import numpy as np
import pytest
from drawn import small
from planted import planted_texts
from planted_run import MODEL, planted_run

import tokinterp as ti
from tokinterp import plots
from tokinterp.erasure.evaluation import evaluate
from tokinterp.erasure.plots import erasure_map, page, precision_recall, psi_distribution
from tokinterp.erasure.vocabulary import read_out
from tokinterp.plots.views import page_of


def plain(html):
    return re.sub(r"<[^>]+>", "", html)


def test_units_are_bracketed_and_texts_escaped():
    html = plots.tokens(small(["<b>", "&", "\n"]), "psi", title="<script>")
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "<b>[</b>" in html
    assert "[&lt;b&gt;&amp;]⏎" in plain(html)
    assert html.count('class="unit"') == 1  # single tokens are no units
    assert "position 2\nspan of 2\npsi: 0.5\ndelta: offset 0: 0.25, offset -1: 0.5" in html
    assert 'delta: offset 0: 0.1"' in html  # nothing of what has no value
    assert html._repr_html_() == html


@pytest.mark.parametrize(("psi", "sign"), [(0.5, 1), (-0.5, -1)])
def test_colour_says_the_sign_and_the_limit(psi, sign):
    def step(html):
        found = re.search(r'class="unit" data-shade="(-?\d+)"', html)
        assert found
        return int(found[1])

    strong, weak = (step(plots.tokens(small("abc", psi), "psi", limits=(-limit, limit))) for limit in (0.5, 5.0))
    assert strong == 25 * sign
    assert weak == round(2.5 * sign)
    assert step(plots.tokens(small("abc", 0.0), "psi")) == 0
    assert "-5.00" in plots.tokens(small("abc", psi), "psi", limits=(-5.0, 5.0))
    assert ": -0.004 <" in plots.tokens(small("abc", psi), "psi", limits=(-0.004, 0.004))


def test_a_whole_text_is_there_with_the_segments_that_were_found(tmp_path):
    ds, prompts = planted_run(ti.Prompts.from_texts(planted_texts(3, words=40), MODEL))
    html = plots.tokens(ds, "psi", 1)
    body = plain(html.split('class="text">')[1])
    for letter in "[]":
        body = body.replace(letter, "")
    assert body.endswith(prompts.text(1))  # more than the 50 tokens of a figure
    here = (ds["span_prompt"] == 1) & (ds["stop"] - ds["start"] > 1)
    assert html.count('class="unit"') == int(here.sum()) > 10
    file = html.save(tmp_path / "a.html", title="a & b")
    assert "<title>a &amp; b</title>" in file.read_text(encoding="utf-8")
    assert page(ds, most=2).count('class="tokinterp"') == 2
    assert page(ds.drop_vars("delta")) == ""


def test_html_needs_the_tokens_the_places_and_the_prompt():
    with pytest.raises(ValueError, match="no value per token"):
        plots.tokens(small("abc").drop_dims("token"), "psi")
    with pytest.raises(ValueError, match="span_prompt, start and stop are missing"):
        plots.tokens(small("abc").drop_vars("start"), "psi")
    with pytest.raises(ValueError, match="prompt 3 has no tokens here"):
        plots.tokens(small("abc"), "psi", 3)


def test_figures_show_the_numbers():
    ds, prompts = planted_run()
    fig, axes = plots.figure("double", 6, rows=2, columns=2)
    ax = erasure_map(ds, 1, ax=axes[0, 0], positions=range(30))
    drawn = ax.collections[0].get_array()
    expected = ds["delta"].values[ds["token_prompt"].values == 1][:30].T
    assert np.allclose(np.ma.filled(drawn, np.nan).reshape(3, 30), expected, equal_nan=True)
    within = (ds["span_prompt"] == 1) & (ds["start"] < 30)
    assert len(ax.lines) == int(within.sum())
    assert len(ax.texts) == int((within & (ds["stop"] - ds["start"] > 1)).sum())
    ax = psi_distribution(ds, {"shuffled": planted_run(ti.text.shuffle_blocks(prompts, 5))[0]}, ax=axes[0, 1])
    assert len(ax.lines) == 2
    assert len(ax.lines[0].get_xdata()) == int((ds["stop"] - ds["start"] > 1).sum())
    scores = evaluate(read_out(ds, prompts), ti.Spans.words(prompts).align(prompts), prompts)
    ax = precision_recall(scores, ax=axes[1, 0])
    assert (np.asarray(ax.lines[0].get_ydata()) == 1).all()
    fig.canvas.draw()
    none, _ = planted_run(tokens=0)
    with pytest.raises(ValueError, match="no delta per token"):
        erasure_map(none)
    with pytest.raises(ValueError, match="no segments"):
        psi_distribution(scores)


def test_a_report_has_the_scores_the_map_and_the_texts():
    ds, _ = planted_run()
    ds.attrs["measurement"] = "ErasureScores"
    names = [p.name for p in plots.draw(ds)]
    assert {"mean_delta", "in_units", "erasure", "erasure_map"} <= {*names}
    assert "erasure_map" not in [p.name for p in plots.draw(ds.drop_dims("token"))]
    assert 'class="unit"' in page_of(ds)
    assert page_of(ds.assign_attrs(measurement="Other")) == ""


def test_scales_say_where_a_limit_hides_what_is_beyond():
    ds = small("abc", -0.5)
    html = plots.tokens(ds, "psi", limits=(-0.25, 0.25))
    assert "0.25; lower as the lower end<" in html
    assert "lower end" not in plots.tokens(ds, "psi")
    bars = [ax._colorbar for ax in erasure_map(ds, limit=0.2).figure.axes if hasattr(ax, "_colorbar")]
    assert [bar.extend for bar in bars] == ["max"]
    bars = [ax._colorbar for ax in erasure_map(ds).figure.axes if hasattr(ax, "_colorbar")]
    assert [bar.extend for bar in bars] == ["neither"]
