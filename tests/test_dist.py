"""What a wheel lacks, or has too much, is named."""

import re
import zipfile
from pathlib import Path

from check_dist import WHEEL, faults, imported, main

import tokinterp


def archive(path, names):
    with zipfile.ZipFile(path, "w") as made:
        for name in names:
            made.writestr(name, "x")
    return path


def test_a_whole_wheel_has_no_fault(tmp_path):
    assert faults(archive(tmp_path / "a.whl", WHEEL)) == []


def test_what_is_missing_or_does_not_belong_there_is_named(tmp_path):
    made = archive(tmp_path / "a.whl", [*WHEEL[1:], "tokinterp/runs/a.json", "tests/test_a.py"])
    assert faults(made) == [
        f"{WHEEL[0]} is missing",
        "tokinterp/runs/a.json does not belong there",
        "tests/test_a.py is outside of the package",
    ]


def test_a_folder_without_a_source_archive_fails(tmp_path, capsys):
    archive(tmp_path / "a.whl", WHEEL)
    assert main(tmp_path)
    assert "a wheel and a source archive should be there" in capsys.readouterr().out


def test_the_wheel_is_imported_alone_with_what_it_reads(tmp_path):
    folder = Path(tokinterp.__file__).parent
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as made:
        for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix != ".pyc"):
            made.write(path, f"tokinterp/{path.relative_to(folder).as_posix()}")
    assert imported(tmp_path / "a.whl") == []
    archive(tmp_path / "b.whl", ["tokinterp/nothing.txt"])
    assert "cannot be imported alone" in imported(tmp_path / "b.whl")[0]


def test_make_makes_every_target_again_also_where_a_folder_has_its_name():
    text = (Path(__file__).parents[1] / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    targets = {*re.findall(r"^([a-z][\w-]*):", text, flags=re.M)}
    assert targets >= {"docs", "dist", "notebooks"}
    assert {*re.search(r"^\.PHONY: (.*)$", text, flags=re.M)[1].split()} == targets
