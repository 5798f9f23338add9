"""Figures of overlap, imbalance, graph, cosine and correlation show the numbers and are legible."""

import matplotlib as mpl
import numpy as np
import pytest
from drawn import assert_legible
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


@pytest.fixture(scope="module")
def correlation(run):
    return ti.geometry.dimension_loss_correlation(
        run["dimension"].to_dataset(), run["lens"].to_dataset(),
        ti.geometry.prompt_covariates(some_prompts([30, 40, 25, 33, 37, 28, 31, 35, 29])),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["overlap", "imbalance", "graph", "cosine", "correlation"])
@pytest.mark.slow
def test_overviews_are_legible(run, correlation, name):
    ds = correlation if name == "correlation" else run[name].to_dataset(inherit=False)
    found = list(plots.overview(ds))
    assert found
    for _, caption, fig in found:
        assert caption.endswith(".")
        assert_legible(fig)


@pytest.mark.slow
def test_overviews_of_nulls_are_legible():
    chosen = {k: v for k, v in asked().items() if k != "lens"}
    nulls = ti.measure_nulls(
        tiny(), some_prompts([30, 40, 25]), chosen, ("none", "shuffle:5", "untrained"), progress=False
    )
    for name in chosen:
        found = list(plots.overview(nulls[name].to_dataset(inherit=False)))
        assert found, name
        for _, _, fig in found:
            assert_legible(fig)


def test_curves_are_the_means_and_chance_is_dotted(run):
    ds = run["overlap"].to_dataset()
    ax = plots.overlap_by_layer(ds, 3)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), ds["overlap"].sel(k=3).mean("prompt"), rtol=1e-6)
    assert ax.lines[-1].get_ydata()[0] == pytest.approx(float(ds["chance"].sel(k=3).mean()))
    assert ax.lines[-1].get_linestyle() == ":"
    ax = plots.label_overlap_by_layer(ds, "next_token", way="corrected")
    drawn = ds["label_overlap_corrected"].sel(label="next_token").mean("prompt")
    np.testing.assert_allclose(ax.lines[0].get_ydata(), drawn.isel(k=0), rtol=1e-6)


@pytest.mark.parametrize("k", [None, 1, [3, 6]])
def test_chance_is_that_of_the_neighbours_and_the_label_drawn(run, k):
    """The mean over prompts, of the same numbers of neighbours, the same label and the same way of counting."""
    ds = run["overlap"].to_dataset()
    ks = [1, 3, 6] if k is None else k if isinstance(k, list) else [k]

    def dotted(ax):
        return [line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == ":"]

    chance = ds["chance"].mean([d for d in ds["chance"].dims if d != "k"])
    assert dotted(plots.overlap_by_layer(ds, k)) == pytest.approx(chance.sel(k=ks).values)
    assert ds["chance"].std() > 0
    corrected = plots.overlap_by_layer(ds, k, corrected=True)
    assert dotted(corrected) == []
    for n, line in zip(ks, corrected.lines, strict=False):
        np.testing.assert_allclose(line.get_ydata(), ds["overlap_corrected"].sel(k=n).mean("prompt"))
    for label in ds["label"].values.tolist():
        for way in ("", "balanced", "corrected"):
            drawn = dotted(plots.label_overlap_by_layer(ds, label, k, way=way))
            level = ds["label_chance" + (f"_{way}" if way else "")].sel(label=label, k=ks)
            mean = level.mean([d for d in level.dims if d != "k"]).values
            np.testing.assert_allclose(np.sort(drawn), np.sort(mean), rtol=1e-6)


def test_cosines_angles_and_graph(run):
    ds = run["cosine"].to_dataset()
    ax = plots.cosine_by_layer(ds)
    np.testing.assert_allclose(ax.lines[1].get_ydata(), ds["cosine_across"])
    ax = plots.angle_histogram(ds, [2])
    share = ax.lines[0].get_ydata()
    assert share.sum() * 5 == pytest.approx(1)
    ax = plots.smoothness_by_layer(ds, 2)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), ds["smoothness"].sel(offset=2).mean("prompt"))
    ax = plots.graph_by_layer(run["graph"].to_dataset(), "orphans", 2)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), run["graph"]["orphans"].sel(k=2).mean("prompt"))


def test_full_markers_are_sure(correlation):
    sure = correlation.copy(deep=True)
    sure["pearson_q"][:] = 0.5
    sure["pearson_q"][1] = 0.01
    ax = plots.correlation_by_layer(sure, scale=4)
    full, hollow = ax.lines[1], ax.lines[2]
    assert full.get_xdata().tolist() == [1]
    assert hollow.get_xdata().tolist() == [0, 2, 3]


def test_wrong_names_are_named(run, correlation):
    ds = run["overlap"].to_dataset()
    with pytest.raises(ValueError, match="other_layer are left"):
        plots.layer_pairs(ds, "overlap_pair")
    with pytest.raises(ValueError, match="layer 9"):
        plots.imbalance_plane(run["imbalance"].to_dataset(), layer=9)
    with pytest.raises(ValueError, match="angles=True"):
        plots.angle_histogram(run["cosine"].to_dataset().drop_vars("angle_count"))
    with pytest.raises(ValueError, match="no 'kendall'"):
        plots.correlation_by_layer(correlation, "kendall")
    with pytest.raises(ValueError, match="scale 64"):
        plots.correlation_by_layer(correlation, scale=64)


def test_tables_and_command_line(run):
    from tokinterp.cli.measurements import make_measurements
    from tokinterp.results import tables

    for name in ("overlap", "imbalance", "graph", "cosine"):
        _, layers, columns = tables.layer_table(run[name].to_dataset(inherit=False))
        assert layers
        assert 0 < len(columns) < 20
        kind = make_measurements([name], [])[name]
        assert type(kind).__name__ == run[name].attrs["measurement"]
