"""Erasure as HTML: what is bracketed is what was found, and texts stay text."""

import re

import numpy as np
import pytest
import xarray as xr
from planted import planted_texts
from planted_run import MODEL, planted_run

import tokinterp as ti
from tokinterp.plots.erasure import page
from tokinterp.plots.erasure_html import erasure_html


def small(text, psi=0.5, **attrs):
    """Two tokens in one segment, and one more."""
    coords = {
        "token_prompt": ("token", [0, 0, 0]), "position": ("token", [1, 2, 3]), "offset": [0, -1],
        "text": ("token", np.array(list(text), object)), "token_id": ("token", [5, 6, 7]),
        "span_prompt": ("span", [0, 0]), "start": ("span", [1, 3]), "stop": ("span", [3, 4]),
    }  # fmt: skip
    data = {
        "psi": ("span", [psi, 0.9]),
        "delta": (("token", "offset"), np.array([[0.1, np.nan], [0.25, 0.5], [0, 0]])),
    }
    return xr.Dataset(data, coords, {"start_layer": 1, "end_layer": 3, "measurement": "ErasureScores", **attrs})


def plain(html):
    return re.sub(r"<[^>]+>", "", html)


def test_units_are_bracketed_and_texts_escaped():
    html = erasure_html(small(["<b>", "&", "\n"]), title="<script>")
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "<b>[</b>" in html
    assert "[&lt;b&gt;&amp;]⏎" in plain(html)
    assert html.count('class="unit"') == 1  # single tokens are no units
    assert 'title="position 2; segment of 2, psi 0.500; delta +0: 0.250, -1: 0.500"' in html
    assert "delta +0: 0.100&quot;" not in html
    assert html._repr_html_() == html


@pytest.mark.parametrize(("psi", "red"), [(0.5, True), (-0.5, False)])
def test_colour_says_the_sign_and_the_limit(psi, red):
    def colour(html):
        step = re.search(r'class="unit" data-shade="(-?\d+)"', html)
        assert step
        found = re.search(rf"\[data-shade='{step[1]}'\]{{background:rgb\((\d+),(\d+),(\d+)\)", html)
        assert found
        return tuple(map(int, found.groups()))

    strong, weak = (colour(erasure_html(small("abc", psi), limit=limit)) for limit in (0.5, 5.0))
    assert (strong[0] > strong[2]) is red
    assert min(weak) > 200  # near white: a tenth of the scale
    assert colour(erasure_html(small("abc", 0.0))) == (247, 247, 247)
    assert "-5.00" in erasure_html(small("abc", psi), limit=5.0)
    assert ": -0.004 <" in erasure_html(small("abc", psi), limit=0.004)


def test_a_whole_text_is_there_with_the_segments_that_were_found(tmp_path):
    ds, prompts = planted_run(ti.Prompts.from_texts(planted_texts(3, words=40), MODEL))
    html = erasure_html(ds, 1)
    body = plain(html).split("\n")[-1]
    for letter in "[]":
        body = body.replace(letter, "")
    assert body.endswith(prompts.text(1))  # more than the 50 tokens of a figure
    here = (ds["span_prompt"] == 1) & (ds["stop"] - ds["start"] > 1)
    assert html.count('class="unit"') == int(here.sum()) > 10
    file = html.save(tmp_path / "a.html", title="a & b")
    assert "<title>a &amp; b</title>" in file.read_text(encoding="utf-8")
    assert page(ds, most=2).count('class="tokinterp-erasure"') == 2
    assert page(ds.drop_vars("delta")) == ""


def test_html_needs_delta_and_the_prompt():
    with pytest.raises(ValueError, match="no delta per token"):
        erasure_html(small("abc").drop_vars("delta"))
    with pytest.raises(ValueError, match="prompt 3 has no tokens here"):
        erasure_html(small("abc"), 3)
