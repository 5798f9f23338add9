"""The pages that nobody writes by hand: reference, methods, what is equal to whom, and ``llms.txt``."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import tokinterp as ti
from docs import public
from docs.public import Name
from tokinterp import scan

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "experiments" / "results"
TITLES = {
    "": "tokinterp", "edits": "edits: change the model while it runs", "text": "text: prompts, spans, readers",
    "results": "results: join, label, profile", "plots": "plots: draw any result", "sklearn": "sklearn: as features",
}  # fmt: skip
LIBRARIES = ("scipy", "sklearn", "skdim", "dadapy", "transformer_lens", "nnsight", "transformers", "pyarrow")


def generate() -> dict[str, str]:
    """Return the text of every generated page by its name."""
    pages = {f"reference/{page_of(space)}.rst": reference(space) for space in public.spaces()}
    pages["reference/index.md"] = index()
    return pages | {"methods.md": methods(), "fidelity.md": fidelity(), "llms.txt": llms()}


# -- reference ------------------------------------------------------------------------------------------------
def page_of(space: str) -> str:
    """Return the name of the page of a namespace."""
    return space.replace(".", "_") or "tokinterp"


def about(space: str) -> str:
    """Return what a namespace is about: the first line of its docstring."""
    return (inspect.getdoc(public.module_of(space)) or "").partition("\n")[0]


def reference(space: str) -> str:
    """Return the page of a namespace: a table of its names, then all about each."""
    title = TITLES.get(space, space)
    out = [title, "=" * len(title), "", about(space), "", f".. currentmodule:: {public.CALLED.get(space, 'tokinterp')}"]
    here = list(public.names(space))
    out += ["", ".. list-table::", "   :widths: 30 70", "   :class: names", ""]
    for n in here:
        out += [f"   * - :py:obj:`~{n.full}`", f"     - {rst(n.summary)}"]
    for n in here:
        first = public.every()[[(o.value) for o in public.every()].index(n.value)]
        out += ["", n.name, "-" * len(n.name), ""]
        if first != n:  # said once; here it only points there
            out += [f"The same as :py:obj:`{first.full}`."]
            continue
        kind = "class" if inspect.isclass(n.value) else "function"
        out += [f".. auto{kind}:: {n.full}", ""]
        if kind == "class" and (methods := public_methods(n.value)):
            out[-1] = f"   :members: {', '.join(methods)}"
        elif kind == "function" and "Returns\n---" not in n.doc and public.returned(n.value):
            out += ["", f"**Returns** ``{public.returned(n.value)}``"]
        out += ["", *_fields(n), *_refusals(n)]
    return "\n".join(out) + "\n"


def public_methods(kind: type) -> list[str]:
    """Return the methods and properties of a class that have a docstring of their own and no leading underscore."""
    from tokinterp import Measurement

    if issubclass(kind, Measurement) and kind is not Measurement:
        return []
    return [
        n for n, v in vars(kind).items()
        if n[0] != "_" and (inspect.isfunction(v) or isinstance(v, property | classmethod | staticmethod))
        and inspect.getdoc(v)
    ]  # fmt: skip


def _fields(name: Name) -> Iterator[str]:
    if not (fields := public.fields(name.value)):
        return
    yield from ("**Fields of the result**", "", ".. list-table::", "   :header-rows: 1", "   :class: fields", "")
    yield from ("   * - name", "     - what it is", "     - dimensions", "     - unit", "     - source")
    for field, f in fields.items():
        chance = f" By chance: {f.chance}." if f.chance is not None else ""
        yield from (f"   * - ``{field}``", f"     - {rst(f.long_name)}.{rst(chance)}", f"     - {', '.join(f.dims)}")
        yield from (f"     - {f.units}", f"     - {rst(f.references or '')}")
    yield ""


def _refusals(name: Name) -> Iterator[str]:
    if not (said := public.refusals(name.value)):
        return
    yield from ("**Refused in one line** (ValueError or TypeError, before anything is computed): all but", "")
    yield from (f"- ``{n}``: {rst(says)}" for n, says in said.items())
    yield ""


def rst(text: str) -> str:
    """Return plain text as reStructuredText that shows it as it is."""
    return re.sub(r"(``?.*?``?)|([*|]|_(?=\W|$))", lambda m: m[1] or f"\\{m[2]}", text)


def index() -> str:
    """Return the first page of the reference."""
    rows = [f"| [{TITLES.get(s, s)}]({page_of(s)}.rst) | {about(s)} |" for s in public.spaces()]
    pages = "\n".join(page_of(s) for s in public.spaces())
    return (
        "# Reference\n\nMade from the public names: a method that is put into a topic's folder appears here by itself. "
        "Each entry says parameters with their shapes, the fields of the result with dimensions, units, chance level "
        "and source, what is refused, and has an example that is run by the tests.\n\n"
        "| namespace | what is in it |\n| --- | --- |\n" + "\n".join(rows)
        + f"\n\n```{{toctree}}\n:hidden:\n\n{pages}\n```\n"
    )  # fmt: skip


# -- methods --------------------------------------------------------------------------------------------------
def records() -> list[dict[str, Any]]:
    """Return the records of experiments."""
    return [json.loads(p.read_text(encoding="utf-8")) for p in sorted(RECORDS.glob("*.json"))]


def named(full: Iterable[Name]) -> str:
    """Return names as links to the reference."""
    return ", ".join(f"{{py:obj}}`~{n.full}`" for n in full)


def cited() -> dict[str, list[Name]]:
    """Return ``Feucht 2024`` -> the names that say they are from there."""
    found: dict[str, list[Name]] = {}
    for name in public.every():
        for source in public.sources(name):
            if name.value not in [n.value for n in found.setdefault(source, [])]:
                found[source].append(name)
    return found


def methods() -> str:
    """Return the table from papers to measurements, presets, claims and results."""
    by_paper, claims = cited(), list[tuple[str, dict[str, Any], dict[str, Any]]]()
    for record in records():
        claims += [(c["source"], record, c) for c in record["claims"]]
    out = [
        "# Methods", "",
        "From the paper to the measurement, the preset that repeats it, its claims and what came out. Nothing on this "
        "page is written by hand: the measurements say their sources, the results stand in the records of "
        "`experiments/results`, and [what came out](results.md) has all numbers beside each claim, controls included. "
        "The models of these records are small; `--preset paper` is for the published ones.", "",
    ]  # fmt: skip
    for paper in sorted({p for p, _, _ in claims} - {"control"}):
        key = key_of(paper)
        out += [f"## {paper}", "", f"Measured by {named(by_paper.get(key, [])) or 'the experiment'}.", ""]
        runs = dict.fromkeys(r["experiment"] for p, r, _ in claims if p == paper)
        out += [f"Repeated by `python -m experiments {n} --preset paper`; figure: `figures/{n}.py`." for n in runs]
        out += ["", "| claim | record | verdict | number | target |", "| --- | --- | --- | --- | --- |"]
        out += [row(r, c) for p, r, c in claims if p == paper] + [""]
    out += ["## All sources", "", "| paper | names |", "| --- | --- |"]
    out += [f"| {paper} | {named(by_paper[paper])} |" for paper in sorted(by_paper)]
    return "\n".join(out) + "\n"


def key_of(paper: str) -> str:
    """Return the key of a paper.

    Examples
    --------
    >>> key_of("Busigin and Pinter 2026")
    'Busigin 2026'
    """
    return f"{paper.split()[0]} {paper.split()[-1]}"


def row(record: dict[str, Any], claim: dict[str, Any]) -> str:
    """Return a claim of a record as a row of the table."""
    number = next(iter(claim["numbers"].items()), None)
    said = "" if number is None else f"{number[0]}: {said_number(number[1])}"
    cells = [claim["claim"], f"{record['experiment']}, {record['preset']}", claim["verdict"], said, claim["target"]]
    return "| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in cells) + " |"


def said_number(number: dict[str, Any]) -> str:
    """Return a number with its interval, in four digits."""
    value, (low, high) = number.get("value"), number.get("interval") or (None, None)
    if not isinstance(value, int | float):
        return str(value if value is not None else "–")
    return f"{value:.4g}" + (f" [{low:.4g}, {high:.4g}]" if low is not None and high is not None else "")


# -- fidelity -------------------------------------------------------------------------------------------------
def fidelity() -> str:
    """Return what is equal to whom: by golden values of authors' code, by libraries in the tests, on real models."""
    out = [
        "# What is equal to whom", "",
        "Made from the tests. The first table: numbers that the original authors' code gave at a fixed commit, kept in "
        "`tests/golden` with the calls that made them, and the tests that ask for the same numbers. The second: tests "
        "that call another library beside ours. The third: checks on real models and data, which cannot be shipped "
        "(`make real-data`).", "",
        "## Authors' code", "", "| code | called | tested in |", "| --- | --- | --- |",
    ]  # fmt: skip
    tests = {p: p.read_text(encoding="utf-8") for p in sorted((ROOT / "tests").rglob("test_*.py"))}
    for file in sorted((ROOT / "tests" / "golden").glob("*.json")):
        kept = json.loads(file.read_text(encoding="utf-8"))
        used = re.compile(rf"\b{file.stem}\.json\b|\"{file.stem}\"|from golden import .*\b{file.stem}\b")
        users = [f"`{p.relative_to(ROOT)}`" for p, text in tests.items() if used.search(text)]
        for source in kept.get("sources") or [kept["source"]]:
            calls = "; ".join(f"{cell(k)}: `{cell(v)}`" for k, v in _flat(source["calls"]))
            link = f"[{source['repository']}](https://github.com/{source['repository']}) `{source['commit'][:9]}`"
            out.append(f"| {link} | {calls} | {', '.join(users)} |")
    out += ["", "## Published variants", "", "| name | what it repeats |", "| --- | --- |"]
    published = [n for n in public.every() if ".published" in n.value.__module__]
    out += [f"| {{py:obj}}`~{n.full}` | {cell(n.summary)} |" for n in published]
    out += ["", "## Libraries", "", "| library | tests that call it |", "| --- | --- |"]
    for library in LIBRARIES:
        found = [f"`{p.stem}.{t}`" for p, text in tests.items() for t in _tests_with(text, library)]
        if found:
            out.append(f"| {library} | {', '.join(found)} |")
    out += ["", "## Real models and data", "", "| check | what is compared |", "| --- | --- |"]
    for module in ("real_data", "real_tokenizers"):
        made = importlib.import_module(f"experiments.{module}")
        checks = [f for f in vars(made).values() if inspect.isfunction(f) and f.__module__ == made.__name__]
        checks = [f for f in checks if list(inspect.signature(f).parameters) == ["folder"] and f.__doc__]
        out += [f"| {f.__name__.replace('_', ' ')} | {cell((f.__doc__ or '').partition(chr(10))[0])} |" for f in checks]
    return "\n".join(out) + "\n"


def cell(text: str) -> str:
    """Return text that does not end a cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def _flat(calls: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, call in calls.items():
        if isinstance(call, dict):
            yield from _flat(call)
        else:
            yield name, call


def _tests_with(text: str, library: str) -> list[str]:
    """Return the tests of a file that use a name imported from a library."""
    if library not in text:
        return []
    tree, bound = ast.parse(text), set[str]()
    for node in ast.walk(tree):
        modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if any(m.partition(".")[0] == library for m in modules):
            bound |= {(a.asname or a.name).partition(".")[0] for a in node.names}  # type: ignore[attr-defined]
    return [
        t.name for t in ast.walk(tree)
        if isinstance(t, ast.FunctionDef) and t.name.startswith("test_")
        and {n.id for n in ast.walk(t) if isinstance(n, ast.Name)} & bound
    ]  # fmt: skip


# -- llms.txt -------------------------------------------------------------------------------------------------
def llms() -> str:
    """Return a short text for language models: what there is, and what is called how."""
    out = [
        "# tokinterp", "",
        "> Interpretability research on tokens: run a causal language model over prompts once, take many measurements "
        "in the same pass, get labelled xarray results with intervals, controls and provenance.", "",
        "layer = blocks applied (0 enters block 0, n_layers is before the final norm); block b is between layer b and "
        "b+1. `import tokinterp as ti`. Whole run: `ti.measure(model, prompts, {name: Measurement()}, store=...)`. "
        "Controls are conditions: `ti.measure_conditions`, `ti.measure_nulls`, `ti.contrast`.", "",
        "## Pages", "",
        *[f"- {p}.html" for p in ("start", "guide/index", "howto/index", "auto_gallery/index", "reference/index",
                                  "glossary", "methods", "fidelity", "determinism", "security")],
        "", "## Measurements by the name of the command line (tokinterp measure -m NAME)", "",
        *[f"- {n}: {(inspect.getdoc(k) or '').partition(chr(10))[0]}" for n, k in scan.measurements().items()],
    ]  # fmt: skip
    for space in public.spaces():
        out += ["", f"## {public.CALLED.get(space, f'tokinterp.{space}')}: {about(space)}", ""]
        out += [f"- {n.full}{_signature(n.value)}: {n.summary}" for n in public.names(space)]
    return "\n".join(out) + f"\n\nVersion {ti.__version__}.\n"


def _signature(value: Any) -> str:
    try:
        return f"({', '.join(inspect.signature(value).parameters)})"
    except ValueError:
        return ""
