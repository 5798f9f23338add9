"""Figures of similarity, entropy, curvature, norms and attention to the first token show the numbers of the dataset."""

import matplotlib as mpl
import numpy as np
import pytest
from test_plots import assert_legible, close_figures  # noqa: F401

import tokinterp as ti
from tokinterp import plots

mpl.use("Agg")


@pytest.fixture(scope="module")
def run(tiny_folder):
    model = ti.load_model(tiny_folder, device="cpu")
    texts = [t.text[: 110 + 9 * n] for n, t in enumerate(ti.bundled_texts("story")[:5])]
    asked = {
        "similarity": ti.LayerSimilarity(sample=64, measures=("cka", "procrustes", "rsa", "neighbours")),
        "entropy": ti.MatrixEntropy(alpha=(1, 2)),
        "curvature": ti.Curvature(),
        "norms": ti.TokenNorms(factor=1.5),
        "sinks": ti.FirstTokenAttention(threshold=0.05),
    }
    return ti.measure(model, ti.Prompts.from_texts(texts, model, max_tokens=256), asked, progress=False)


@pytest.mark.parametrize("name", ["similarity", "entropy", "curvature", "norms", "sinks"])
def test_overviews_are_legible(run, name):
    found = list(plots.overview(run[name].to_dataset()))
    assert len(found) == (2 if name == "norms" else 1)
    for _, caption, fig in found:
        assert caption.endswith(".")
        assert_legible(fig)


def drawn_map(ax):
    return np.asarray(ax.collections[0].get_array())


def test_similarity_map_shows_the_matrix(run):
    ds = run["similarity"].to_dataset()
    ax = plots.similarity_map(ds, "rsa")
    np.testing.assert_allclose(drawn_map(ax), ds["rsa"].transpose("layer", "other_layer"))
    assert ax.collections[0].get_clim()[1] == 1
    assert "RSA" in ax.figure.axes[-1].get_ylabel()


def test_entropy_curve_shows_means_of_prompts(run):
    ds = run["entropy"].to_dataset()
    ax = plots.entropy_by_layer(ds, "prompt_entropy")
    assert "nat" in ax.get_ylabel()
    np.testing.assert_allclose(ax.lines[1].get_ydata(), ds["prompt_entropy"].sel(order=2).mean("prompt"))


def test_curvature_is_in_degrees_beside_known_paths(run):
    ds = run["curvature"].to_dataset()
    ax = plots.curvature_by_layer(ds, other={"again": ds})
    np.testing.assert_allclose(ax.lines[0].get_ydata(), np.degrees(ds["curvature"].mean("prompt")))
    np.testing.assert_allclose(ax.lines[1].get_ydata(), ax.lines[0].get_ydata())
    assert {120, 90} <= {line.get_ydata()[0] for line in ax.lines}
    assert "degree" in ax.get_ylabel()
    assert ds["curvature"].attrs["units"] == "rad"


def test_magnitudes_and_norms_show_largest_and_median(run):
    ds = run["norms"].to_dataset()
    ax = plots.magnitudes_by_layer(ds)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), ds["top_magnitude"].isel(rank=0).mean("prompt"), rtol=1e-6)
    np.testing.assert_allclose(ax.lines[3].get_ydata(), ds["median_magnitude"].mean("prompt"), rtol=1e-6)
    assert ax.get_yscale() == "log"
    ax = plots.norms_by_layer(ds)
    np.testing.assert_allclose(ax.lines[1].get_ydata(), ds["median_norm"].mean("prompt"), rtol=1e-6)


def test_first_token_map_shows_the_heads(run):
    ds = run["sinks"].to_dataset()
    ax = plots.first_token_map(ds)
    np.testing.assert_allclose(drawn_map(ax), ds["first_token_mass"].mean("prompt").transpose("block", "head"))
