"""Colours can be told apart on any page, and what cannot be seen is written out."""

import re

import pytest

from tokinterp.plots import pages


def over(colour, back):
    red, green, blue, share = map(float, re.findall(r"[\d.]+", colour))
    return [share * c + (1 - share) * b for c, b in zip((red, green, blue), back, strict=True)]


def light(colour):
    parts = [v / 255 for v in colour]
    linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("back", "ink"), [((255, 255, 255), (17, 17, 17)), ((22, 22, 22), (238, 238, 238))])
def test_text_is_legible_on_every_shade_light_and_dark(back, ink):
    for step in range(-pages.STEPS, pages.STEPS + 1):
        a, b = sorted((light(over(pages.shade(step), back)), light(ink)))
        assert (b + 0.05) / (a + 0.05) > 4.5, step
    for colour in (back, ink):
        assert f"#{colour[0] % 256:02x}"[:2] in pages.RULES


def test_what_cannot_be_seen_or_turns_the_text_is_written_out():
    for c in "\u202e\u2066\u200f\u200b\ufeff\x00\x1b\ud800":
        shown = pages.visible(f"a{c}b")
        assert c not in shown
        assert shown.startswith("a")
        assert shown.endswith("b")
    assert pages.visible("שלום 水 é") == "שלום 水 é"
    made = pages.token('"<b>&', ["<i>", "two"], 3)
    assert "<b>" not in made
    assert "<i>" not in made
    assert 'data-tip="&lt;i&gt;\ntwo"' in made
    assert 'tabindex="0"' in made
    assert 'dir="auto"' in made


def test_shades_follow_values_and_signs():
    assert [pages.step_of(x, -2, 2) for x in (-3, -2, 0, 1, 2)] == [-25, -25, 0, 12, 25]
    assert [pages.step_of(x, 1, 3) for x in (0, 1, 2, 3, 9)] == [0, 0, 12, 25, 25]
    assert "signed" in pages.key("psi", -1, 1)
    assert "plain" in pages.key("loss", 0, 1)
