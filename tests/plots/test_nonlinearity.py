"""Figures of nonlinearity show its numbers."""

import matplotlib as mpl
import numpy as np
import pytest
from tiny import tiny

import tokinterp as ti
from tokinterp import plots

mpl.use("Agg")


@pytest.fixture(scope="module")
def run():
    texts = ["the river runs in the valley, and ends"] * 3 + ["a king went to the river and sang 12 songs."] * 3
    prompts = ti.Prompts.from_texts(texts, tiny())
    asked = {"linearity": ti.linearity.Linearity(), "nonlinearity": ti.linearity.TokenNonlinearity()}
    return prompts, ti.measure(tiny(), prompts, asked, progress=False)


def test_nonlinearity(run):
    ds = run[1]["nonlinearity"].to_dataset(inherit=False)
    ax = plots.nonlinearity_map(ds, 2, blocks=[1, 2])
    mesh = ax.collections[0]
    here = (ds["token_prompt"] == 2).values
    np.testing.assert_array_equal(mesh.get_array(), ds["nonlinearity"].values[here][:50, 1:].T)
    fitted = ds["nonlinearity"].values[here & ds["fitted"].values, 1:]
    assert mesh.get_clim()[1] == pytest.approx(np.percentile(fitted, 99), rel=1e-4)
