"""Stores that were damaged, killed while they were written, or replaced by others."""

import json
import os
import shutil

import numpy as np
import pytest
from result_trees import tree
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from stored_runs import BATCH, assert_same, assert_same_node, ended_process, measured, resumed, stopped_at
from tiny import Norms, tiny

import tokinterp as ti
from tokinterp.files import owner
from tokinterp.files import whole as files
from tokinterp.fitted import KEY
from tokinterp.run.checkpoint import STATE


@pytest.fixture(scope="module")
def whole():
    return measured(which={"norms": Norms()}, batch_tokens=BATCH)


@pytest.fixture(scope="module")
def dead():
    """The number of a process that has ended."""
    return ended_process()


# -- damage ---------------------------------------------------------------------------------------------------
def flipped(file):
    data = bytearray(file.read_bytes())
    data[-3] ^= 0x55
    file.write_bytes(bytes(data))


def edited(file, **changes):
    """Change notes of a step, and leave the digest as it was."""
    with safe_open(file, "pt") as f:
        note = json.loads(f.metadata()[KEY])
    note["facts"]["notes"] |= changes
    save_file(load_file(file), file, {KEY: json.dumps(note)})


def with_facts(file, **changes):
    record = {k: v for k, v in {**json.loads(file.read_text()), **changes}.items() if v is not None}
    file.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda d: flipped(next(d.glob("rows-*"))), r"rows-0-\S+ is damaged or missing \(.* are not those that were"),
        (lambda d: flipped(d / STATE), r"state.safetensors is damaged or missing \(.* are not those that were written"),
        (lambda d: next(d.glob("rows-*")).unlink(), r"rows-0-\S+ is damaged or missing \(no part of a run at"),
        (lambda d: shutil.copy(min(d.glob("rows-*")), max(d.glob("rows-*"))), r"rows-0-\S+ is damaged or missing"),
        (lambda d: os.truncate(d / STATE, 20), "state.safetensors is damaged"),
        (lambda d: os.truncate(d / STATE, 0), "state.safetensors is damaged"),
        (lambda d: edited(d / STATE, done=2), "state.safetensors is damaged"),
        (lambda d: edited(d / STATE, rows={}), "state.safetensors is damaged"),
        (lambda d: os.truncate(d / "run.json", 20), "run.json is damaged"),
        (lambda d: with_facts(d / "run.json", format=None), r"differs in: format \(null there, 3 now\)"),
        (lambda d: with_facts(d / "run.json", format=2), r"differs in: format \(2 there, 3 now\)"),
    ],
)
def test_damaged_checkpoint_is_named_before_the_run(spoil, named, tmp_path, monkeypatch):
    store = tmp_path / "run.zarr"
    spoil(stopped_at(store))
    monkeypatch.setattr(type(tiny()), "run", lambda *_, **__: pytest.fail("the model was run"))
    with pytest.raises(ValueError, match=named) as caught:
        resumed(store)
    assert "delete" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_leftover_files_of_an_unfinished_step_do_not_count(tmp_path, whole):
    folder = stopped_at(tmp_path / "run.zarr")
    shutil.copy(next(folder.glob("rows-*")), folder / "rows-0-000009-1.safetensors")
    (folder / ".rows-0-000010-1.safetensors.writing-ab").write_bytes(b"half")
    stopped_at(tmp_path / "run.zarr", left=0)
    assert not list(folder.glob("*000009*")) + list(folder.glob(".rows*"))
    assert_same_node(resumed(tmp_path / "run.zarr"), whole, "norms")


def with_record(path, change):
    record = json.loads(path.read_text())
    change(record["attributes"])
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("file", "change", "named"),
    [
        ("a/zarr.json", {"model": "somebody/else"}, r"/a/\(attributes\)"),
        ("a/x/zarr.json", {"units": "bit"}, r"/a/x \(attributes\)"),
        ("zarr.json", {"seed": 5}, r"/\(attributes\)"),
        ("a/zarr.json", {"more": 1}, r"/a/\(attributes\)"),
    ],
)
def test_changed_attributes_are_noticed(file, change, named, tmp_path):
    path = ti.write(tree(), tmp_path / "run.zarr")
    with_record(path / file, lambda attrs: attrs.update(change))
    with pytest.raises(ValueError, match=f"is damaged: {named} differ from what was written"):
        ti.read(path)


@pytest.mark.slow
def test_attributes_of_any_plain_kind_come_back_with_their_digest(tmp_path):
    run = tree()
    odd = {"i": np.int32(3), "f": np.float32(0.1), "l": [1.5, 2.0], "one": [7], "array": np.arange(3), "t": "é"}
    run["a"].attrs.update(odd)
    run["a"]["x"].attrs.update(odd)
    for name in ("run.zarr", "run.nc") if shutil.which("true") and _has_netcdf() else ("run.zarr",):
        assert ti.read(ti.write(run, tmp_path / name))["a"].attrs["t"] == "é"


def _has_netcdf():
    try:
        import h5netcdf  # noqa: F401
    except ImportError:
        return False
    return True


def test_store_from_before_attributes_had_digests_is_read(tmp_path):
    path = ti.write(tree(), tmp_path / "run.zarr")

    def older(attrs):
        known = json.loads(attrs["digests"])
        attrs["digests"] = json.dumps({k: v for k, v in known.items() if "(attributes)" not in k})

    with_record(path / "zarr.json", older)
    assert_same(ti.read(path), tree(), exact=True)


# -- replacing ------------------------------------------------------------------------------------------------
def test_kill_between_the_two_renames_of_overwriting_keeps_the_old_result(tmp_path, dead):
    path = ti.write(tree(), tmp_path / "run.zarr")
    os.rename(path, tmp_path / f".run.zarr.old-{owner.machine()}-{dead}-1-ab")
    (tmp_path / f".run.zarr.writing-{owner.machine()}-{dead}-1-ab").mkdir()
    assert_same(ti.read(path), tree(), exact=True)
    ti.write(tree(), path, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["run.zarr"]


def test_old_result_is_moved_aside_only_while_it_is_replaced(tmp_path, monkeypatch):
    path, seen, replace = ti.write(tree(), tmp_path / "run.zarr"), [], os.replace

    def watched(a, b):
        replace(a, b)
        if path in (a, b):
            seen.append((path.exists(), sorted(p.name.split("-")[0] for p in tmp_path.iterdir())))

    monkeypatch.setattr(os, "replace", watched)
    monkeypatch.setattr(files, "_exchange", lambda a, b: False)  # as on systems that cannot swap two names
    ti.write(tree(), path, overwrite=True)
    assert seen == [
        (False, [".run.zarr.old", ".run.zarr.writing"]),
        (True, [".run.zarr.old", ".run.zarr.writing", "run.zarr"]),
    ]


def test_result_that_appears_meanwhile_is_not_replaced(tmp_path, monkeypatch):
    from xarray import DataTree

    path, to_zarr = tmp_path / "run.zarr", DataTree.to_zarr

    def slowly(self, *args, **kwargs):
        to_zarr(self, *args, **kwargs)
        path.mkdir()
        (path / "zarr.json").write_text("of somebody else")

    monkeypatch.setattr(DataTree, "to_zarr", slowly)
    with pytest.raises(FileExistsError, match="exists: give another name"):
        ti.write(tree(), path)
    assert (path / "zarr.json").read_text() == "of somebody else"
    assert [p.name for p in tmp_path.iterdir()] == ["run.zarr"]


def test_tree_without_a_result_is_not_written(tmp_path):
    import xarray as xr

    for empty in (xr.DataTree(), xr.DataTree.from_dict({"/": xr.Dataset(attrs=tree().attrs)})):
        with pytest.raises(ValueError, match="the tree holds no result to write; a share that is not the last"):
            ti.write(empty, tmp_path / "run.zarr")
    assert list(tmp_path.iterdir()) == []
