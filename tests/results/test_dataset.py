"""Conventions are checked, files come back bit for bit or not at all, and intervals cover what they should."""

import math
import re
import subprocess

import numpy as np
import pytest
import xarray as xr
from result_trees import example, tree
from tiny import tiny

import tokinterp as ti
from tokinterp.results import dataset
from tokinterp.results.dataset import DIMS, REQUIRED, block_coords, layer_coords


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


def test_relative_depth_is_of_all_blocks_whatever_layers_are_measured():
    info = tiny().info
    found = layer_coords([0, 2], info)
    assert found["relative_depth"].values.tolist() == [0, 2 / info.n_layers]
    assert info.n_layers > 2
    assert found["site"].values.tolist() == [ti.Site("resid", n).lens_name for n in (0, 2)]


def test_the_commit_is_that_of_the_source_tree_and_says_whether_it_was_changed(tmp_path, monkeypatch):
    file = tmp_path / "tokinterp" / "results" / "dataset.py"
    file.parent.mkdir(parents=True)
    file.write_text("first")
    monkeypatch.setattr(dataset, "__file__", str(file))
    found = []
    call = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (None, ["init", "-q"], ["add", "."], ["commit", "-qm", "first"], None):
        if command:
            subprocess.run([*call, *command], check=True)
        elif found:
            file.write_text("second")
        dataset.git_commit.cache_clear()
        found.append(dataset.git_commit())
    dataset.git_commit.cache_clear()
    assert found[:3] == ["", "", ""]
    assert re.fullmatch("[0-9a-f]{40}", found[3])
    assert found[4] == found[3] + "+"
