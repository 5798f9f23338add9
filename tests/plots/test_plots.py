"""Figures show the numbers of the dataset, say what they are, and stay legible at the width of a column."""

import ast
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from drawn import assert_legible, curves_of

from tokinterp import plots

mpl.use("Agg")
FOLDER = Path(plots.__file__).parent


def test_eigenvalues_are_shares_that_sum_to_one(tiny_run):
    ds = tiny_run["spectrum"].to_dataset()
    ax = plots.eigenvalues(ds, [0, 3])
    for line in ax.lines:
        assert np.nansum(line.get_ydata()) == pytest.approx(1)
    assert ax.get_xscale() == ax.get_yscale() == "log"


@pytest.mark.slow
def test_dimension_plots_take_their_numbers_from_the_scale_asked(tiny_run):
    ds = tiny_run["dimension"].to_dataset()
    ax = plots.dimension_by_layer(ds, scale=8)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), ds["dimension"].sel(scale=8).mean("prompt"))
    assert "n₂ = 8" in ax.get_ylabel()
    by_scale = plots.dimension_by_scale(ds, layers=[2])
    np.testing.assert_allclose(by_scale.lines[0].get_ydata(), ds["dimension"].sel(layer=2).mean("prompt"))
    assert [t.get_text() for t in by_scale.get_xticklabels()] == ["2", "4", "8"]
    with pytest.raises(ValueError, match="not measured at scale 16: there are 2, 4, 8"):
        plots.dimension_by_layer(ds, scale=16)
    with pytest.raises(ValueError, match="estimator='pca': give one of 'gride', 'mle', 'twonn'"):
        plots.dimension_by_layer(ds, estimator="pca")


@pytest.mark.parametrize("name", ["dimension", "spectrum", "lens"])
@pytest.mark.slow
def test_every_overview_is_legible_on_a_page(tiny_run, name):
    found = list(plots.overview(tiny_run[name].to_dataset()))
    assert found
    for _, caption, fig in found:
        assert caption.endswith(".")
        assert fig.get_size_inches()[0] <= 7
        assert_legible(fig)


def test_results_of_any_other_measurement_are_drawn_too():
    ds = curves_of(scale=[2, 4]).assign(n_points=("prompt", np.arange(12)))
    assert [name for name, _, _ in plots.overview(ds)] == ["loss"]


def test_plots_never_import_torch():
    for file in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [n for n in names if n.split(".")[0] == "torch"], file.name
