"""Information imbalance: its least value is that of a cloud with itself."""

import numpy as np
from standin import StandIn

import tokinterp as ti


def test_least_is_the_imbalance_of_a_cloud_with_itself():
    ds = StandIn((14, 9)).measured(ti.geometry.InformationImbalance((1, 3))).result()
    for layer in range(4):
        own = ds["imbalance_pair"].sel(layer=layer, other_layer=layer)
        np.testing.assert_allclose(own, ds["least"].mean("prompt"), rtol=1e-9)


def test_forward_is_from_a_layer_to_the_next_one():
    model = StandIn((60,), n_layers=1, d=6)
    model.streams[0][1] = model.streams[0][0].copy()
    model.streams[0][1][:, 1:] *= 1e-3  # what follows knows one coordinate, what was before all of them
    ds = model.measured(ti.geometry.InformationImbalance((1,))).result().isel(prompt=0, k=0, block=0)
    assert float(ds["imbalance_forward"]) < float(ds["imbalance_backward"]) - 0.1
    assert float(ds["imbalance_pair"].sel(layer=0, other_layer=1)) == float(ds["imbalance_forward"])


def test_the_mean_over_prompts_is_over_those_that_are_large_enough():
    model = StandIn((30, 5, 25))
    ds = model.measured(ti.geometry.InformationImbalance(k=(1, 6), small="nan")).result()
    missing = ds["imbalance_forward"].isnull().all("block").values.tolist()
    assert missing == [[False, False], [False, True], [False, False]]
    for b in range(3):
        pair = ds["imbalance_pair"].sel(layer=b, other_layer=b + 1).values
        np.testing.assert_allclose(pair, np.nanmean(ds["imbalance_forward"].sel(block=b).values, 0))
        back = ds["imbalance_pair"].sel(layer=b + 1, other_layer=b).values
        np.testing.assert_allclose(back, np.nanmean(ds["imbalance_backward"].sel(block=b).values, 0))
