"""What a wheel lacks, or has too much, is named."""

import zipfile

from check_dist import WHEEL, faults, main


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
