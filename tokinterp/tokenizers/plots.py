"""What a page shows of tokenizers beside the figures: the words that cost most."""

from __future__ import annotations

import html

import xarray as xr


def worst_words(ds: xr.Dataset) -> str:
    """Return an HTML table of the words that cost most tokens, a column for each tokenizer."""
    names = ds["tokenizer"].values.tolist()
    head = "".join(f"<th>{html.escape(str(n))}</th>" for n in names)
    rows = []
    for place in range(ds.sizes["place"]):
        one = ds.isel(place=place)
        fields = ("word", "lang_of_word", "n_tokens", "count")
        columns = zip(*(one[n].values.tolist() for n in fields), strict=True)
        cells = [f"{html.escape(str(w))}<span>{html.escape(str(lang))}: {n} × {k}</span>" for w, lang, n, k in columns]
        rows.append(f"<tr><th>{place + 1}</th>{''.join(f'<td>{c}</td>' for c in cells)}</tr>")
    table = f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    said = "Words that cost most: tokens of the word × times it occurs"
    return f'<details open><summary>{said}</summary><div class="scroll">{table}</div></details>'


PAGES = {"tokenizer_overview": worst_words}
