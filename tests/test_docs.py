"""The pages of the site: every block of code runs, every public name says what it has to, and tables are complete."""

import dataclasses
import functools
import inspect
import re
import shlex
from pathlib import Path

import matplotlib
import pytest

import tokinterp as ti
from docs import generate, public
from docs.links import broken
from tokinterp import scan
from tokinterp.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
SCRIPTS = sorted((ROOT / "docs" / "gallery").glob("draw_*.py"))
BLOCK = re.compile(r"^```(\{?[\w-]*\}?)[^\n]*\n(.*?)^```$", re.S | re.M)
RUN = {"python", "{code-cell}"}
NOT_RUN = {"{toctree}", "{image}", "{glossary}", "text"}
"""Blocks that are no code; a shell's are those whose lines begin with tokinterp."""


def blocks(path):
    """The blocks of a page: of what kind, and what is in it."""
    return BLOCK.findall(path.read_text(encoding="utf-8"))


def with_code(path):
    return any(kind in RUN or kind == "sh" for kind, _ in blocks(path))


load_model = ti.models.load_model
loaded = functools.cache(load_model)


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """In a folder of its own, with the bundled model loaded once for all pages."""
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")

    @functools.wraps(load_model)
    def once(name=None, **settings):
        given = {k: v for k, v in settings.items() if v not in (None, False, "hf")}
        return load_model(name, **given) if given else loaded("bundled" if name is None else name)

    monkeypatch.setattr(ti, "load_model", once)
    monkeypatch.setattr(ti.models, "load_model", once)  # that of the command line


def call(line, capsys):
    with pytest.raises(SystemExit) as end:
        main(shlex.split(line, comments=True)[1:])
    assert end.value.code == 0, (line, capsys.readouterr().err)


@pytest.mark.slow
@pytest.mark.parametrize("path", [p for p in PAGES if with_code(p)], ids=lambda p: p.stem)
def test_what_a_page_says_runs(path, quick, capsys):
    names = {}
    for kind, code in blocks(path):
        if kind in RUN:
            exec(compile(code, path.name, "exec"), names)
        elif kind == "sh":
            for line in re.findall(r"^(?:srun )?tokinterp .*$", code, flags=re.M):
                call(line.removeprefix("srun "), capsys)


@pytest.mark.slow
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_a_figure_of_the_gallery_is_drawn(path, quick):
    names = {}
    exec(compile(path.read_text(encoding="utf-8"), path.name, "exec"), names)
    assert matplotlib.pyplot.get_fignums(), "no figure"
    assert names["__doc__"].strip().splitlines()[1].startswith("==")


def test_no_cell_ends_with_a_bare_figure_which_a_kernel_without_pyplot_shows_as_words():
    for path in PAGES:
        ends = [code.strip().splitlines()[-1] for kind, code in blocks(path) if kind == "{code-cell}"]
        assert not [e for e in ends if e.endswith(".figure")], path


def test_no_block_is_of_a_kind_that_nobody_runs():
    for path in PAGES:
        kinds = {kind for kind, _ in blocks(path)}
        assert kinds <= RUN | NOT_RUN | {"sh"}, path


OWN = {"Answers", "AnswerStates", "TokenLoss", "continuations", "half_life", "tokenizer_overview", "write_head_scores"}
"""What is from nowhere else: names of the topics without a source."""
SHOWN_BY = {"read_cute": "cute_items, which makes the same items"}
"""Names that are shown by the example of another."""
LACKING = {
    "example": "example that runs", "parameter": "parameter that is described", "returns": "what is returned",
    "error": "what is refused", "source": "source",
}  # fmt: skip


def test_every_public_name_has_what_the_reference_promises():
    lacks = {kind: [] for kind in LACKING}
    for name in {id(n.value): n for n in reversed(public.every())}.values():
        for kind in lacking(name):
            lacks[kind].append(name.full)
    assert {kind: sorted(names) for kind, names in lacks.items() if names} == {}


def lacking(name):
    """What a public name does not say of itself."""
    doc, value = name.doc, name.value
    if name.made or dataclasses.is_dataclass(value) or getattr(value, "_is_protocol", False):
        if not doc:
            yield "example"
        return  # what functions return: its parts are said there
    if ">>>" not in doc and name.name not in SHOWN_BY:
        yield "example"
    settings = [n for n, p in inspect.signature(value).parameters.items() if p.kind is not p.VAR_KEYWORD]
    if re.search(r"\bMade (with|by) `|For all else\s+see `", doc):
        settings = []  # its arguments are those of what it names
    if settings and not all(re.search(rf"^[*\w, ]*\b{n}\b[\w*, ]*( :.*)?$", doc, re.M) for n in settings):
        yield "parameter"
    if not inspect.isclass(value) and "Returns\n---" not in doc and not public.returned(value):
        yield "returns"
    if settings and not public.refusals(value) and "Raises\n---" not in doc:
        yield "error"
    of_a_topic = name.space.partition(".")[0] in scan.topics() and not name.space.endswith(".plots")
    if of_a_topic and name.name not in OWN and not public.sources(name) and "github.com" not in doc:
        yield "source"


def test_every_method_of_a_topic_says_where_it_is_from_or_is_in_a_topic_that_does():
    for name in public.every():
        for field, f in public.fields(name.value).items():
            assert f.long_name, (name.full, field)
            assert f.units, (name.full, field)
            assert f.dims is not None, (name.full, field)


def test_the_reference_has_every_public_name_and_every_field():
    pages = generate.generate()
    for space in public.spaces():
        page = pages[f"reference/{generate.page_of(space)}.rst"]
        for name in public.names(space):
            assert f"\n{name.name}\n{'-' * len(name.name)}\n" in page
            for field in public.fields(name.value):
                assert f"``{field}``" in page or "The same as" in page
        assert pages["llms.txt"].count(f"{public.CALLED.get(space, f'tokinterp.{space}')}.") >= 1


def test_every_claim_of_a_record_is_in_the_table_of_methods():
    page = generate.methods()
    for record in generate.records():
        for claim in record["claims"]:
            assert claim["source"] == "control" or generate.row(record, claim) in page


def test_every_golden_file_is_in_the_table_of_what_is_equal():
    rows = [line for line in generate.fidelity().splitlines() if line.startswith("| [")]
    assert len(rows) >= len([*(ROOT / "tests" / "golden").glob("*.json")])
    assert all("`tests/" in row.rpartition(" | ")[2] for row in rows), "golden numbers that no test asks for"


def test_broken_links_are_found(tmp_path):
    (tmp_path / "a.html").write_text('<a href="b.html#x">b</a> <a href="c.html">c</a> <p id="top1"></p>')
    (tmp_path / "b.html").write_text('<h1 id="y"></h1><a href="a.html#top1">a</a><script src="https://x.org/s.js">')
    assert broken(tmp_path) == [
        "a.html: b.html#x", "a.html: c.html", "b.html: https://x.org/s.js (of another site)",
    ]  # fmt: skip
