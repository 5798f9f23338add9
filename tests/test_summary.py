"""Means with intervals over documents, and results of models side by side."""

import numpy as np
import pytest
import xarray as xr

import tokinterp as ti


def results(values, **coords):
    values = np.asarray(values, dtype=float)
    data = {"x": (("prompt", "layer"), values, {"long_name": "x", "units": "nat"})}
    layer = ("layer", np.arange(values.shape[1]), {"long_name": "layer", "units": "1"})
    return xr.Dataset(data, {"layer": layer, **coords}, {"model": "m"})


def test_mean_count_and_interval_leave_nan_out():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 2))
    x[3, 0] = np.nan
    found = ti.summary(results(x))
    np.testing.assert_allclose(found["x"], np.nanmean(x, 0))
    assert found["x_count"].values.tolist() == [11, 12]
    low, high = found["x_interval"].transpose("bound", "layer").values
    assert ((low < found["x"]) & (found["x"] < high)).all()
    narrow = ti.summary(results(x), level=0.5)["x_interval"]
    assert (narrow.diff("bound") < found["x_interval"].diff("bound")).all()


def test_documents_are_drawn_where_there_are_some():
    x = np.repeat([[0.0], [1.0], [2.0], [3.0]], 3, 0)
    alone = ti.summary(results(x))
    together = ti.summary(results(x, document=("prompt", np.repeat(np.arange(4), 3))))
    assert (together.attrs["n_groups"], together.attrs["groups"]) == (4, "documents")
    assert together["x_groups"].values.tolist() == [4]
    assert "x_groups" not in alone
    assert together["x"].values.tolist() == alone["x"].values.tolist() == [1.5]
    width = [float(d["x_interval"].diff("bound").squeeze()) for d in (alone, together)]
    assert width[1] > 1.3 * width[0]
    few = ti.summary(results(x[:6], document=("prompt", np.repeat([0, 1], 3))))
    assert np.isnan(few["x_interval"]).all()


def test_what_cannot_be_summarised_is_said():
    with pytest.raises(ValueError, match="no dimension 'token'"):
        ti.summary(results(np.ones((2, 2))), "token")
    with pytest.raises(ValueError, match="is empty"):
        ti.summary(results(np.ones((0, 2))))


def test_models_side_by_side_keep_their_numbers_and_refuse_others():
    a, b = results(np.zeros((2, 3))), results(np.ones((2, 3))).assign_attrs(model="n")
    both = ti.concat_models([a, b])
    assert both["model"].values.tolist() == ["m", "n"]
    np.testing.assert_array_equal(both["x"].sel(model="n"), b["x"])
    assert both.attrs["model"] == '["m", "n"]'
    with pytest.raises(ValueError, match="give a mapping of different names"):
        ti.concat_models([a, a])
    with pytest.raises(ValueError, match="coordinate 'layer' of 'q' differs"):
        ti.concat_models({"p": a, "q": b.assign_coords(layer=[0, 1, 5])})
    with pytest.raises(ValueError, match="do not have the same variables: x, y"):
        ti.concat_models({"p": a, "q": b.rename(x="y")})
