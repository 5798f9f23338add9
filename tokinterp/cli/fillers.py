"""``tokinterp fillers``: what happens in tokens that say nothing, inserted into frozen models."""

from __future__ import annotations

from itertools import islice
from math import isnan
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from ..files.escape import say
from ..files.paths import local_path
from . import options as o
from .refusals import Usage

GROUP = "Filler tokens in frozen models: insert them, with a verdict; what attends to them."
Items = Annotated[
    Path | None, Option(help="File of items: jsonl or csv with the fields prompt and answer; else the bundled.")
]
Cue = Annotated[str | None, Option(help="What follows the fillers; else the prompt's last word.")]
Exact = Annotated[bool, Option(help="Refuse fillers that merge with their neighbours.")]
Limit = Annotated[o.Number, Option(help="Use only so many items.")]


def insert(
    model: o.ModelName,
    output: o.Output,
    items: Items = None,
    kind: Annotated[
        list[str],
        Option("--kind", help="dots, ellipses, commas, newlines, words, counting, or a text; give several."),
    ] = ["dots", "words"],  # noqa: B006
    n_fillers: Annotated[str, Option("-k", "--n-fillers", help="Numbers of filler tokens.")] = "2,4,10,20,50",
    cue: Cue = None,
    decide: Annotated[int, Option(help="Fillers for interventions and verdict; 0 for neither.")] = 10,
    exact: Exact = True,
    limit: Limit = None,
    overwrite: o.Overwrite = False,
    device: o.Device = None,
) -> None:
    """Insert fillers into the items of a frozen model: answers, tests, interventions, and a verdict."""
    import xarray as xr

    from ..files.paths import new_place
    from ..fillers.decision import verdict
    from ..fillers.insertion import insert as run_insert
    from ..fillers.insertion import insertion_tests
    from ..fillers.interventions import intervene
    from ..models import check_source
    from ..results.stores import write
    from ..results.tables import columns, value_rows
    from ..settings import check, count

    output = new_place(output, overwrite)
    grid = o.parse_layers(n_fillers, "--n-fillers")
    check(run_insert, n_fillers=grid, kinds=kind, cue=cue)
    if decide:
        count(1)("decide", decide)
        if kind[0] == "words":
            raise Usage("--kind words: the verdict is against random words: name another kind first, or --decide 0")
    check_source(model, device=device)
    questions = read_items(items, limit)
    loaded = o.load_named(model, device=device)
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
                    f"{n} tokens of {f} ({p}): accuracy {float(t['accuracy']):.3f}, change of the log-probability "
                    f"{float(t['log_prob_change']):+.3f} [{low:+.3f}, {high:+.3f}] nat"
                )
    if decide:
        say(f"verdict on {decide} tokens of {kind[0]}: {nodes['verdict'].attrs['verdict']}")
        say(columns([(f"  {place}", value) for place, value in value_rows(nodes["verdict"])]))
    say(f"written to {output}", err=True)


def attention(
    model: o.ModelName,
    output: o.Output,
    items: Items = None,
    kind: Annotated[str, Option(help="Kind of filler.")] = "dots",
    n_fillers: Annotated[int, Option("-k", "--n-fillers", help="Filler tokens.")] = 10,
    cue: Cue = None,
    exact: Exact = True,
    limit: Limit = None,
    device: o.Device = None,
) -> None:
    """Measure the attention of answers and fillers on fillers, question and sink."""
    from ..attention.mass import AttentionMass
    from ..models import check_source
    from ..run.engine import check_store, measure
    from ..settings import check, count
    from ..text.items import build_items

    count(1)("n_fillers", n_fillers)
    output = check_store(output, "--output")
    check(build_items, n_fillers=n_fillers, kind=kind, cue=cue)
    check_source(model, device=device)
    questions = read_items(items, limit)
    loaded = o.load_named(model, device=device)
    made = build_items(loaded, questions, n_fillers=n_fillers, kind=kind, cue=cue, exact=exact)
    keys = {"fillers": made.mark("filler"), "question": made.mark("question"), "sink": "first", "other": "other"}
    asked = AttentionMass(keys, {"answer": "last", "fillers": made.mark("filler")})
    run = measure(loaded, made.prompts, {"attention": asked}, store=output)
    mean = run["attention"].to_dataset()[["mass", "chance", "net_enrichment"]].mean(("prompt", "block", "head"))
    for q in mean["query_set"].values:
        for k in mean["key_set"].values:
            m = mean.sel(query_set=q, key_set=k)
            net = float(m["net_enrichment"])  # none where the keys are the sink itself, or one that is not there
            more = "" if isnan(net) else f", net of sink and self {net:.2f} times chance"
            say(f"{q} -> {k}: mass {float(m['mass']):.3f}, chance {float(m['chance']):.3f}{more}")
    say(f"written to {output}", err=True)


COMMANDS = (insert, attention)


def read_items(path: Path | None, limit: int | None = None) -> list[tuple[str, str]]:
    """Return (prompt, answer) of the items of a file, or of the bundled cloze questions.

    Raises
    ------
    ValueError
        For a file of another kind or without the fields, with the line.
    """
    from ..settings import count, short

    if limit is not None:
        count(1)("limit", limit)
    if path is None:
        from ..text.bundled import bundled_questions

        return [(q.prompt, q.answer) for q in bundled_questions("cloze")][:limit]
    from ..text.readers.files import from_json, open_lines, table

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
