"""Figures show the numbers of the dataset, say what they are, and stay legible at the width of a column."""

import ast
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from matplotlib.text import Text

from tokinterp import plots
from tokinterp.results.dataset import variable

mpl.use("Agg")
FOLDER = Path(plots.__file__).parent


@pytest.fixture(autouse=True)
def close_figures():
    import matplotlib.pyplot as plt

    before = dict(mpl.rcParams)
    yield
    assert dict(mpl.rcParams) == before, "a plot changed matplotlib's settings"
    plt.close("all")


def curves_of(name="loss", prompts=12, layers=5, n_layers=4, seed=0, **dims):
    """A result with one value per prompt, layer and further dimensions."""
    shape = (prompts, layers, *(len(v) for v in dims.values()))
    values = np.random.default_rng(seed).normal(3, 1, shape)
    coords = {
        "prompt": np.arange(prompts), "layer": np.arange(layers), **dims,
        "relative_depth": ("layer", np.arange(layers) / n_layers),
    }  # fmt: skip
    data = {name: variable(("prompt", "layer", *dims), values, "loss of the next token", "nat")}
    return xr.Dataset(data, coords, attrs={"n_layers": n_layers, "model": f"m{n_layers}"})


def tokens_dataset(texts, layers=3, prompt=7):
    """A per-token result with its rows out of order, and another prompt between them."""
    n = len(texts)
    values = np.arange(layers * n, dtype=float).reshape(n, layers)
    order = np.random.default_rng(0).permutation(n)
    other = np.full((2, layers), -1.0)
    data = variable(("token", "layer"), np.concatenate([values[order], other]), "surprise", "nat")
    text = np.array([*[texts[i] for i in order], "x", "y"], dtype=object)
    coords = {
        "layer": np.arange(layers), "text": ("token", text), "position": ("token", [*order, 0, 1]),
        "token_prompt": ("token", [prompt] * n + [9, 9]),
    }  # fmt: skip
    return xr.Dataset({"surprise": data}, coords), values


def drawn_labels(axis):
    """Tick labels inside the range of an axis; matplotlib keeps others that it does not draw."""
    low, high = sorted(axis.get_view_interval())
    pairs = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
    return [t for at, t in pairs if low <= at <= high and t.get_text().strip() and t.get_visible()]


def assert_legible(fig, smallest=6):
    """Every string lies inside the figure, is large enough, and no tick label covers its neighbour."""
    fig.draw_without_rendering()
    axes = [*fig.axes, *(child for ax in fig.axes for child in ax.child_axes)]
    ticks = {ax: [drawn_labels(ax.xaxis), drawn_labels(ax.yaxis)] for ax in axes}
    every = {t for ax in axes for axis in (ax.xaxis, ax.yaxis) for t in axis.findobj(Text) if t is not axis.label}
    shown = [t for t in fig.findobj(Text) if t not in every and t.get_text().strip() and t.get_visible()]
    shown += [t for pair in ticks.values() for labels in pair for t in labels]
    frame = fig.bbox.padded(1.5)
    for t in shown:
        box = t.get_window_extent()
        assert t.get_fontsize() >= smallest, t.get_text()
        inside = frame.x0 <= box.x0, box.x1 <= frame.x1, frame.y0 <= box.y0, box.y1 <= frame.y1
        assert all(inside), f"{t.get_text()!r} is cut"
    for pair in ticks.values():
        for labels in pair:
            boxes = [t.get_window_extent() for t in labels]
            for a, b, name in zip(boxes, boxes[1:], labels, strict=False):
                over = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
                assert min(over) <= 1, f"{name.get_text()!r} runs into its neighbour"


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
