"""The plane of the information imbalance is the right way round."""

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp import plots
from tokinterp.geometry.plots import imbalance_plane

mpl.use("Agg")


def test_the_plane_is_the_right_way_round():
    asked = {"imbalance": ti.geometry.InformationImbalance((1, 4))}
    ds = ti.measure(tiny(), some_prompts([30, 40, 25, 33]), asked, progress=False)["imbalance"].to_dataset()
    for k, options in ((1, {}), (4, {"k": 4})):
        x, y = imbalance_plane(ds, layer=1, **options).collections[0].get_offsets()[0]  # of layer 0
        assert x == pytest.approx(float(ds["imbalance_pair"].sel(k=k, layer=0, other_layer=1)))
        assert y == pytest.approx(float(ds["imbalance_pair"].sel(k=k, layer=1, other_layer=0)))
    with pytest.raises(ValueError, match="layer 9"):
        imbalance_plane(ds, layer=9)
    assert "imbalance_plane" in [p.name for p in plots.draw(ds)]


def test_numbers_of_the_plane_that_would_cover_each_other_are_left_out_but_those_of_the_ends():
    pair = np.zeros((1, 5, 5))
    pair[0, 0, 1:], pair[0, 1:, 0] = [0.4, 0.4, 0.6, 0.405], [0.3, 0.301, 0.5, 0.5]
    coords = {"k": [1], "layer": range(5), "other_layer": range(5)}
    ax = imbalance_plane(xr.Dataset({"imbalance_pair": (("k", "layer", "other_layer"), pair)}, coords))
    assert {t.get_text(): t.xy for t in ax.texts} == {"1": (0.3, 0.4), "4": (0.5, 0.405), "3": (0.5, 0.6)}
