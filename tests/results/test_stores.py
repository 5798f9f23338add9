"""Files come back as they were, and damage is noticed."""

import errno
import os
import shutil

import pytest
import xarray as xr
from conftest import needs_extras
from result_trees import example, tree
from stored_runs import assert_same, measured
from tiny import Norms

import tokinterp as ti

NC = pytest.param("run.nc", marks=needs_extras)


# -- files ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["run.zarr", NC, "deep/er/run.zarr", "no suffix"])
@pytest.mark.slow
def test_files_come_back_as_they_were(name, tmp_path):
    path = ti.write(tree(), tmp_path / name)
    assert path == tmp_path / name
    back = ti.read(path)
    assert_same(back, tree(), exact=True)
    assert back["a"].attrs == {**tree()["a"].attrs, "created": back["a"].attrs["created"]}
    for v in tree()["a"].to_dataset().variables:
        assert back["a"][v].attrs == tree()["a"][v].attrs
        assert back["a"][v].dims == tree()["a"][v].dims
    assert [p.name for p in path.parent.iterdir()] == [path.name], "something else was left beside it"


@needs_extras
def test_datasets_and_runs_can_be_written_too(tmp_path):
    ti.write(example(), tmp_path / "one.nc")
    xr.testing.assert_identical(ti.read(tmp_path / "one.nc").to_dataset().drop_attrs(), example().drop_attrs())
    run = measured(which={"norms": Norms()})
    ti.write(run, tmp_path / "run.zarr")
    assert_same(ti.read(tmp_path / "run.zarr"), run, exact=True)


def chunks(path, variable="x"):
    return [p for p in (path / "a" / variable / "c").rglob("*") if p.is_file()]


def truncate(path):
    for chunk in chunks(path):
        chunk.write_bytes(chunk.read_bytes()[:-7])


def flip(path):
    chunk = chunks(path)[0]
    data = bytearray(chunk.read_bytes())
    data[-3] ^= 1
    chunk.write_bytes(bytes(data))


def flip_uncompressed(path):
    """The damage that no compression notices: whole and well formed, but another number."""
    import zarr

    stored = zarr.open_group(path, mode="r+")["a/y"]
    stored[3] = stored[3] * (1 + 1e-15) + 1e-16


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "/a/x/c/0(/0)? is damaged, or does not say what it unpacks to"),
        (flip, "cannot be read|is damaged: /a/x"),
        (flip_uncompressed, "is damaged: /a/y differ from what was written"),
        (lambda path: [c.unlink() for c in chunks(path)], "is damaged: /a/x"),
        (lambda path: [c.unlink() for c in chunks(path, "word")], "cannot be read|is damaged: /a/word"),
        (lambda path: shutil.rmtree(path / "a" / "x"), "is damaged: /a/x"),
        (lambda path: shutil.rmtree(path / "b"), "is damaged: /b/"),
        (lambda path: (path / "a" / "x" / "zarr.json").write_text("{"), "cannot be read .damaged, or no result"),
        (lambda path: (path / "zarr.json").unlink(), "cannot be read .damaged, or no result"),
    ],
)
@pytest.mark.slow
def test_damage_is_noticed(damage, message, tmp_path):
    path = ti.write(tree(), tmp_path / "run.zarr")
    damage(path)
    with pytest.raises(ValueError, match=message):
        ti.read(path)


@needs_extras
def test_damaged_netcdf_is_noticed(tmp_path):
    path = ti.write(tree(), tmp_path / "run.nc")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be read"):
        ti.read(path)
    changed = whole.replace(example()["y"].values.tobytes(), example(seed=9)["y"].values.tobytes())
    assert changed != whole
    path.write_bytes(changed)
    with pytest.raises(ValueError, match="is damaged: /a/y"):
        ti.read(path)


@needs_extras
def test_nothing_there_and_something_else_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no result at .*none.zarr$"):
        ti.read(tmp_path / "none.zarr")
    xr.Dataset({"x": 1}).to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match="has no digests: it is no result that tokinterp wrote"):
        ti.read(tmp_path / "other.nc")
    (tmp_path / "text.nc").write_text("not netCDF")
    with pytest.raises(ValueError, match="cannot be read"):
        ti.read(tmp_path / "text.nc")


@pytest.mark.parametrize("name", ["run.zarr", NC])
@pytest.mark.slow
def test_existing_files_are_kept_unless_told_otherwise(name, tmp_path, monkeypatch):
    path = ti.write(tree(), tmp_path / name)
    with pytest.raises(FileExistsError, match="exists: give another name or overwrite=True"):
        ti.write(example(), path)
    ti.write(example(seed=3), path, overwrite=True)
    xr.testing.assert_identical(ti.read(path)["y"].drop_attrs(), example(seed=3)["y"].drop_attrs())
    fail_in_the_middle(monkeypatch)
    with pytest.raises(OSError, match="No space left on device"):
        ti.write(tree(), path, overwrite=True)
    monkeypatch.undo()
    xr.testing.assert_identical(ti.read(path)["y"].drop_attrs(), example(seed=3)["y"].drop_attrs())
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_folder_that_is_no_result_is_never_overwritten(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="is a folder, but no zarr store"):
        ti.write(example(), tmp_path / "home", overwrite=True)
    assert (tmp_path / "home" / "thesis.txt").exists()


def fail_in_the_middle(monkeypatch, error=None):
    """Let the file be written, and then fail as a full disk does."""

    def failing(write):
        def written(self, *args, **kwargs):
            write(self, *args, **kwargs)
            raise error or OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return written

    monkeypatch.setattr(xr.DataTree, "to_zarr", failing(xr.DataTree.to_zarr))
    monkeypatch.setattr(xr.DataTree, "to_netcdf", failing(xr.DataTree.to_netcdf))


@pytest.mark.parametrize("name", ["run.zarr", NC])
@pytest.mark.slow
def test_failure_in_the_middle_leaves_nothing(name, tmp_path, monkeypatch):
    fail_in_the_middle(monkeypatch)
    with pytest.raises(
        OSError, match=f"cannot write .*{name}: No space left on device; free some space or choose"
    ) as caught:
        ti.write(tree(), tmp_path / name)
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    fail_in_the_middle(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        ti.write(tree(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["run.zarr", NC])
def test_unwritable_place_is_named(name, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=f"cannot write .*file/{name}: .*choose another place"):
        ti.write(tree(), tmp_path / "file" / name)
    with pytest.raises(OSError, match=f"^store='.*file/{name}': .*file is a file, not a folder; choose another place"):
        measured(which={"norms": Norms()}, store=tmp_path / "file" / name)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["a.zarr", pytest.param("a.nc", marks=needs_extras)])
def test_results_come_back_in_the_order_in_which_they_were_written(name, tmp_path):
    one = example()
    one = xr.Dataset({n: one[n].variable for n in [*one.data_vars][::-1]}, one.coords, one.attrs)
    tree = xr.DataTree.from_dict({"/": xr.Dataset(attrs=one.attrs), **{f"/{g}": one for g in "zebra"}})
    path = ti.write(tree, tmp_path / name)
    for _ in range(4):  # a folder's listing has no order of its own
        found = ti.read(path)
        assert list(found.children) == list("zebra")
        assert list(found["b"].data_vars) == list(one.data_vars)


def test_xarray_alone_opens_a_run_without_a_warning(tmp_path):
    """Warnings are errors here: the facts of all arrays are where other readers look for them."""
    run = measured(which={"norms": Norms()})
    ti.write(run, tmp_path / "run.zarr")
    alone = xr.open_datatree(tmp_path / "run.zarr")
    assert {*alone.children} == {*run.children}
    for name, node in run.children.items():
        group = xr.open_dataset(tmp_path / "run.zarr", group=name, engine="zarr")
        for v in node.data_vars:
            assert group[v].values.tolist() == alone[name][v].values.tolist() == node[v].values.tolist()


def test_a_node_of_a_run_is_written_alone_and_all_names_keep_their_order(tmp_path):
    run = tree()
    again = ti.read(ti.write(run["a"], tmp_path / "a.zarr"))
    assert again["x"].equals(run["a"]["x"])
    assert not again.children
    whole = ti.read(ti.write(run, tmp_path / "b.zarr"))
    for name in run.children:
        assert list(whole[name].data_vars) == list(run[name].data_vars)
        assert list(whole[name].coords) == list(run[name].coords)


@needs_extras
@pytest.mark.parametrize("name", ["run.zarr", NC])
def test_a_result_is_read_lazily_and_checked_all_the_same(name, tmp_path):
    path = ti.write(tree(), tmp_path / name)
    lazy = ti.read(path, chunks=dict.fromkeys(tree()["a"].sizes, 2))
    first = lazy["a"]["x"]
    assert first.chunks is not None
    assert max(map(max, first.chunks)) == 2
    assert_same(lazy, tree(), exact=True)
    assert ti.read(path, chunks={})["a"]["x"].chunks is not None
    assert ti.read(path)["a"]["x"].chunks is None


@needs_extras
def test_damage_is_noticed_lazily_too(tmp_path):
    path = ti.write(tree(), tmp_path / "run.zarr")
    flip_uncompressed(path)
    with pytest.raises(ValueError, match="is damaged: /a/y differ from what was written"):
        ti.read(path, chunks=dict.fromkeys(tree()["a"].sizes, 2))
