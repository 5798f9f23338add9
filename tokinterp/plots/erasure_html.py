"""A text with its segments in brackets, coloured by psi, as HTML: for a notebook or a page."""

from __future__ import annotations

import html
from pathlib import Path

import numpy as np
import xarray as xr

from ..files.escape import page_policy
from ..files.whole import write_text
from ..settings import checked
from .tokens import strings_of, tokens_of

LOW, MIDDLE, HIGH = (33, 102, 172), (247, 247, 247), (178, 24, 43)
"""RdBu at psi = -limit, 0, limit."""
STEPS = 50
"""Colours between white and either end."""


def colour(step: int) -> tuple[int, int, int]:
    """Return the colour of -STEPS (blue) to STEPS (red); white at 0.

    Examples
    --------
    >>> colour(0), colour(STEPS)
    ((247, 247, 247), (178, 24, 43))
    """
    other = HIGH if step > 0 else LOW
    red, green, blue = (round(m + (o - m) * abs(step) / STEPS) for m, o in zip(MIDDLE, other, strict=True))
    return red, green, blue


def _rules() -> str:
    """Return the style sheet, which is the same for every text, so that a page can allow it by its hash."""
    bar = ",".join(f"rgb{colour(x)}" for x in (-STEPS, 0, STEPS)).replace(" ", "")
    rules = [
        "{font-family:ui-monospace,'DejaVu Sans Mono',Menlo,Consolas,monospace;font-size:.88rem;line-height:2;"
        "white-space:pre-wrap;overflow-wrap:anywhere;background:#fff;color:#000;padding:.8rem;"
        "border:1px solid #d5d5d5;border-radius:6px;max-width:62rem}",
        " .key{font-size:.75rem;line-height:1.4;margin-bottom:.5rem;color:#333;white-space:normal}",
        f" .bar{{display:inline-block;width:8rem;height:.7em;background:linear-gradient(to right,{bar});"
        "border:1px solid #999}",
        " .unit{border-radius:3px;padding:.1em 0}",
    ]
    for step in range(-STEPS, STEPS + 1):
        red, green, blue = colour(step)
        dark = 0.2126 * red + 0.7152 * green + 0.0722 * blue < 120
        rules.append(
            f" [data-shade='{step}']{{background:rgb({red},{green},{blue});color:{'#fff' if dark else '#000'}}}"
        )
    return "\n".join(f".tokinterp-erasure{rule}" for rule in rules)


RULES = _rules()


class Html(str):
    """A string of HTML that a notebook shows as such."""

    def _repr_html_(self) -> str:
        return str(self)

    def save(self, path: str | Path, title: str = "token erasure") -> Path:
        """Write a page of its own."""
        head = (
            f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">{page_policy(styles=[RULES])}'
            f"<title>{html.escape(title)}</title></head>"
        )
        return write_text(path, f"{head}<body>{self}</body></html>\n", errors="backslashreplace")


@checked()
def erasure_html(
    ds: xr.Dataset, prompt: int = 0, *, limit: float | None = None, min_tokens: int = 2, title: str | None = None
) -> Html:
    """Show a text with its segments in brackets, coloured by their erasure score.

    Segments of ``min_tokens`` or more are bracketed and coloured, red where psi is positive (the end of the segment
    forgets its tokens), blue where it is negative; the others are plain. Pointing at a token shows its segment, its
    score and the delta of each offset.

    Parameters
    ----------
    ds : xarray.Dataset
        Result of `ErasureScores` with ``delta`` of this prompt.
    prompt : int
        Number of the prompt.
    limit : float, optional
        psi at the ends of the colours; by default the greatest of the prompt. To compare prompts, give the same.
    min_tokens : int
        Shortest segments with brackets.
    title : str, optional
        First line.

    Returns
    -------
    Html
        A string; a notebook shows it, ``.save(path)`` writes a page. Texts are escaped.

    Raises
    ------
    ValueError
        If the result has no delta per token, or not of this prompt.

    Examples
    --------
    >>> coords = {"token_prompt": ("token", [0, 0]), "position": ("token", [1, 2]), "offset": [0],
    ...           "text": ("token", ["<b", ">"]), "token_id": ("token", [5, 6]),
    ...           "span_prompt": ("span", [0]), "start": ("span", [1]), "stop": ("span", [3])}
    >>> delta = {"psi": ("span", [0.5]), "delta": (("token", "offset"), [[0.1], [0.9]])}
    >>> ds = xr.Dataset(delta, coords, {"start_layer": 1, "end_layer": 3})
    >>> "&lt;b" in erasure_html(ds)
    True
    """
    if "delta" not in ds:
        raise ValueError("the result keeps no delta per token: measure ErasureScores(..., tokens=) with more prompts")
    one = tokens_of(ds, prompt, range(1 + int(ds["position"].max())))
    strings, place = strings_of(one), one["position"].values.tolist()
    delta = one["delta"].transpose("token", "offset").values
    offsets = ds["offset"].values.tolist()
    here = np.flatnonzero(ds["span_prompt"].values == prompt)
    spans = {int(ds["start"].values[k]): (int(ds["stop"].values[k]), float(ds["psi"].values[k])) for k in here}
    scores = [psi for start, (stop, psi) in spans.items() if stop - start >= min_tokens]
    end = limit or max((abs(s) for s in scores), default=1.0) or 1.0
    parts, at = [], 0
    while at < len(strings):
        stop, psi = spans.get(place[at], (place[at] + 1, np.nan))
        n = max(1, sum(p < stop for p in place[at:]))
        tokens = "".join(
            _token(strings[k], place[k], psi, delta[k], offsets, stop - place[at]) for k in range(at, at + n)
        )
        parts.append(_bracketed(tokens, psi, end) if stop - place[at] >= min_tokens else tokens)
        at += n
    key = _key(end, str(ds.attrs["start_layer"]), str(ds.attrs["end_layer"]))
    head = "" if title is None else f"<div><b>{html.escape(title)}</b></div>"
    style = f"<style>{RULES}</style>"
    return Html(f'{style}<div class="tokinterp-erasure">{head}{key}{"".join(parts)}</div>')


def _token(text: str, position: int, psi: float, delta: np.ndarray, offsets: list[int], length: int) -> str:
    drops = ", ".join(f"{o:+d}: {d:.3f}" for o, d in zip(offsets, delta.tolist(), strict=True) if np.isfinite(d))
    tip = f"position {position}; segment of {length}, psi {psi:.3f}" if np.isfinite(psi) else f"position {position}"
    tip += f"; delta {drops}" if drops else ""
    shown = html.escape(text.replace("\n", "⏎\n").replace("\t", "⇥\t"))
    return f'<span title="{html.escape(tip)}">{shown}</span>'


def _bracketed(tokens: str, psi: float, end: float) -> str:
    step = round(STEPS * float(np.clip(np.nan_to_num(psi / end), -1, 1)))  # NaN is white
    return f'<span class="unit" data-shade="{step}"><b>[</b>{tokens}<b>]</b></span>'


def _key(end: float, start_layer: str, end_layer: str) -> str:
    where = html.escape(f"{start_layer} to {end_layer}")
    shown = f"{end:.2f}" if end >= 0.1 else f"{end:.2g}"
    return f'<div class="key">psi, layer {where}: -{shown} <span class="bar"></span> {shown}</div>'
