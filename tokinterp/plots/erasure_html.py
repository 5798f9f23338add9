"""A text with its segments in brackets, coloured by psi, as HTML: for a notebook or a page."""

from __future__ import annotations

import html
from pathlib import Path

import numpy as np
import xarray as xr

from ..files import write_text
from .tokens import strings_of, tokens_of

LOW, MIDDLE, HIGH = (33, 102, 172), (247, 247, 247), (178, 24, 43)
"""RdBu at psi = -limit, 0, limit."""
STYLE = (
    "font-family:ui-monospace,'DejaVu Sans Mono',Menlo,Consolas,monospace;font-size:.88rem;line-height:2;"
    "white-space:pre-wrap;overflow-wrap:anywhere;background:#fff;color:#000;padding:.8rem;"
    "border:1px solid #d5d5d5;border-radius:6px;max-width:62rem"
)


class Html(str):
    """A string of HTML that a notebook shows as such."""

    def _repr_html_(self) -> str:
        return str(self)

    def save(self, path: str | Path, title: str = "token erasure") -> Path:
        """Write a page of its own."""
        head = f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title></head>'
        return write_text(path, f"{head}<body>{self}</body></html>\n", errors="backslashreplace")


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
    key = _key(end, ds.attrs["start_layer"], ds.attrs["end_layer"])
    head = "" if title is None else f"<div><b>{html.escape(title)}</b></div>"
    return Html(f'<div class="tokinterp-erasure" style="{STYLE}">{head}{key}{"".join(parts)}</div>')


def _token(text: str, position: int, psi: float, delta: np.ndarray, offsets: list[int], length: int) -> str:
    drops = ", ".join(f"{o:+d}: {d:.3f}" for o, d in zip(offsets, delta.tolist(), strict=True) if np.isfinite(d))
    tip = f"position {position}; segment of {length}, psi {psi:.3f}" if np.isfinite(psi) else f"position {position}"
    tip += f"; delta {drops}" if drops else ""
    shown = html.escape(text.replace("\n", "⏎\n").replace("\t", "⇥\t"))
    return f'<span title="{html.escape(tip)}">{shown}</span>'


def _bracketed(tokens: str, psi: float, end: float) -> str:
    red, green, blue = _colour(psi / end)
    dark = 0.2126 * red + 0.7152 * green + 0.0722 * blue < 120
    style = f"background:rgb({red},{green},{blue});color:{'#fff' if dark else '#000'};border-radius:3px;padding:.1em 0"
    return f'<span class="unit" style="{style}"><b>[</b>{tokens}<b>]</b></span>'


def _colour(x: float) -> tuple[int, int, int]:
    """Return the colour of -1 (blue) to 1 (red); white at 0 and for NaN."""
    x = float(np.clip(np.nan_to_num(x), -1, 1))
    other = HIGH if x > 0 else LOW
    red, green, blue = (round(m + (o - m) * abs(x)) for m, o in zip(MIDDLE, other, strict=True))
    return red, green, blue


def _key(end: float, start_layer: int, end_layer: int) -> str:
    bar = ",".join(f"rgb{_colour(x)}" for x in (-1, 0, 1))
    return (
        '<div style="font-size:.75rem;line-height:1.4;margin-bottom:.5rem;color:#333;white-space:normal">'
        f"psi, layer {start_layer} to {end_layer}: {-end:.2f} "
        f'<span style="display:inline-block;width:8rem;height:.7em;background:linear-gradient(to right,{bar});'
        f'border:1px solid #999"></span> {end:.2f}</div>'
    )
