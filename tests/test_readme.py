"""The README's Python examples and commands run as they stand."""

import importlib
import re
import shlex
from pathlib import Path

import matplotlib
import pytest

from tokinterp import scan
from tokinterp.cli.main import application, main

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)
COMMANDS = [
    re.findall(r"^tokinterp .*$", block, flags=re.M) for block in re.findall(r"```sh\n(.*?)```", TEXT, flags=re.S)
]


def test_readme_has_an_example():
    assert BLOCKS
    assert len(COMMANDS) == 1
    assert not re.findall(r"```\ntokinterp", TEXT), "commands stand in blocks marked sh, which are run"


def test_examples_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    names = {}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), names)


@pytest.mark.parametrize("lines", COMMANDS, ids=["measure"])
def test_commands_run_one_after_the_other(lines, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for line in lines:
        with pytest.raises(SystemExit) as end:
            main(shlex.split(line, comments=True)[1:])
        assert end.value.code == 0, (line, capsys.readouterr().err)


def test_every_command_is_named():
    page = (ROOT / "docs" / "howto" / "command_line.md").read_text(encoding="utf-8")
    for command in application().registered_commands:
        assert re.search(rf"`?tokinterp {command.name}\b", page), command.name


def test_the_table_has_every_topic_and_no_name_that_is_not_there():
    rows = {m[1]: m[2] for m in re.finditer(r"^\| `ti\.(\w+)` \|.*\| ([^|]*) \|$", TEXT, flags=re.M)}
    assert sorted(rows) == sorted(scan.topics())
    for topic, row in rows.items():
        space = importlib.import_module(f"tokinterp.{topic}")
        assert re.findall(r"`(\w+)`", row)
        assert {n for n in re.findall(r"`(\w+)`", row) if n not in space.__all__} == set()


def test_links_into_the_repository_lead_somewhere():
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", TEXT):
        assert (ROOT / link).exists(), link
