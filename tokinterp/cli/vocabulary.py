"""``tokinterp vocabulary``: the units that a model forgets at their ends, ranked, from a run of erasure."""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from ..files.escape import for_cell, in_one_line, say
from . import options as o
from .refusals import Usage

if TYPE_CHECKING:
    import xarray as xr

    from ..text.prompts import Prompts

KINDS = ("ErasureScores", "Feucht2024Scores")
COLUMNS = (
    "rank", "psi", "psi_low", "psi_high", "psi_sd", "count", "n_documents", "n_tokens", "text", "ids",
    "left_boundary", "right_boundary", "valid_utf8", "seen", "context",
)  # fmt: skip


def vocabulary(
    run: Annotated[Path, typer.Argument(help="Result of: tokinterp measure -m erasure.")],
    output: Annotated[Path | None, Option("-o", "--output", help="Table to write, .csv or .txt.")] = None,
    min_count: Annotated[int, Option(help="Fewest occurrences of a unit.")] = 2,
    min_psi: Annotated[str, Option(help="Lowest mean score, or 'none' (as published).")] = "0",
    boundaries: Annotated[str, Option(help="any, or word: only where no word is cut.")] = "any",
    top: Annotated[int, Option(min=0, help="Rows shown, 0 for all; a file has all rows.")] = 50,
    width: Annotated[int, Option(min=0, help="Characters of context on either side.")] = 30,
    result: Annotated[str | None, Option(help="Name of the result in the run, where there are several.")] = None,
    texts: Annotated[str | None, Option(help="Where the texts are now, if they were moved.")] = None,
    model: Annotated[str | None, Option(help="Where the tokenizer is now, if it was moved.")] = None,
    revision: Annotated[str | None, Option(help="Its branch, tag or commit on the hub, if it is another now.")] = None,
    trust_remote_code: Annotated[bool, Option(help="Run code from the repository named by --model.")] = False,
    overwrite: o.Overwrite = False,
) -> None:
    """Rank the units of several tokens that a model forgets at their ends, with counts, intervals and contexts."""
    from ..erasure.vocabulary import read_out
    from ..files.paths import new_file
    from ..files.whole import write_text
    from ..results.stores import read

    if output is not None and output.suffix not in (".csv", ".txt"):
        raise Usage(f"--output {output}: write .csv or .txt")
    if output is not None:
        output = new_file(output, overwrite)
    try:
        least = None if min_psi == "none" else float(min_psi)
    except ValueError:
        raise Usage(f"--min-psi {min_psi}: write a number or none") from None
    if trust_remote_code and model is None:
        raise Usage("--trust-remote-code: name the model whose code may run with --model; a result does not decide")
    for flag, text in (("--texts", texts), ("--model", model), ("--revision", revision)):
        if text is not None and not text.strip():
            raise Usage(f"{flag} {text!r}: give a name, or leave it out for what the run was measured with")
    tree = read(run)
    try:
        ds = erasure_of(tree, result)
    except ValueError as error:
        raise ValueError(f"run={run}: {error}") from None
    prompts = prompts_of(tree, texts, model, revision, trust_remote_code)
    found = read_out(ds, prompts, min_count=min_count, min_psi=least, boundaries=boundaries)
    rows = vocabulary_rows(found, prompts, width)
    shown = rows if top == 0 else rows[:top]
    say(as_text(shown))
    say(f"{len(shown)} of {len(rows)} units, from {found.attrs['n_segments']} segments", err=True)
    if output is not None:
        written = as_csv(rows) if output.suffix == ".csv" else as_text(rows) + "\n"
        write_text(output, written, errors="backslashreplace")
        say(f"written to {output}", err=True)


COMMANDS = (vocabulary,)


def erasure_of(tree: xr.DataTree, name: str | None) -> xr.Dataset:
    """Return the result of `ErasureScores` in a run.

    Raises
    ------
    ValueError
        If there is none of that name, or several and no name is given.
    """
    from ..results.tables import named_results

    found = {k: ds for k, ds in named_results(tree).items() if ds.attrs.get("measurement") in KINDS}
    if (name is not None and name not in found) or not found:
        raise ValueError(
            f"no result of ErasureScores{'' if name is None else f' called {name!r}'} in this run, which has "
            f"{', '.join(found or named_results(tree))}: measure with -m erasure"
        )
    if name is None and len(found) > 1:
        raise ValueError(f"the run has several results, {', '.join(found)}: choose one with --result")
    return found[name or next(iter(found))]


def prompts_of(
    tree: xr.DataTree, texts: str | None = None, model: str | None = None, revision: str | None = None,
    trust_remote_code: bool = False,
) -> Prompts:  # fmt: skip
    """Return the prompts of a run that the command line made.

    What the run names is read as data: whether code may run, and of which model, only the caller says.

    Raises
    ------
    ValueError
        If the run does not say which texts it is of, or these are other texts by now.
    """
    from ..models.tokenizer import load_tokenizer

    if "command" not in tree.attrs:
        raise ValueError(
            "this run was not made by tokinterp measure, so it does not say where its texts are: in Python, call "
            "tokinterp.erasure.read_out(run['erasure'].to_dataset(), prompts)"
        )
    try:
        said = json.loads(tree.attrs["command"])
        name, source = model or str(said["model"]), texts or str(said["texts"])
        known = None if model is not None or said["revision"] is None else str(said["revision"])
        reading, cutting = ({key: said["prompts"][key] for key in keys} for keys in (o.READING, o.CUTTING))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"this run's attribute command is damaged ({error!r}): measure again") from None
    try:
        tokenizer = load_tokenizer(
            None if name == o.BUNDLED else name, revision=revision or known, trust_remote_code=trust_remote_code
        )
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"the tokenizer of {name} is code of its own, which no result can allow: if you trust it, give --model "
            f"{shlex.quote(name)} --trust-remote-code"
        ) from error
    tokenizer.model_max_length = max(tokenizer.model_max_length, cutting["max_tokens"])  # the model took them
    prompts = o.make_prompts(o.read_named(source, reading, cutting), tokenizer, cutting)
    if prompts.hash != tree.attrs["prompts"]:
        raise ValueError(
            f"{source} with the tokenizer of {name} gives other tokens now than those measured: give "
            "the same files with --texts and --model"
        )
    return prompts


def vocabulary_rows(found: xr.Dataset, prompts: Prompts, width: int) -> list[dict[str, Any]]:
    """Return the rows of a vocabulary as plain values under the names of ``COLUMNS``."""
    from ..erasure.vocabulary import contexts

    low, high = found["psi_interval"].transpose("bound", "rank").values
    names = [c for c in COLUMNS if c in found]
    columns: dict[str, list[Any]] = {n: found[n].values.tolist() for n in names}
    columns |= {"psi_low": low.tolist(), "psi_high": high.tolist(), "context": contexts(found, prompts, width)}
    return [{c: columns[c][n] for c in COLUMNS} for n in range(found.sizes["rank"])]


def as_csv(rows: list[dict[str, Any]]) -> str:
    """Return rows as CSV; no value is left empty but those that do not exist, and no string is a formula."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        values = (row[c] for c in COLUMNS)
        writer.writerow(["" if isinstance(v, float) and math.isnan(v) else for_cell(v) for v in values])
    return out.getvalue()


def as_text(rows: list[dict[str, Any]]) -> str:
    """Return rows as an aligned table: rank, score with its interval, count, unit, context."""
    cells = [("rank", "psi", "95 % interval", "count", "unit", "context")]
    for r in rows:
        few = math.isnan(r["psi_low"])
        interval = "fewer than 3 documents" if few else f"{r['psi_low']:.3f} to {r['psi_high']:.3f}"
        unit = in_one_line(r["text"])
        cells.append(
            (str(r["rank"]), f"{r['psi']:.3f}", interval, str(r["count"]), f"|{unit}|", in_one_line(r["context"]))
        )
    widths = [max(len(c[k]) for c in cells) for k in range(5)]
    lines = []
    for c in cells:
        left = [x.rjust(w) for x, w in zip(c[:4], widths, strict=False)]
        lines.append("  ".join([*left, c[4].ljust(widths[4]), c[5]]).rstrip())
    return "\n".join(lines)
