"""Maps of pairs of layers are the right way round."""

import matplotlib as mpl
import numpy as np
import pytest
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp import plots

mpl.use("Agg")


def asked():
    return {
        "overlap": ti.geometry.NeighbourOverlap((1, 3, 6)), "imbalance": ti.geometry.InformationImbalance((1, 4)),
        "graph": ti.geometry.NeighbourGraph((2, 4)), "cosine": ti.geometry.CosineSimilarity(),
        "dimension": ti.geometry.IntrinsicDimension((2, 4), k=4, tokens=0), "lens": ti.lens.LogitLens(top=0, tokens=0),
    }  # fmt: skip


@pytest.fixture(scope="module")
def run():
    return ti.measure(tiny(), some_prompts([30, 40, 25, 33, 37, 28, 31, 35, 29]), asked(), progress=False)


def test_pairs_of_layers_are_the_right_way_round(run):
    ds = run["imbalance"].to_dataset()
    ax = plots.layer_pairs(ds, "imbalance_pair", select={"k": 1})
    drawn = np.asarray(ax.collections[0].get_array()).reshape(4, 4)
    assert drawn[0, 3] == pytest.approx(float(ds["imbalance_pair"].sel(k=1, layer=0, other_layer=3)))
    ax = plots.imbalance_plane(ds, layer=1)
    x, y = ax.collections[0].get_offsets()[0]  # of layer 0
    assert x == pytest.approx(float(ds["imbalance_pair"].sel(k=1, layer=0, other_layer=1)))
    assert y == pytest.approx(float(ds["imbalance_pair"].sel(k=1, layer=1, other_layer=0)))
    x, y = plots.imbalance_plane(ds, layer=1, k=4).collections[0].get_offsets()[0]
    assert x == pytest.approx(float(ds["imbalance_pair"].sel(k=4, layer=0, other_layer=1)))
    assert y == pytest.approx(float(ds["imbalance_pair"].sel(k=4, layer=1, other_layer=0)))
    ax = plots.imbalance_by_layer(ds, 4)
    np.testing.assert_allclose(ax.lines[1].get_ydata(), ds["imbalance_backward"].sel(k=4).mean("prompt"))
