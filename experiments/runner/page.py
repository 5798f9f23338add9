"""Write RESULTS.md from the records: ``python -m experiments.runner.page``, which ``make results`` calls."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from tokinterp.files.whole import write_text

from .record import RECORDS, ROOT, read

PAGE = ROOT / "experiments" / "RESULTS.md"
INTRODUCTION = """\
# What came out

Made by `make results` from the records in `experiments/results/` and the claims of the experiments: nothing here is
written by hand. A claim is judged by its first number: *yes* and *no* say on which side of the target its whole 95 %
interval lies, *not shown* that the target is within it; what has no interval is not judged, except numbers that have to
be near a target, which are judged alone. The other numbers stand beside it: controls, other conditions, curves over
layers.

Read with care. The models are small enough for a CPU: the bundled one (4.3 M parameters, 8 blocks, English
Wikipedia), stories260K (0.26 M, 5 blocks, children's stories), and networks trained for the purpose; the published ones
are thousands of times larger, and their runs are one command each (`--preset paper`). One trained network of each kind,
one seed, one kind of text: intervals are over prompts, documents, words, concepts or items of that one network and say
nothing about another. Many comparisons were made: a row whose interval just misses its target is no finding.
"""


def page(folder: Path = RECORDS) -> str:
    """Return the page as Markdown: every record of an experiment (tiny ones aside), then the benchmarks."""
    files = [f for f in sorted(folder.glob("*.json")) if not f.stem.endswith(".tiny")]
    parts = [INTRODUCTION]
    before = ""
    for file in files:
        kept = read(file)
        name = kept["experiment"]
        if name != before:
            title = (import_module(f"experiments.{name}").__doc__ or "").partition("\n")[0]
            parts.append(f"## {name}\n\n{title}\n")
        before = name
        parts.append("\n".join(of_record(kept, file.name)))
    rows = [row for file in sorted((folder / "bench").glob("*.json")) for row in of_benchmark(read(file), file.name)]
    if rows:
        head = ["benchmark", "what", "seconds", "times the first", "record"]
        parts.append("\n".join(["## Speed\n", *wrapped(SPEED), "", *table(head, rows)]) + "\n")
    judged = [row for file in sorted((folder / "bench").glob("*.json")) for row in of_bars(read(file), file.name)]
    if judged:
        head = ["benchmark", "what", "measured", "bar", "verdict", "record"]
        parts.append("\n".join(["## Bars of speed\n", *wrapped(BARS), "", *table(head, judged)]) + "\n")
    if (file := folder / "bench" / "growth.json").exists():
        parts.append("\n".join(of_growth(read(file))) + "\n")
    return "\n".join(parts)


SPEED = (
    "`python -m experiments.bench`: each peer in the same process on the same data, medians of paired rounds; the "
    "ratio is to the first row of its benchmark, with the least and the largest of all rounds."
)


BARS = (
    "What the benchmarks have to reach, and what was measured. A floor is the products and passes over memory that a "
    "measurement cannot do without. Seconds are those of the CPU where one thread computed (so that others on its core "
    "take none of them), else of the wall; the record says which, on which processor and at which commit."
)


GROWTH = (
    "`python -m experiments.bench growth`: microseconds per prompt at ever more synthetic prompts (tokens: {tokens}) "
    "and the cost per prompt at the largest size over that at the smallest: 1 or less where all is linear. Memory "
    "above what is held before, of a run that keeps sums only; [growth.json](results/bench/growth.json), commit "
    "`{commit}`, {device}."
)


def of_growth(kept: dict[str, Any]) -> Iterator[str]:
    """Yield the section about what more prompts cost: time per prompt, and memory."""
    said = GROWTH.format(tokens=kept["sizes"]["tokens"], commit=kept["commit"][:9], device=kept["device"])
    yield from ["## Growth\n", *wrapped(said)]
    for unit, head in (("microseconds", ["what", "microseconds per prompt", "growth"]), ("megabytes", ["what", "MB"])):
        rows = [
            [what, "; ".join(f"{int(n):,} prompts: {v:.3g}" for n, v in row[unit].items())]
            + ([f"{row['growth']:.2g}"] if "growth" in row else [])
            for what, row in kept["rows"].items()
            if unit in row
        ]
        yield from ["", *table(head, rows)]


def of_record(kept: dict[str, Any], file: str) -> Iterator[str]:
    """Yield the lines of one record: where it comes from, what it lacks, a table of claims."""
    yield f"### {kept['experiment']}, {kept['preset']}\n"
    changed = f" with {', '.join(kept['changed'])}" if kept.get("changed") else ""
    commit = f"commit `{kept['commit'][:9]}`" if kept.get("commit") else "commit not recorded"
    commit += {True: ", changed", False: "", None: ", whether changed not recorded"}[kept.get("dirty")]
    model = (kept.get("model") or {}).get("id") or "networks trained in the run"
    texts = "; ".join(f"{n}: {t['n']}, sha256 `{t['sha256'][:12]}`" for n, t in (kept.get("texts") or {}).items())
    command = f"`{kept['command']}`" if kept.get("command") else "command not recorded"
    said = (
        f"{command}{changed}; [{file}](results/{file}), {commit}, {kept['created'] or 'date not recorded'}; {model} on "
        f"{kept.get('device') or 'a device not recorded'}; texts: {texts or 'none recorded'}."
    )
    if kept.get("seconds"):
        said += f" {kept['seconds']:.0f} s" + (f" in {kept['starts']} starts." if kept.get("starts", 1) > 1 else ".")
    if others := kept.get("stages_of_other_commits"):
        said += f" Stages by commit {', '.join(f'`{c[:9]}`' + ' (changed)' * c.endswith('+') for c in others)}."
    if kept.get("claims_computed_by"):
        by = kept["claims_computed_by"]
        said += f" Claims by commit `{str(by['commit'])[:9]}`{', changed' if by['dirty'] is not False else ''}."
    yield from wrapped(said)
    if kept["lacking"]:
        yield ""
        yield from wrapped(f"Not in this record: {'; '.join(kept['lacking'])}.")
    if kept.get("converted"):
        yield from wrapped(f"An older record in a new form: {kept['converted']}.")
    yield ""
    yield from table(["claim", "verdict", "what is judged", "number", "beside it", "source"],
                     [of_claim(row) for row in kept["claims"]])  # fmt: skip
    yield ""


def of_claim(row: dict[str, Any]) -> list[str]:
    """Return the cells of a claim."""
    numbers = {label: shown(x) for label, x in row["numbers"].items()}
    (first, number), *others = numbers.items()
    target = f" (target: {row['target']})" if row["target"] else ""
    beside = "; ".join(f"{label} {x}" for label, x in others)
    return [row["claim"], row["verdict"], f"{row['how']}{target}", f"{first}: {number}", beside, row["source"]]


def shown(x: dict[str, Any]) -> str:
    """Return a number with its interval, or a curve.

    Examples
    --------
    >>> shown({"value": 0.12345, "interval": [0.1, None]}), shown({"curve": [1.0, 2.25]})
    ('0.1235 (no interval)', '1.00 2.25')
    """
    if "curve" in x:
        return " ".join("–" if v is None else f"{v:.3g}" if abs(v) >= 100 else f"{v:.2f}" for v in x["curve"])
    if x["value"] is None:
        return "–"
    low, high = x["interval"]
    lacking = f" (no interval: {x['why']})" if x.get("why") else " (no interval)"
    return f"{x['value']:.4g}" + (lacking if None in (low, high) else f" [{low:.4g}, {high:.4g}]")


def of_bars(kept: dict[str, Any], file: str) -> Iterator[list[str]]:
    """Yield what a benchmark is judged by."""
    for bar in kept.get("bars", []):
        verdict = "met" if bar["met"] else f"not met: {bar['why']}"
        yield [
            file.removesuffix(".json"), bar["what"], f"{bar['value']:.3g}", f"at {bar['at']} {bar['limit']:g}", verdict,
            f"[{file}](results/bench/{file})",
        ]  # fmt: skip


def of_benchmark(kept: dict[str, Any], file: str) -> Iterator[list[str]]:
    """Yield the rows of a benchmark that have seconds or a ratio."""
    name = file.removesuffix(".json")
    for what, row in kept["rows"].items():
        if not {"seconds", "ratio"} & row.keys():
            continue
        ratio = f"{row['ratio']:.3g}" if "ratio" in row else ""
        ratio += f" [{row['ratio_low']:.3g}, {row['ratio_high']:.3g}]" if "ratio_low" in row else ""
        seconds = f"{row['seconds']:.3g}" if "seconds" in row else ""
        yield [name, what, seconds, ratio, f"[{file}](results/bench/{file})"]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in line) + " |" for line in lines]


def wrapped(text: str) -> list[str]:
    """Return a paragraph as lines of at most 120 characters."""
    return textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    print(write_text(PAGE, page()) or PAGE)
