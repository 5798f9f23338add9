"""What goes without saying of a variable, and what a result says itself."""

import numpy as np
import pytest
import xarray as xr
from result_trees import example

import tokinterp as ti
from tokinterp.results.dataset import variable
from tokinterp.results.facts import axis_of, facts_of, first_of, preferred, show


def one(dims="layer", long_name="x", **attrs):
    shape = [3] * len(np.atleast_1d(dims))
    return xr.Dataset({"x": (dims, np.zeros(shape), {"long_name": long_name, "units": "1", **attrs})})


def test_facts_of_a_field_come_back_from_the_attributes(tmp_path):
    field = ti.Field(("prompt",), "mean drop", "nat", short="drop", range=(None, 2.5), chance=0, log=True,
                     beside=("a", "b"), along=("scale", "layer"))  # fmt: skip
    ds = example().assign(x=field.variable(np.ones(6)), a=variable("prompt", np.ones(6), "another", "1"))
    for form in ("a.nc", "a.zarr"):
        facts = facts_of(ti.read(ti.write(ds, tmp_path / form)).to_dataset(), "x")
        assert (facts.label, facts.units, facts.low, facts.high) == ("drop", "nat", None, 2.5)
        assert (facts.chance, facts.log, facts.beside, facts.along) == (0.0, True, ("a",), ("scale", "layer"))


@pytest.mark.parametrize(
    ("text", "ends"),
    [("share of heads", (0, 1)), ("mean share of heads", (0, 1)), ("accuracy of the answer", (0, 1)),
     ("change of accuracy", (None, None)), ("shared segments", (None, None))],
)  # fmt: skip
def test_a_share_lies_between_0_and_1(text, ends):
    facts = facts_of(one(long_name=text), "x")
    assert (facts.low, facts.high) == ends


def test_the_null_of_a_variable_is_its_level_by_chance():
    assert facts_of(one().assign(x_null=("layer", [0.0] * 3)), "x").chance == "x_null"
    assert facts_of(one(), "x").chance is None
    assert facts_of(one(chance="lost"), "x").chance is None
    assert facts_of(one(chance=0.0), "x").chance == 0.0


def test_the_axis_is_depth_or_what_has_numbers():
    assert axis_of(one(("prompt", "k", "layer")), "x") == "layer"
    assert axis_of(one(("block", "bin")), "x") == "bin"
    assert axis_of(one(("layer", "scale"), along="scale"), "x") == "scale"
    counts = one(("filler", "n_fillers")).assign_coords(filler=list("abc"), n_fillers=[0, 5, 10])
    assert axis_of(counts, "x") == "n_fillers"
    assert axis_of(one(("prompt", "policy")).assign_coords(policy=list("abc")), "x") is None


def test_first_are_the_variables_named_or_those_that_stand_for_themselves():
    names = ["n", "n_rows", "loss", "loss_interval", "loss_null", "floor", "refused", "beside"]
    ds = xr.Dataset({n: ("layer", [1.0]) for n in names})
    ds["loss"].attrs.update(chance="floor", beside="beside")
    assert first_of(ds) == ["loss"]
    assert first_of(ds.assign_attrs(first="floor, lost, n")) == ["floor", "n"]
    assert first_of(ds[["n_rows"]]) == ["n_rows"]
    prompts = ds[["n_rows"]].assign(first_nonfinite_layer=("layer", [-1]), prompt_hash=("layer", [2**60]))
    assert first_of(prompts) == ["n_rows", "first_nonfinite_layer"]
    assert preferred(xr.Dataset(coords={"scale": [2, 4]}), "scale") == 1
    assert preferred(xr.Dataset(coords={"scale": [2, 8]}), "scale") == 0


def test_values_are_shown_for_readers():
    assert show("shuffle:3", "null") == "shuffled, S = 3"
    assert show("none", "format") == "no fillers"
    assert show(-2, "offset") == "offset -2"
    assert show("random_ids", "null") == "random tokens"
    assert [show(n, "condition") for n in ("none", "random", "parallel")] == ["none", "random", "parallel"]
    assert [show(n, "trunk") for n in ("random", "filler", "none")] == ["not trained", "fillers", "no fillers"]
    assert show(1, "rank") == "second"
