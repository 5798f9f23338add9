"""One self-contained HTML page of a run: tables, figures, provenance, and the texts coloured token by token."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..files.escape import page_policy
from ..files.whole import write_text
from ..settings import checked, count, positive, prompts
from . import dataset, stores
from .cite import cite
from .documents import interval_said
from .facts import facts_of, show
from .tables import DEPTHS, Column, layer_table, named_results, number, prompt_tables

if TYPE_CHECKING:
    from ..text.prompts import Prompts

TEMPLATE = Path(__file__).with_name("report.html")
Named = dict[str, xr.Dataset]
MOST_COLUMNS = 12
"""Columns of one variable in a table."""
PIXELS = 104
"""Width of a picture on the page for an inch of its own, so that all have type of one size."""


@checked(prompts=prompts, max_prompts=count(1), max_megabytes=positive)
def report(
    run: xr.DataTree | xr.Dataset | str | Path,
    path: str | Path,
    prompts: Prompts | None = None,
    title: str | None = None,
    *,
    max_prompts: int = 24,
    max_megabytes: float = 3.0,
) -> Path:
    """Write one HTML page that shows a run; it needs no network and no other file.

    Parameters
    ----------
    run : DataTree, Dataset or path
        Result of `measure`, or the store that it is in.
    path : path
        File to write, replaced if it is there.
    prompts : Prompts, optional
        The prompts of the run; only needed to show texts of a result that has no strings.
    title : str, optional
        Heading; by default the model and the measurements.
    max_prompts : int
        Texts shown.
    max_megabytes : float
        Size of the values and tokens of these texts; fewer are shown if they would exceed it, and the page says so.

    Returns
    -------
    pathlib.Path
        The file written.

    Raises
    ------
    ValueError
        If there is nothing to report, or ``prompts`` are not those of the run.

    Examples
    --------
    >>> import tempfile, tokinterp as ti
    >>> run = ti.measure(ti.load_model(), ["The Nile flows north."], {"lens": ti.lens.LogitLens()}, progress=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     report(run, Path(folder, "report.html")).stat().st_size > 10_000
    True
    """
    if isinstance(run, str | Path):
        run = stores.read(run)
    tree = run if isinstance(run, xr.DataTree) else xr.DataTree.from_dict({"/": run})
    results = named_results(tree)
    if not results:
        raise ValueError("nothing to report: the run has no results of measurements")
    hashes = {str(ds.attrs.get("prompts")) for ds in results.values()}
    if prompts is not None and prompts.hash not in hashes:
        raise ValueError(f"the prompts given (hash {prompts.hash[:8]}) are not those of the run ({min(hashes)[:8]})")
    models = list(dict.fromkeys(str(ds.attrs.get("model", "?")) for ds in results.values()))
    texts, note = text_data(results, prompts, max_prompts, max_megabytes)
    page = TEMPLATE.read_text(encoding="utf-8")
    named = list(results) if len(results) <= 6 else [*list(results)[:5], f"and {len(results) - 5} more"]
    parts = {
        "policy": page_policy(re.findall(r"<script>(.*?)</script>", page, re.S), styles(page)),
        "title": html.escape(title or f"{', '.join(models)}: {', '.join(named)}"),
        "lead": lead(tree, models),
        "problems": problems(tree),
        "results": "\n".join(section(name, ds) for name, ds in results.items()),
        "text_note": html.escape(note),
        "text_hidden": "" if texts["prompts"] else "hidden",
        "provenance": "\n".join(provenance_table(name, ds) for name, ds in results.items()),
        "data": json.dumps(texts, separators=(",", ":")).translate(
            {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
        ),
    }
    page = re.sub(r"<!--(\w+)-->", lambda m: parts[m[1]], page)
    return write_text(path, page, errors="backslashreplace")


def styles(template: str) -> list[str]:
    """Return the style sheets of a page: its own, and that of texts with segments in brackets."""
    from ..plots.pages import RULES

    return [*re.findall(r"<style>(.*?)</style>", template, re.S), RULES]


def lead(tree: xr.DataTree, models: Sequence[str]) -> str:
    """Return the line under the title: model, size, prompts, date."""
    attrs = tree.attrs or next(n.attrs for n in tree.subtree if n.data_vars)
    facts = []
    if attrs.get("backend") != "tokenizer":  # else there is no model
        facts.append(f"Model <b>{html.escape(', '.join(models))}</b>")
        if "n_layers" in attrs:
            facts.append(html.escape(f"{attrs['n_layers']} blocks, d_model {attrs.get('d_model')}"))
        facts.append(html.escape(f"{attrs.get('backend')}, {attrs.get('dtype')} on {attrs.get('device')}"))
    for table in prompt_tables(tree)[:1]:
        facts.append(f"{table.sizes['prompt']:,} prompts, {int(table['n_tokens'].sum()):,} tokens")
    facts.append(html.escape(str(attrs.get("created", ""))[:10]))
    told = list(dict.fromkeys(line for n in (tree, *tree.subtree) for line in dataset.circumstances(n.attrs)))
    return " · ".join(facts) + "".join(f'<br><b class="warning">{html.escape(line)}</b>' for line in told)


def problems(tree: xr.DataTree) -> str:
    """Return a paragraph for each group of prompts whose activations were not finite; empty if there are none."""
    out = []
    for table in prompt_tables(tree):
        layer, prompt = table["first_nonfinite_layer"].values, table["prompt"].values
        bad = np.flatnonzero(layer >= 0)
        if len(bad):
            named = ", ".join(f"{prompt[i]} (from layer {layer[i]})" for i in bad[:50])
            more = f" and {len(bad) - 50} more" if len(bad) > 50 else ""
            out.append(
                f'<p class="warning"><b>{len(bad)} of {len(layer)} prompts</b> gave NaN or infinite activations and '
                f"are in no number below: prompt {html.escape(named)}{more}.</p>"
            )
    return "\n".join(out)


# -- tables and figures ---------------------------------------------------------------------------------------
def section(name: str, ds: xr.Dataset) -> str:
    """Return the section of one result: figures, then its table."""
    from ..plots.views import page_of, pictures_of

    figures = []
    for picture in pictures_of(ds):
        text = html.escape(picture.caption)
        wide = round(PIXELS * picture.figure.get_figwidth())
        image = f'<img width="{wide}" src="{svg_uri(picture.figure)}" alt="{text}">'
        figures.append(f'<figure><div class="scroll">{image}</div><figcaption>{text}</figcaption></figure>')
    kind = html.escape(str(ds.attrs.get("measurement", "")))
    table = html_table(ds)
    key = html.escape(name)
    if table:
        head = f"Layer by layer: mean over prompts, {interval_said(ds)}" if "prompt" in ds.dims else "Layer by layer"
        note = '<p class="note">Numbers without an interval are of the whole corpus.</p>'
        table = f"<details open><summary>{head}</summary>{note}{table}</details>"
    sources = [f"<li>{html.escape(line)}</li>" for line in cite(ds).splitlines() if ": " in line]
    cited = f"<details><summary>Sources</summary><ul>{''.join(sources)}</ul></details>" if sources else ""
    parts = "\n".join([*figures, page_of(ds), table, cited])
    return f'<section id="{key}"><h2>{key} <small>{kind}</small></h2>\n{parts}</section>'


def svg_uri(fig: Any) -> str:
    """Return a figure as a data URI: an image of its own, so that names inside cannot clash with the page."""
    from ..plots.style import svg

    return "data:image/svg+xml;base64," + base64.b64encode(svg(fig).encode()).decode()


def html_table(ds: xr.Dataset) -> str:
    """Return an HTML table, one row per layer: mean, interval over prompts, and how many prompts where not all."""
    depth, numbers, every = layer_table(ds)
    found = [c for _, same in groupby(every, lambda c: c.name) for c in [*same][:MOST_COLUMNS]]
    if not found:
        return ""
    groups = [(title, len([*same])) for title, same in groupby((c.short, f"{c.name}: {c.about}") for c in found)]
    head = "".join(f'<th colspan="{n}" title="{html.escape(t)}">{html.escape(name)}</th>' for (name, t), n in groups)
    second = "".join(f"<th>{html.escape(c.label)}</th>" for c in found)
    n = ds.sizes.get("prompt", 1)
    rows = "".join(
        f"<tr><th>{html.escape(str(number_))}</th>" + "".join(f"<td>{cell(c, i, n)}</td>" for c in found) + "</tr>"
        for i, number_ in enumerate(numbers)
    )
    cut = f'<p class="note">Of each variable the first {MOST_COLUMNS} columns; the others are in the export.</p>'
    return (
        f"{cut if len(found) < len(every) else ''}"
        f'<div class="scroll"><table><thead><tr><th rowspan="2">{html.escape(depth)}</th>{head}</tr>'
        f"<tr>{second}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def cell(c: Column, i: int, n: int) -> str:
    """Return the HTML of one cell: the number, and under it its interval and, where not all n, how many prompts."""
    out = number(c.mean[i])
    if c.interval is None or c.count is None or not np.isfinite(c.mean[i]):
        return out
    some = f" n={int(c.count[i])}" if c.count[i] < n else ""
    if not np.isfinite(c.interval[:, i]).all():  # fewer than three documents have a value
        return f"{out}<span>no interval{some}</span>"
    return f"{out}<span>{number(c.interval[0][i])} to {number(c.interval[1][i])}{some}</span>"


def provenance_table(name: str, ds: xr.Dataset) -> str:
    """Return what a result says about where it comes from."""
    rows = []
    for key, value in ds.attrs.items():
        text = str(value)
        if text[:1] in "{[":
            with suppress(ValueError):
                text = json.dumps(json.loads(text), indent=1, ensure_ascii=False)
        rows.append(f"<tr><th>{html.escape(str(key))}</th><td><pre>{html.escape(text)}</pre></td></tr>")
    table = f'<div class="scroll"><table>{"".join(rows)}</table></div>'
    return f"<details><summary>{html.escape(name)}</summary>{table}</details>"


# -- texts ----------------------------------------------------------------------------------------------------
def text_data(results: Named, prompts: Prompts | None, most: int, megabytes: float) -> tuple[dict[str, Any], str]:
    """Return what the page needs to colour texts (JSON types), and a sentence on what was left out."""
    tables = {k: t for k, ds in results.items() if (t := token_table(ds)) is not None}
    out: dict[str, Any] = {"prompts": [], "variables": [], "start": 0}
    if not tables:
        return out, "This run kept no values of single tokens."
    numbers = sorted({p for t in tables.values() for p in t})
    variables = [v for key in tables for v in token_variables(key, results[key])]
    names: dict[int, str] = {}
    for key in tables:
        names.update(vocabulary(results[key]))
    used, spent = [], 0
    for p in numbers[:most]:
        one = prompt_data(p, tables, results, variables, prompts)
        size = len(json.dumps(one))
        if used and spent + size > megabytes * 1e6:
            break
        used.append(one)
        spent += size
    out["prompts"] = used
    answers = sorted({i for p in used for a in p["answers"].values() for i in a["ids"]})
    out["names"] = {str(i): names.get(i, f"<{i}>") for i in answers}
    told = []
    for k, v in enumerate(variables):
        seen = [p["values"][k] for p in used if p["values"][k]]
        values = np.concatenate([np.frombuffer(base64.b64decode(s), "<f4") for s in seen] or [np.zeros(0, "<f4")])
        told.append(len(values) > 0 and np.isfinite(values).mean() > 0.5 and np.nanstd(values) > 0)
        values = values[np.isfinite(values)]
        low, high = np.quantile(values, [0.01, 0.99]).tolist() if len(values) else (0.0, 1.0)
        out["variables"].append({**v["shown"], "low": low, "high": high if high > low else low + 1})
    out["start"] = next((k for k, telling in enumerate(told) if telling), 0)  # not one of a few tokens, or all alike
    for p in used:
        for a in p["answers"].values():
            a.pop("ids")
    every = max(len(t) for t in tables.values())
    note = (
        f"The first {len(used)} of {every} prompts with values of single tokens are shown" if len(used) < every else ""
    )
    if note and len(used) < min(every, most):
        note += f", cut to keep this page below {megabytes:g} MB"
    return out, note + "." if note else ""


def token_table(ds: xr.Dataset) -> dict[int, np.ndarray] | None:
    """Return prompt -> rows of its tokens in order of position; None if a result has no table of tokens.

    A table with several rows at one place, or with few of the places of a text, lists findings and not a text.
    """
    if ds.sizes.get("token", 0) == 0 or "position" not in ds.coords:
        return None
    name = "token_prompt" if "token_prompt" in ds.coords else "prompt"
    number_, position = ds[name].values, ds["position"].values
    order = np.lexsort((position, number_))
    prompts, starts = np.unique(number_[order], return_index=True)
    found = dict(zip(prompts.tolist(), np.split(order, starts[1:]), strict=True))
    for rows in found.values():
        place = position[rows]
        if len(np.unique(place)) < len(place) or place[-1] - place[0] + 1 > 2 * len(place):
            return None
    return found


def token_variables(key: str, ds: xr.Dataset) -> Iterator[dict[str, Any]]:
    """Yield the variables that can colour tokens: one per value of the dimensions other than token and layer."""
    for name, v in sorted(ds.data_vars.items(), key=lambda item: str(item[0]).removeprefix("token_")):
        depth = next((d for d in DEPTHS if d in v.dims), None)
        if "token" not in v.dims or v.dtype.kind not in "fiub" or name == "top_id":
            continue
        rest = [str(d) for d in v.dims if d not in ("token", depth)]
        for at in np.ndindex(*(1 if d == "rank" else v.sizes[d] for d in rest)):
            place = dict(zip(rest, at, strict=True))
            label = ", ".join(
                show(ds[d].values[i], d) for d, i in place.items() if d in ds.coords and ds.sizes[d] > 1 and d != "rank"
            )
            yield {
                "key": key, "name": name, "place": place, "depth": depth,
                "shown": {
                    "name": f"{key}: {facts_of(ds, str(name)).label}" + (f" ({label})" if label else ""),
                    "about": str(v.attrs.get("long_name", name)), "units": str(v.attrs.get("units", "1")),
                    "layers": ds[depth].values.tolist() if depth else [], "depth": depth or "", "key": key,
                    "variant": place.get("variant", 0),
                },
            }  # fmt: skip


def prompt_data(
    p: int,
    tables: dict[str, dict[int, np.ndarray]],
    results: Named,
    variables: list[dict[str, Any]],
    prompts: Prompts | None,
) -> dict[str, Any]:
    """Return tokens and values of one prompt: strings, ids, positions, and (layer, token) float32 per variable."""
    key = max((k for k in tables if p in tables[k]), key=lambda k: len(tables[k][p]))
    ds = results[key].isel(token=tables[key][p])
    place = ds["position"].values
    strings = [str(t) for t in ds["text"].values] if "text" in ds.coords else None
    if strings is None:
        strings = (
            [prompts.strings(p)[i] for i in place] if prompts is not None else [f"<{i}>" for i in ds["token_id"].values]
        )
    values = []
    for v in variables:
        rows = tables[v["key"]].get(p)
        if rows is None:
            values.append("")
            continue
        one = results[v["key"]].isel(token=rows)
        column = one[v["name"]].isel(v["place"])
        table = column.transpose(*([v["depth"]] if v["depth"] else []), "token").values.astype("<f4")
        values.append(base64.b64encode(spread(np.atleast_2d(table), one["position"].values, place).tobytes()).decode())
    answers = {}
    for k in tables:
        if "top_id" not in results[k] or p not in tables[k]:
            continue
        one = results[k].isel(token=tables[k][p])
        ids = one["top_id"].transpose("variant", "layer", "rank", "token").values.astype("<f4")
        table = spread(ids.reshape(-1, ids.shape[-1]), one["position"].values, place)
        seen = np.unique(table[np.isfinite(table)]).astype(int).tolist()
        answers[k] = {"values": base64.b64encode(table.tobytes()).decode(), "ids": seen, "ranks": ids.shape[2]}
    ids = ds["token_id"].values if "token_id" in ds.coords else np.full(len(place), -1)
    return {
        "number": p, "tokens": strings, "ids": ids.tolist(), "positions": place.tolist(), "values": values,
        "answers": answers,
    }  # fmt: skip


def spread(table: np.ndarray, positions: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the columns of a table at the positions wanted, NaN where it has none."""
    out = np.full((table.shape[0], len(wanted)), np.nan, dtype="<f4")
    _, mine, theirs = np.intersect1d(wanted, positions, return_indices=True)
    out[:, mine] = table[:, theirs]
    return out


def vocabulary(ds: xr.Dataset) -> dict[int, str]:
    """Return id -> string for the answers of a lens."""
    if "vocab_text" not in ds.coords:
        return {}
    return dict(zip(ds["vocab"].values.tolist(), map(str, ds["vocab_text"].values), strict=True))
