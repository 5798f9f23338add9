"""Paths are refused before the work: addresses, empty names, places that cannot be written."""

from pathlib import Path

import pytest

from tokinterp.files.paths import local_path, new_file, new_path


def test_only_names_of_this_file_system_pass(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/a") == tmp_path / "a"
    for bad in ("s3://b/x", "https://h/x", " ", "a\0b"):
        with pytest.raises(ValueError, match=r"^store="):
            local_path(bad, "store")
    with pytest.raises(ValueError, match=r"^store='s3://b/x' is a URL"):
        local_path(Path("s3://b/x"), "store")
    for bad in (3, None, b"x"):
        with pytest.raises(TypeError, match="give a path as text"):
            local_path(bad)
    with pytest.raises(ValueError, match="no such home folder"):
        local_path("~nobody_of_this_name/x")


def test_a_new_path_needs_a_folder_above_it_that_can_be_written(tmp_path):
    assert new_path(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file, not a folder"):
        new_path(tmp_path / "file" / "b")
    with pytest.raises(ValueError, match="names no file or folder"):
        new_path("/")
    assert not (tmp_path / "a").exists()


def test_a_new_file_replaces_nothing_unasked_and_no_link(tmp_path):
    place = tmp_path / "x.html"
    assert new_file(place, overwrite=False) == place
    place.write_text("")
    with pytest.raises(FileExistsError, match="--overwrite to replace it"):
        new_file(place, overwrite=False)
    assert new_file(place, overwrite=True) == place
    link = tmp_path / "link"
    link.symlink_to(place)
    for other in (link, Path(tmp_path)):
        with pytest.raises(FileExistsError, match="is no plain file"):
            new_file(other, overwrite=True)
