"""A text in a notebook: each token has its own colour and says its own values."""

import html
import re

import numpy as np
import pytest
from drawn import tokens_dataset

from tokinterp import plots
from tokinterp.plots.pages import STEPS

TEXTS = ["<s>", " The", "\u202eNile", "שלום", "\n", "\x00"]


def spans(page):
    found = re.findall(r'<span( class="none")?(?: data-shade="(-?\d+)")?[^>]*data-tip="([^"]*)">([^<]*)</span>', page)
    return [
        (bool(none), int(shade) if shade else None, html.unescape(tip), html.unescape(text))
        for none, shade, tip, text in found
    ]


def test_each_token_has_its_own_colour_and_says_its_values_at_every_layer():
    ds, values = tokens_dataset(TEXTS)
    ds["surprise"][int(np.flatnonzero((ds["token_prompt"] == 7) & (ds["position"] == 1))[0]), 2] = np.nan
    page = plots.tokens(ds, "surprise", 7, limits=(0, 20))
    found = spans(page)
    assert [text for *_, text in found] == ["<s>", " The", "\\u202eNile", "שלום", "⏎\n", "␀"]
    for n, (none, shade, tip, _) in enumerate(found):
        assert none == (n == 1)
        assert shade == (None if n == 1 else round(STEPS * min(values[n, 2] / 20, 1)))
        assert f"position {n}" in tip
        assert f"layer 0: {values[n, 0]:.4g} nat" in tip
    first = spans(plots.tokens(ds, "surprise", 7, layer=0, limits=(0, 20)))
    assert [s for _, s, *_ in first] == [round(STEPS * v / 20) for v in values[:, 0]]
    assert "layer 2" in page.split("key")[-1]
    assert "surprise (nat)" in page
    assert page._repr_html_() == page


def test_without_arguments_the_first_variable_and_prompt_are_shown():
    ds, _ = tokens_dataset(["a", "b"])
    assert len(spans(plots.tokens(ds))) == 2
    assert "<script" not in plots.tokens(ds, title="<script>")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lost",), "name='lost': no variable 'lost'"), (("surprise", 8), "prompt 8 has no tokens"),
        (("flat",), "name='flat': no value per token; there are surprise"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_named(arguments, message):
    ds, _ = tokens_dataset(["a", "b"])
    with pytest.raises(ValueError, match=message):
        plots.tokens(ds.assign(flat=("layer", np.zeros(3))), *arguments)
    with pytest.raises(ValueError, match="layer=9: surprise has layer 0, 1, 2"):
        plots.tokens(ds, "surprise", layer=9)


def test_a_page_of_its_own_allows_its_own_style_and_nothing_else(tmp_path):
    ds, _ = tokens_dataset(["a", "b"])
    text = plots.tokens(ds).save(tmp_path / "a.html", title="a & b").read_text(encoding="utf-8")
    assert "<title>a &amp; b</title>" in text
    assert "default-src 'none'" in text
    assert "style-src 'sha256-" in text


def test_the_key_says_where_there_are_values_beyond_its_ends():
    ds, values = tokens_dataset(["a", "b", "c"])
    assert values.max() == 8
    keys = {limits: plots.tokens(ds, "surprise", 7, limits=limits).split('class="key">')[1].split("</div>")[0]
            for limits in ((0, 8), (0, 5), (2, 8), (2, 5))}  # fmt: skip
    said = {limits: text.partition(";")[2].strip() for limits, text in keys.items()}
    assert said == {
        (0, 8): "", (0, 5): "higher as the upper end", (2, 8): "lower as the lower end", (2, 5): "beyond as the ends",
    }  # fmt: skip
