"""The commands for token erasure: fit-probes and vocabulary."""

from __future__ import annotations

import csv
import io
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from ..files.escape import for_cell, in_one_line, say
from ..settings import check, positive

if TYPE_CHECKING:
    import xarray as xr

    from ..erasure.token_probes import TokenProbes
    from ..models.base import Model
    from ..text.prompts import Prompts

COLUMNS = (
    "rank", "psi", "psi_low", "psi_high", "psi_sd", "count", "n_documents", "n_tokens", "text", "ids",
    "left_boundary", "right_boundary", "valid_utf8", "seen", "context",
)  # fmt: skip
READING = ("field", "limit", "per_line", "split")
CUTTING = ("min_tokens", "max_tokens", "stride", "on_long", "bos")
"""Settings of the prompts of ``tokinterp measure``, which `vocabulary` takes up."""
Option = typer.Option


def fit_probes(
    model: Annotated[str, typer.Argument(help="Name on the Hugging Face hub, local folder, or 'bundled'.")],
    texts: Annotated[str, typer.Argument(help="Training texts: file, dataset, or 'bundled'.")],
    output: Annotated[Path, Option("-o", "--output", help="Folder to write; the same command goes on after a crash.")],
    layers: Annotated[str | None, Option(help="Layers, for example 2,10 or 0-12; all by default.")] = None,
    offsets: Annotated[str, Option(help="Place decoded minus place probed.")] = "-3,-2,-1,0,1",
    val: Annotated[str | None, Option(help="Other texts for early stopping.")] = None,
    method: Annotated[str, Option(help="softmax, factored, ridge or lda.")] = "softmax",
    settings: Annotated[str, Option(help="default, or feucht2024: the published training, bugs included.")] = "default",
    products: Annotated[str | None, Option(help="Precision of matrix products: float32 or bfloat16.")] = None,
    max_tokens: Annotated[int | None, Option(help="Longest prompt; by default the model's context.")] = None,
    min_tokens: Annotated[int, Option(help="Shorter prompts are dropped.")] = 2,
    on_long: Annotated[str, Option(help="What happens to a longer text: truncate, window or error.")] = "truncate",
    bos: Annotated[str, Option(help="Whether prompts begin with BOS: auto, yes or no.")] = "auto",
    limit: Annotated[int | None, Option(help="Read only so many texts.")] = None,
    field: Annotated[str, Option(help="Field or column with the text.")] = "text",
    per_line: Annotated[bool, Option(help="One text per line of a txt file.")] = False,
    split: Annotated[str | None, Option(help="Split of a dataset.")] = None,
    max_gigabytes: Annotated[float | None, Option(help="Memory for states and weights.")] = None,
    batch_tokens: Annotated[int | None, Option(help="Padded tokens per batch.")] = None,
    seed: Annotated[int, Option(help="Of the order of the batches.")] = 0,
    checkpoint_every: Annotated[float, Option(help="Seconds between two checkpoints.")] = 60.0,
    backend: Annotated[str, Option(help="hf, transformer_lens or nnsight.")] = "hf",
    dtype: Annotated[str | None, Option(help="float32, bfloat16, float16 or auto.")] = None,
    device: Annotated[str | None, Option(help="cpu, cuda, cuda:1; by default a GPU if there is one.")] = None,
    revision: Annotated[str | None, Option(help="Branch, tag or commit on the hub.")] = None,
    trust_remote_code: Annotated[bool, Option(help="Run code from the model's repository.")] = False,
) -> None:
    """Fit linear probes that read the token at t + offset off the stream at t, for measure -m erasure."""
    from ..erasure.probe_settings import choose_settings
    from ..erasure.probes import fit_probes as fit
    from ..files.paths import new_path
    from .options import check_named, choose_bos, load_named, make_prompts, parse_layers, read_named

    output = new_path(output, "--output")
    if output.exists() and not (output / "probes.json").is_file():
        raise FileExistsError(f"--output {output}: something else than probes is there: give another name")
    chosen = None if layers is None else parse_layers(layers)
    where = parse_offsets(offsets)
    given: dict[str, Any] = {
        "offsets": where, "method": method, "settings": settings, "products": products, "seed": seed,
        "batch_tokens": batch_tokens, "checkpoint_every": checkpoint_every,
    }  # fmt: skip
    check(fit, **given)
    if max_gigabytes is not None:
        positive("max_gigabytes", max_gigabytes)
    reading = {"field": field, "limit": limit, "per_line": per_line, "split": split}
    cutting: dict[str, Any] = {
        "max_tokens": max_tokens, "min_tokens": min_tokens, "on_long": on_long, "bos": choose_bos(bos), "stride": None
    }  # fmt: skip
    place: dict[str, Any] = {
        "backend": backend, "dtype": dtype, "device": device, "revision": revision,
        "trust_remote_code": trust_remote_code,
    }  # fmt: skip
    choose_settings(settings)
    if val is not None and not val.strip():
        raise ValueError(f"--val {val!r}: give a file, a dataset, or 'bundled'")
    check_named(model, **place)
    found = read_named(texts, reading, cutting)
    other = None if val is None else read_named(val, reading, cutting)
    loaded = load_named(model, **place)
    prompts = make_prompts(found, loaded, cutting)
    held = None if other is None else make_prompts(other, loaded, cutting)
    say(f"{loaded}\n{prompts}", err=True)
    probes = fit(
        loaded, prompts, layers=chosen, validation=held, store=output, **given,
        max_bytes=None if max_gigabytes is None else int(max_gigabytes * 2**30),
    )  # fmt: skip
    say(str(probes))
    where_read = "the training texts; give --val for others" if held is None else val
    say(f"accuracy on {where_read} (share whose greatest logit is the true token):")
    say(accuracy_text(probes, loaded, prompts if held is None else held))
    say(f"written to {output}; score other texts with: {next_command(model, output, probes, loaded)}", err=True)


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
    overwrite: Annotated[bool, Option("--overwrite", help="Replace the table that is there.")] = False,
) -> None:
    """Rank the units of several tokens that a model forgets at their ends, with counts, intervals and contexts."""
    from ..erasure.vocabulary import read_out
    from ..files.paths import new_file
    from ..files.whole import write_text
    from ..results.stores import read

    if output is not None and output.suffix not in (".csv", ".txt"):
        raise ValueError(f"--output {output}: write .csv or .txt")
    if output is not None:
        output = new_file(output, overwrite)
    try:
        least = None if min_psi == "none" else float(min_psi)
    except ValueError:
        raise ValueError(f"--min-psi {min_psi}: write a number or none") from None
    if trust_remote_code and model is None:
        raise ValueError(
            "--trust-remote-code: name the model whose code may run with --model; a result does not decide"
        )
    for flag, text in (("--texts", texts), ("--model", model), ("--revision", revision)):
        if text is not None and not text.strip():
            raise ValueError(f"{flag} {text!r}: give a name, or leave it out for what the run was measured with")
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


# -- what they are made of ------------------------------------------------------------------------------------
def parse_offsets(text: str) -> list[int]:
    """Return the offsets of ``"-2,-1,0"``.

    Raises
    ------
    ValueError
        For anything else.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--offsets {text}: write whole numbers, for example -2,-1,0") from None


def load_probes(name: str, folder: Path | None) -> TokenProbes:
    """Return the probes that a measurement needs.

    Raises
    ------
    ValueError
        If no folder is given.
    """
    if folder is None:
        raise ValueError(f"{name} needs probes: make them with tokinterp fit-probes and give --probes FOLDER")
    from ..erasure.token_probes import TokenProbes

    return TokenProbes.load(folder)


def accuracy_text(probes: TokenProbes, model: Model, prompts: Prompts, max_tokens: int = 20_000) -> str:
    """Return a table of how often each probe is right, by layer and offset, on about so many tokens."""
    import torch

    from ..erasure.probe_text import label_ids
    from ..run.sites import resid
    from ..run.stream import stream

    kept = int(np.searchsorted(prompts.starts, max_tokens))
    some = prompts[: max(1, min(len(prompts), kept))]
    targets = {o: torch.from_numpy(label_ids(some, o, bool(probes.facts.get("bos")))) for o in probes.offsets}
    right = {(n, o): 0 for n in probes.layers for o in probes.offsets}
    for batch in stream(model, some, resid(probes.layers), batch_tokens=4096):
        for layer in probes.layers:
            x = probes.standardise(batch.rows(layer), layer)
            for o, goal in targets.items():
                found = probes.read(x, layer, o, goal[batch.tokens.place].to(x.device), standardised=True).rank
                right[layer, o] += int((found == 0).sum())
    n = {o: max(1, int((goal >= 0).sum())) for o, goal in targets.items()}
    lines = [f"layer {k:<4}" + "".join(f"{right[k, o] / n[o]:8.3f}" for o in probes.offsets) for k in probes.layers]
    return "\n".join(["offset    " + "".join(f"{o:8d}" for o in probes.offsets), *lines])


def next_command(model: str, output: Path, probes: TokenProbes, loaded: Model) -> str:
    """Return a command that scores other texts with these probes, as far as their layers and offsets allow."""
    from ..erasure.erasure import default_layers

    words = ["tokinterp", "measure", shlex.quote(model), "TEXTS", "-m", "probe_scores"]
    if len(probes.layers) > 1 and {0, -1, -2} <= set(probes.offsets):
        first, last = default_layers(loaded.info.n_layers)
        start = min(probes.layers[:-1], key=lambda n: abs(n - first))
        end = min((n for n in probes.layers if n > start), key=lambda n: abs(n - last))
        words += ["-m", "erasure"]
        words += [] if start == first else ["--set", f"erasure.start={start}"]
        words += [] if end == last else ["--set", f"erasure.end={end}"]
    return " ".join([*words, "--probes", shlex.quote(str(output)), "-o", "RUN.zarr"])


def erasure_of(tree: xr.DataTree, name: str | None) -> xr.Dataset:
    """Return the result of `ErasureScores` in a run.

    Raises
    ------
    ValueError
        If there is none of that name, or several and no name is given.
    """
    from ..results.tables import named_results

    found = {k: ds for k, ds in named_results(tree).items() if ds.attrs.get("measurement") == "ErasureScores"}
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
    from .options import BUNDLED, make_prompts, read_named

    if "command" not in tree.attrs:
        raise ValueError(
            "this run was not made by tokinterp measure, so it does not say where its texts are: in Python, call "
            "tokinterp.erasure.read_out(run['erasure'].to_dataset(), prompts)"
        )
    try:
        said = json.loads(tree.attrs["command"])
        name, source = model or str(said["model"]), texts or str(said["texts"])
        known = None if model is not None or said["revision"] is None else str(said["revision"])
        reading, cutting = ({key: said["prompts"][key] for key in keys} for keys in (READING, CUTTING))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"this run's attribute command is damaged ({error!r}): measure again") from None
    try:
        tokenizer = load_tokenizer(
            None if name == BUNDLED else name, revision=revision or known, trust_remote_code=trust_remote_code
        )
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"the tokenizer of {name} is code of its own, which no result can allow: if you trust it, give --model "
            f"{shlex.quote(name)} --trust-remote-code"
        ) from error
    tokenizer.model_max_length = max(tokenizer.model_max_length, cutting["max_tokens"])  # the model took them
    prompts = make_prompts(read_named(source, reading, cutting), tokenizer, cutting)
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
        writer.writerow(["" if isinstance(v, float) and np.isnan(v) else for_cell(v) for v in values])
    return out.getvalue()


def as_text(rows: list[dict[str, Any]]) -> str:
    """Return rows as an aligned table: rank, score with its interval, count, unit, context."""
    cells = [("rank", "psi", "95 % interval", "count", "unit", "context")]
    for r in rows:
        few = np.isnan(r["psi_low"])
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
