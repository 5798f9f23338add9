"""What texts look like as HTML: colours that can be told apart, in light and dark, and tokens that stay text."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..files.escape import for_terminal, page_policy
from ..files.whole import write_text

LOW, HIGH = (0, 114, 178), (213, 94, 0)
"""Blue below 0, orange above."""
STEPS = 25
"""Shades from none to either end."""
DARK = (
    '[data-jp-theme-light="false"] .tokinterp', ".vscode-dark .tokinterp", ".vscode-high-contrast .tokinterp",
    'html[theme="dark"] .tokinterp', 'html[data-theme="dark"] .tokinterp',
)  # fmt: skip
"""Where notebooks say that they are dark, which the system may not be."""


def shade(step: int) -> str:
    """Return the colour of -STEPS (blue) to STEPS (orange), over whatever the page has behind it.

    Examples
    --------
    >>> shade(0), shade(STEPS)
    ('rgba(213,94,0,0)', 'rgba(213,94,0,0.8)')
    """
    red, green, blue = HIGH if step >= 0 else LOW
    return f"rgba({red},{green},{blue},{0.8 * abs(step) / STEPS:g})"


def _rules() -> str:
    """Return the style sheet, which is the same for every text, so that a page can allow it by its hash."""
    dark = "{--ink:#eee;--soft:#aaa;--page:#161616;--line:#444;--tip:#333}"
    rules = [
        ".tokinterp{--ink:#111;--soft:#555;--page:#fff;--line:#d5d5d5;--tip:#111;background:var(--page);"
        "color:var(--ink);font-family:ui-monospace,'DejaVu Sans Mono',Menlo,Consolas,monospace;font-size:.88rem;"
        "line-height:2;padding:.8rem;border:1px solid var(--line);border-radius:6px;max-width:62rem}",
        f"@media (prefers-color-scheme:dark){{.tokinterp{dark}}}",
        *(f"{where}{dark}" for where in DARK),
        "[data-jp-theme-light='true'] .tokinterp{--ink:#111;--soft:#555;--page:#fff;--line:#d5d5d5;--tip:#111}",
        ".tokinterp .text{position:relative;white-space:pre-wrap;overflow-wrap:anywhere;direction:ltr}",
        ".tokinterp .key{font-size:.75rem;line-height:1.4;margin-bottom:.5rem;color:var(--soft)}",
        ".tokinterp .bar{display:inline-block;width:8rem;height:.7em;border:1px solid var(--line)}",
        f".tokinterp .bar.signed{{background:linear-gradient(to right,{shade(-STEPS)},transparent,{shade(STEPS)})}}",
        f".tokinterp .bar.plain{{background:linear-gradient(to right,transparent,{shade(STEPS)})}}",
        ".tokinterp .unit{border-radius:3px;padding:.1em 0}",
        ".tokinterp [data-tip]{unicode-bidi:isolate;border-radius:2px;padding:.1em 0}",
        ".tokinterp .none{border-bottom:1px dotted var(--soft)}",
        ".tokinterp [data-tip]:hover,.tokinterp [data-tip]:focus{outline:2px solid var(--ink);outline-offset:1px}",
        ".tokinterp [data-tip]:hover::after,.tokinterp [data-tip]:focus::after{content:attr(data-tip);"
        "position:absolute;left:0;margin-top:1.9em;z-index:9;background:var(--tip);color:#fff;border:1px solid #666;"
        "border-radius:4px;padding:.3rem .5rem;font-size:.75rem;line-height:1.4;white-space:pre-wrap;width:max-content;"
        "max-width:min(30rem,100%)}",
        "@supports (position-try-fallbacks:flip-inline){@position-try --start{left:0;right:auto}"  # under the token
        ".tokinterp [data-tip]:hover,.tokinterp [data-tip]:focus{anchor-name:--token}"
        ".tokinterp [data-tip]:hover::after,.tokinterp [data-tip]:focus::after{position:fixed;"
        "position-anchor:--token;left:anchor(left);top:anchor(bottom);margin:.2em 0;"
        "position-try-fallbacks:flip-inline,--start,flip-block,flip-block flip-inline,flip-block --start}}",
        *(f".tokinterp [data-shade='{k}']{{background:{shade(k)}}}" for k in range(-STEPS, STEPS + 1)),
    ]
    return "\n".join(rules)


RULES = _rules()


class Html(str):
    """A string of HTML that a notebook shows as such."""

    def _repr_html_(self) -> str:
        return str(self)

    def save(self, path: str | Path, title: str = "tokens") -> Path:
        """Write a page of its own."""
        head = (
            f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">{page_policy(styles=[RULES])}'
            f"<title>{html.escape(title)}</title></head>"
        )
        return write_text(path, f"{head}<body>{self}</body></html>\n", errors="backslashreplace")


def visible(text: str) -> str:
    r"""Return a token in which what cannot be seen, or would change the direction of writing, is written out.

    Examples
    --------
    >>> visible("a\u202eb"), visible("\x00"), visible("\u200b"), visible("a\n")
    ('a\\u202eb', '␀', '\\u200b', 'a⏎\n')
    """
    shown = for_terminal(text.replace("\n", "⏎\n").replace("\t", "⇥\t"))
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in shown)


def token(text: str, tip: Sequence[str], step: int | None = None, none: bool = False) -> str:
    """Return a token as HTML that shows lines of text when it is pointed at or reached with the keyboard."""
    said = html.escape("\n".join(visible(line).replace("\n", "") for line in tip))
    mark = "" if step is None else f' data-shade="{step}"'
    kind = ' class="none"' if none else ""
    return f'<span{kind}{mark} tabindex="0" dir="auto" data-tip="{said}">{html.escape(visible(text))}</span>'


def bracketed(inside: str, step: int | None) -> str:
    """Return HTML in brackets, in one shade."""
    mark = "" if step is None else f' data-shade="{step}"'
    return f'<span class="unit"{mark}><b>[</b>{inside}<b>]</b></span>'


def step_of(value: float, low: float, high: float) -> int:
    """Return the shade of a value: from -STEPS to STEPS about 0 where low is -high, else from 0 on.

    Examples
    --------
    >>> step_of(0.5, -1, 1), step_of(0.5, 0, 1), step_of(3, 0, 1), step_of(float("nan"), 0, 1)
    (12, 12, 25, 0)
    """
    share = value / high if low == -high else max((value - low) / (high - low), 0)
    return round(STEPS * float(np.clip(np.nan_to_num(share), -1, 1)))


def key(what: str, low: float, high: float, extend: str = "neither") -> str:
    """Return the scale of colours and what they show, and whether there are values beyond its ends."""
    kind = "signed" if low == -high else "plain"
    ends = [f"{x:.2f}" if 0.1 <= abs(x) < 100 else f"{x:.3g}" for x in (low, high)]
    more = {"min": "; lower as the lower end", "max": "; higher as the upper end", "both": "; beyond as the ends"}
    bar = f'{ends[0]} <span class="bar {kind}"></span> {ends[1]}{more.get(extend, "")}'
    return f'<div class="key">{html.escape(what)}: {bar}</div>'


def page(inside: str, title: str | None = None) -> Html:
    """Return a box with its style sheet."""
    head = "" if title is None else f"<div><b>{html.escape(visible(title))}</b></div>"
    return Html(f'<style>{RULES}</style><div class="tokinterp">{head}{inside}</div>')
