"""Conventions are checked, files come back bit for bit or not at all, and intervals cover what they should."""

import errno
import json
import math
import os
import shutil

import numpy as np
import pytest
import xarray as xr
from conftest import needs_extras
from scipy import stats
from stored_runs import assert_same, measured
from tiny import Norms, tiny

import tokinterp as ti
from tokinterp.dataset import DIMS, REQUIRED, block_coords, layer_coords, provenance, variable

NC = pytest.param("run.nc", marks=needs_extras)


def example(n=6, layers=4, seed=0, **attrs):
    """A dataset that follows the conventions, with everything that files find hard."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, layers)).astype(np.float32)
    x[1, 2], x[2, 0] = np.nan, -0.0
    words = np.array(["", " leading", "é", "日本", "\\x00", "a\nb"] + ["w"] * (n - 6), dtype=object)[:n]
    info = tiny().info
    ds = xr.Dataset(
        {
            "x": variable(("prompt", "layer"), x, "some quantity", "nat", "Someone 2024, eq. 3"),
            "y": variable("prompt", rng.normal(size=n), "another", "1"),
            "flag": variable("prompt", rng.random(n) < 0.5, "whether", "1"),
            "count": variable("layer", np.arange(layers, dtype=np.int32), "how many", "token"),
            "word": variable("prompt", words, "a string", "1"),
            "total": variable((), np.float64(-np.nan), "one number", "1"),
            "none": variable(("span",), np.zeros(0, np.int64), "an empty table", "1"),
        },
        {**layer_coords(range(layers), info), "prompt": variable("prompt", np.arange(n), "number", "1")},
    )
    ds.attrs = {**provenance(info, "hash", {"k": 1}, "mark"), **attrs}
    return ds


def tree():
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=example().attrs), "/a": example(), "/b": example(seed=1)})


# -- check ----------------------------------------------------------------------------------------------------
def test_a_good_result_passes():
    ti.check(example())
    ti.check(tree())
    assert all(example().attrs[a] not in ("", None) for a in REQUIRED if a != "git_commit")
    assert set(DIMS) >= {
        "prompt",
        "position",
        "token",
        "layer",
        "block",
        "offset",
        "vocab",
        "scale",
        "k",
        "span",
        "model",
    }


def without(ds, name):
    ds.attrs.pop(name)
    return ds


def with_attr(ds, value, name=None):
    (ds[name].attrs if name else ds.attrs)["odd"] = value
    return ds


def infinite(ds):
    ds["y"].values[2] = math.inf
    return ds


def reworded(ds, text):
    ds["word"].values[0] = text
    return ds


def untold(ds, attr):
    del ds["x"].attrs[attr]
    return ds


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        *((lambda ds, a=a: without(ds, a), f"attribute '{a}' is missing") for a in REQUIRED),
        (lambda ds: ds.assign_attrs(Conventions="CF-1.8"), "Conventions is 'CF-1.8', not 'tokinterp-1'"),
        (lambda ds: ds.rename(layer="layers"), "unknown dimension 'layers' .known: prompt, "),
        (lambda ds: untold(ds, "long_name"), "variable 'x' has no long_name"),
        (lambda ds: untold(ds, "units"), "variable 'x' has no units"),
        (lambda ds: ds.assign_coords(extra=("prompt", range(6))), "variable 'extra' has no long_name"),
        (infinite, "variable 'y' has infinite values"),
        (lambda ds: with_attr(ds, None, "x"), "NoneType attribute 'odd' of 'x'"),
        (lambda ds: with_attr(ds, True, "x"), "bool attribute 'odd' of 'x'"),
        (lambda ds: with_attr(ds, {"a": 1}), "dict attribute 'odd'"),
        (lambda ds: with_attr(ds, np.bool_(True)), "bool attribute 'odd'"),
        (lambda ds: with_attr(ds, "a\0b"), "NUL or lone surrogate in attribute 'odd'"),
        (lambda ds: reworded(ds, "a\0"), "variable 'word' has strings with NUL or lone surrogates"),
        (lambda ds: reworded(ds, "\ud83d"), "variable 'word' has strings with NUL or lone surrogates"),
        (
            lambda ds: ds.assign_coords(layer=("layer", [0, 1, 2, 4], ds.layer.attrs)),
            r"layers \[4\] are not within 0..3",
        ),
        (lambda ds: ds.assign_coords(layer=("layer", [-1, 0, 1, 2], ds.layer.attrs)), r"layers \[-1\]"),
    ],
)
def test_check_finds_each_problem(spoil, message, tmp_path):
    spoiled = spoil(example())
    with pytest.raises(ValueError, match=f"not a tokinterp result: .*{message}"):
        ti.check(spoiled)
    with pytest.raises(ValueError, match=f"/a: not a tokinterp result: .*{message}"):
        ti.check(xr.DataTree.from_dict({"/": xr.Dataset(attrs=example().attrs), "/a": spoiled}))
    with pytest.raises(ValueError, match=message):
        ti.write(spoiled, tmp_path / "x.zarr")
    assert list(tmp_path.iterdir()) == []


def test_check_names_every_problem_at_once():
    with pytest.raises(ValueError, match=r"'model' is missing.*'y' has infinite"):
        ti.check(without(infinite(example()), "model"))


def test_layers_and_blocks_are_labelled():
    info = tiny().info
    coords = layer_coords([0, 2, 3], info)
    assert coords["site"].values.tolist() == [
        "blocks.0.hook_resid_pre",
        "blocks.1.hook_resid_post",
        "blocks.2.hook_resid_post",
    ]
    assert coords["relative_depth"].values.tolist() == [0, 2 / 3, 1]
    assert block_coords([0, 2], info, "mlp_out")["site"].values.tolist() == [
        "blocks.0.hook_mlp_out",
        "blocks.2.hook_mlp_out",
    ]


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
    with pytest.raises(OSError, match=f"cannot write the store .*file/{name}: .*choose another place"):
        measured(which={"norms": Norms()}, store=tmp_path / "file" / name)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


# -- models side by side --------------------------------------------------------------------------------------
def test_models_are_joined_exactly():
    a, b = example(model="a", weights="1"), example(seed=1, model="b", weights="2")
    for out in (ti.concat_models([a, b]), ti.concat_models({"a": a, "b": b})):
        ti.check(out)
        assert out["model"].values.tolist() == ["a", "b"]
        assert json.loads(out.attrs["weights"]) == ["1", "2"]
        assert out.attrs["tokenizer"] == a.attrs["tokenizer"]
        for name, ds in (("a", a), ("b", b)):
            np.testing.assert_array_equal(out["x"].sel(model=name), ds["x"])
        assert out["x"].attrs["units"] == "nat"
    renamed = ti.concat_models({"first": a, "second": a})
    assert renamed["model"].values.tolist() == ["first", "second"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (example(layers=3), "coordinate '(layer|relative_depth|site)' of 'other' differs from that of 'one'"),
        (example(n=7), "coordinate 'prompt' of 'other' differs"),
        (example().assign_coords(layer=("layer", [0, 1, 2, 4])), "coordinate 'layer' of 'other' differs"),
        (example().assign_coords(extra=1), "coordinate 'extra' of 'other' differs"),
        (example().drop_vars("site"), "coordinate 'site' of 'other' differs"),
        (example().drop_vars("x"), "do not have the same variables: x"),
        (example().drop_vars("none").assign(none=("span", [1])), "has sizes"),
    ],
)
def test_differing_results_are_not_joined(other, message):
    for results in ({"one": example(), "other": other}, {"other": other, "one": example()}):
        names = message if next(iter(results)) == "one" else message.split(" of ")[0]
        with pytest.raises(ValueError, match=names):
            ti.concat_models(results)


def test_equal_names_and_nothing_are_refused():
    with pytest.raises(ValueError, match=r"the results come from \['tiny-llama', 'tiny-llama'\]: give a mapping"):
        ti.concat_models([example(), example(seed=1)])
    with pytest.raises(ValueError, match=r"^results=\[\]: give a dictionary"):
        ti.concat_models([])


# -- summary --------------------------------------------------------------------------------------------------
def normal(n, columns=400, seed=0):
    values = np.random.default_rng(seed).normal(3, 2, (n, columns))
    return xr.Dataset({"x": variable(("prompt", "vocab"), values, "x", "nat")}), values


def test_interval_has_the_width_and_coverage_of_theory():
    """Normal data: the interval is that of Student, 2 t s / sqrt(n) wide, and holds the true mean in 95 of 100 columns.

    With 400 columns two standard errors of the coverage are 2.2 points.
    """
    n = 100
    ds, values = normal(n)
    out = ti.summary(ds)
    low, high = out["x_interval"].sel(bound="lower").values, out["x_interval"].sel(bound="upper").values
    np.testing.assert_allclose(out["x"], values.mean(0))
    expected = 2 * stats.t.ppf(0.975, n - 1) * values.std(0, ddof=1) / np.sqrt(n)
    assert abs(np.mean((high - low) / expected) - 1) < 0.01
    assert np.abs((high - low) / expected - 1).max() < 0.15
    assert 0.91 < np.mean((low < 3) & (high > 3)) < 0.97
    narrow = ti.summary(ds, level=0.5)
    width = narrow["x_interval"].sel(bound="upper") - narrow["x_interval"].sel(bound="lower")
    assert abs(float((width / expected).mean()) / (0.6745 / 1.96) - 1) < 0.02
    assert out["x"].attrs == {"long_name": "mean x", "units": "nat"}
    assert "95% bootstrap interval" in out["x_interval"].attrs["long_name"]


def test_summary_is_seeded_and_the_same_in_any_chunks(monkeypatch):
    ds, _ = normal(30, 7)
    a, b, other = ti.summary(ds, seed=1), ti.summary(ds, seed=1), ti.summary(ds, seed=2)
    xr.testing.assert_identical(a, b)
    assert not a["x_interval"].equals(other["x_interval"])
    one = ti.summary(ds.isel(vocab=[3]), seed=1)
    np.testing.assert_allclose(one["x_interval"][:, 0], a["x_interval"][:, 3])


def test_summary_leaves_nan_out():
    ds, values = normal(50, 3)
    ds["x"].values[10:, 1] = np.nan
    ds["x"].values[:, 2] = np.nan
    out = ti.summary(ds)
    assert out["x_count"].values.tolist() == [50, 10, 0]
    np.testing.assert_allclose(out["x"][1], values[:10, 1].mean())
    alone = ti.summary(xr.Dataset({"x": variable("prompt", values[:10, 1], "x", "nat")}))
    width = np.diff(out["x_interval"][:, 1])[0]
    assert abs(width / np.diff(alone["x_interval"])[0] - 1) < 0.2
    assert np.isnan(out["x"][2])
    assert np.isnan(out["x_interval"][:, 2]).all()


def test_summary_of_a_result_keeps_what_is_not_over_prompts():
    out = ti.summary(example())
    ti.check(out)
    assert set(out.data_vars) == {f"{n}{end}" for n in ("x", "y", "flag") for end in ("", "_interval", "_count")}
    assert out["site"].dims == ("layer",)
    assert out["x"].attrs["references"] == "Someone 2024, eq. 3"
    with pytest.raises(ValueError, match="no dimension 'head' to summarise over: there are prompt"):
        ti.summary(example(), "head")
    with pytest.raises(ValueError, match="level=95: give a number between 0 and 1"):
        ti.summary(example(), level=95)
    with pytest.raises(ValueError, match="n_boot=0"):
        ti.summary(example(), n_boot=0)
    with pytest.raises(ValueError, match="dimension 'span' is empty"):
        ti.summary(example(), "span")


def test_relative_depth_is_of_all_blocks_whatever_layers_are_measured():
    info = tiny().info
    found = layer_coords([0, 2], info)
    assert found["relative_depth"].values.tolist() == [0, 2 / info.n_layers]
    assert info.n_layers > 2
    assert found["site"].values.tolist() == [ti.Site("resid", n).lens_name for n in (0, 2)]
