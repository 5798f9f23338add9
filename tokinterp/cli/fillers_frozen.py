"""The commands ``tokinterp fillers insert`` and ``tokinterp fillers attention``."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from ..files.escape import say
from ..files.paths import local_path
from ..settings import check, count, short

ModelName = Annotated[str, typer.Argument(help="Name on the Hugging Face hub, local folder, or 'bundled'.")]
Items = Annotated[
    Path | None, typer.Option(help="File of items: jsonl or csv with the fields prompt and answer; else the bundled.")
]
Output = Annotated[Path, typer.Option("-o", "--output", help="Store to write, RUN.zarr.")]
Limit = Annotated[int | None, typer.Option(help="Use only so many items.")]
Kinds = Annotated[
    list[str],
    typer.Option("--kind", help="dots, ellipses, commas, newlines, words, counting, or a text; give several."),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; by default a GPU if there is one.")]


def insert(
    model: ModelName,
    output: Output,
    items: Items = None,
    kind: Kinds = ["dots", "words"],  # noqa: B006
    n_fillers: Annotated[str, typer.Option("-k", "--n-fillers", help="Numbers of filler tokens.")] = "2,4,10,20,50",
    cue: Annotated[str | None, typer.Option(help="What follows the fillers; else the prompt's last word.")] = None,
    decide: Annotated[int, typer.Option(help="Fillers for interventions and verdict; 0 for neither.")] = 10,
    exact: Annotated[bool, typer.Option(help="Refuse fillers that merge with their neighbours.")] = True,
    limit: Limit = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the result that is there.")] = False,
    device: Device = None,
) -> None:
    """Insert fillers into the items of a frozen model: answers, tests, interventions, and a verdict."""
    import xarray as xr

    from ..fillers.decision import verdict
    from ..fillers.insertion import insert as run_insert
    from ..fillers.insertion import insertion_tests
    from ..fillers.interventions import intervene
    from ..results.stores import write
    from ..run.fitting import new_place
    from .options import check_named, load_named

    output = new_place(output, overwrite)
    grid = numbers(n_fillers)
    check(run_insert, n_fillers=grid, kinds=kind, cue=cue)
    if decide:
        check(verdict, kind=kind[0])
        count(1)("decide", decide)
    check_named(model, device=device)
    questions = read_items(items, limit)
    loaded = load_named(model, device=device)
    found = run_insert(loaded, questions, n_fillers=grid, kinds=kind, cue=cue, exact=exact)
    tests = insertion_tests(found)
    nodes = {"insertion": found, "tests": tests}
    if decide:
        shared: dict[str, Any] = {"n_fillers": decide, "kind": kind[0], "cue": cue, "exact": exact}
        nodes["interventions"] = intervene(loaded, questions, **shared)
        nodes["verdict"] = verdict(loaded, questions, **shared)
    tree = xr.DataTree.from_dict(nodes)
    tree.attrs = dict(found.attrs)
    write(tree, output, overwrite=overwrite)
    for f in tests["filler"].values:
        for p in tests["placement"].values:
            for n in tests["n_fillers"].values[1:]:
                t = tests.sel(filler=f, placement=p, n_fillers=n)
                low, high = t["log_prob_change_interval"].values
                say(
                    f"{n} {f} ({p}): accuracy {float(t['accuracy']):.3f}, change of the log-probability "
                    f"{float(t['log_prob_change']):+.3f} [{low:+.3f}, {high:+.3f}] nat"
                )
    if decide:
        say(f"verdict on {decide} {kind[0]}: {nodes['verdict'].attrs['verdict']}")
    say(f"written to {output}", err=True)


def attention(
    model: ModelName,
    output: Output,
    items: Items = None,
    kind: Annotated[str, typer.Option(help="Kind of filler.")] = "dots",
    n_fillers: Annotated[int, typer.Option("-k", "--n-fillers", help="Filler tokens.")] = 10,
    cue: Annotated[str | None, typer.Option(help="What follows the fillers; else the prompt's last word.")] = None,
    exact: Annotated[bool, typer.Option(help="Refuse fillers that merge with their neighbours.")] = True,
    limit: Limit = None,
    device: Device = None,
) -> None:
    """Measure the attention of answers and fillers on fillers, question and sink."""
    from ..attention.mass import AttentionMass
    from ..run.engine import check_store, measure
    from ..text.items import build_items
    from .options import check_named, load_named

    if n_fillers < 1:
        raise ValueError(f"--n-fillers {n_fillers}: attention on fillers needs some")
    output = check_store(output, "--output")
    check(build_items, n_fillers=n_fillers, kind=kind, cue=cue)
    check_named(model, device=device)
    questions = read_items(items, limit)
    loaded = load_named(model, device=device)
    made = build_items(loaded, questions, n_fillers=n_fillers, kind=kind, cue=cue, exact=exact)
    keys = {"fillers": made.mark("filler"), "question": made.mark("question"), "sink": "first", "other": "other"}
    asked = AttentionMass(keys, {"answer": "last", "fillers": made.mark("filler")})
    run = measure(loaded, made.prompts, {"attention": asked}, store=output)
    mean = run["attention"].to_dataset()[["mass", "chance", "net_enrichment"]].mean(("prompt", "block", "head"))
    for q in mean["query_set"].values:
        for k in mean["key_set"].values:
            m = mean.sel(query_set=q, key_set=k)
            say(
                f"{q} -> {k}: mass {float(m['mass']):.3f}, chance {float(m['chance']):.3f}, "
                f"net of sink and self {float(m['net_enrichment']):.2f} times chance"
            )
    say(f"written to {output}", err=True)


def read_items(path: Path | None, limit: int | None = None) -> list[tuple[str, str]]:
    """Return (prompt, answer) of the items of a file, or of the bundled cloze questions.

    Raises
    ------
    ValueError
        For a file of another kind or without the fields, with the line.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"--limit {limit}: use at least one item")
    if path is None:
        from ..text.bundled import bundled_questions

        return [(q.prompt, q.answer) for q in bundled_questions("cloze")][:limit]
    from ..text.files import from_json, open_lines, table

    path = local_path(path, "--items")
    if path.suffix == ".csv":
        items = [(prompt, answer) for prompt, answer in islice(table(path, ["prompt", "answer"]), limit)]
        if not items:
            raise ValueError(f"{path}: no item in it")
        return items
    if path.suffix != ".jsonl":
        raise ValueError(f"{path}: items are read from .jsonl or .csv")
    items = []
    for n, line in enumerate(open_lines(path), 1):
        if line.strip():
            record = from_json(line, f"{path} line {n}")
            if not isinstance(record, dict) or not all(isinstance(record.get(k), str) for k in ("prompt", "answer")):
                raise ValueError(f"{path} line {n}: {short(record)}: give an object with texts as prompt and answer")
            items.append((record["prompt"], record["answer"]))
    if not items:
        raise ValueError(f"{path}: no item in it")
    return items[:limit]


def numbers(text: str) -> list[int]:
    """Return the numbers of a list such as 2,4,10."""
    try:
        return [int(n) for n in text.split(",")]
    except ValueError:
        raise ValueError(f"--n-fillers {text}: write numbers, for example 2,4,10") from None
