"""Figures of similarity, entropy, curvature, norms and attention to the first token show the numbers of the dataset."""

import matplotlib as mpl
import numpy as np
import pytest
from drawn import assert_legible

import tokinterp as ti
from tokinterp import plots

mpl.use("Agg")


@pytest.fixture(scope="module")
def run(tiny_folder):
    model = ti.load_model(tiny_folder, device="cpu")
    texts = [t.text[: 110 + 9 * n] for n, t in enumerate(ti.bundled_texts("story")[:5])]
    asked = {
        "similarity": ti.geometry.LayerSimilarity(sample=64, measures=("cka", "procrustes", "rsa", "neighbours")),
        "entropy": ti.geometry.MatrixEntropy(alpha=(1, 2)),
        "curvature": ti.geometry.Curvature(),
        "norms": ti.geometry.TokenNorms(factor=1.5),
        "sinks": ti.attention.FirstTokenAttention(threshold=0.05),
    }
    return ti.measure(model, ti.Prompts.from_texts(texts, model, max_tokens=256), asked, progress=False)


@pytest.mark.parametrize("name", ["similarity", "entropy", "curvature", "norms", "sinks"])
@pytest.mark.slow
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


# -- predictions, augmented readings, two models ------------------------------------------------------------------
@pytest.fixture(scope="module")
def logits(tiny_folder):
    model = ti.load_model(tiny_folder, device="cpu")
    texts = [t.text[: 60 + 90 * (n > 0)] for n, t in enumerate(ti.bundled_texts("story")[:5])]
    prompts = ti.Prompts.from_texts(texts, model, max_tokens=256)
    asked = {"logits": ti.geometry.LogitDimension((2, 4, 8, 16), small="nan")}
    return ti.measure_nulls(model, prompts, asked, ("none", "shuffle:5"), progress=False)["logits"].to_dataset()


@pytest.fixture(scope="module")
def readings(tiny_folder):
    model = ti.load_model(tiny_folder, device="cpu")
    texts = [t.text[:90] for t in ti.bundled_texts("story")[:9]]
    return ti.geometry.augmentation_metrics(model, texts, q=2, draws=2, published="skean2025", progress=False)


def test_dimension_of_logits_by_scale_and_prompt(logits):
    one = logits.isel(null=0, drop=True)
    ax = plots.dimension_by_scale(one)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), one["dimension"].mean("prompt"))
    ax = plots.dimension_of_prompts(one, 8)
    value = one["dimension"].sel(scale=8).values
    np.testing.assert_allclose(ax.lines[0].get_ydata(), np.sort(value[np.isfinite(value)]))
    bars = np.diff(np.array(ax.collections[0].get_segments())[..., 1], axis=1)[:, 0] / 2
    order = np.argsort(value)[: len(bars)]
    np.testing.assert_allclose(bars, one["dimension_error"].sel(scale=8).values[order])
    with pytest.raises(ValueError, match="not measured at scale 3"):
        plots.dimension_of_prompts(one, 3)
    with pytest.raises(ValueError, match="choose one null"):
        plots.dimension_of_prompts(logits)
    with pytest.raises(ValueError, match="not of layers"):
        plots.dimension_by_scale(one, [3])


def test_overview_of_logits(logits):
    assert float(logits["refused"].max()) > 0
    for ds, panels in ((logits, 2), (logits.isel(null=0, drop=True), 2), (logits.isel(prompt=[1]), 1)):
        ((name, caption, fig),) = plots.overview(ds)
        assert name == "logit_dimension"
        assert ("no value" in caption) == (ds.sizes["prompt"] > 1)
        assert len([a for a in fig.axes if a.get_xlabel()]) == panels
        assert_legible(fig)


def test_augmentation_is_drawn_with_its_interval(readings):
    ax = plots.augmentation_by_layer(readings, "lidar")
    np.testing.assert_allclose(ax.lines[0].get_ydata(), readings["lidar"])
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    low, high = readings["lidar_interval"].values
    assert {*np.round(low, 6), *np.round(high, 6)} <= {*np.round(band, 6)}
    ((name, caption, fig),) = plots.overview(readings)
    assert name == "augmentation"
    assert "9 prompts, 2 readings of each with 10% of tokens deleted" in caption
    assert "jackknife" in caption
    assert len(fig.axes) == 3
    assert_legible(fig)
    without = readings.drop_vars([n for n in readings if str(n).endswith("_interval") or str(n).startswith("lidar")])
    ((_, caption, fig),) = plots.overview(without)
    assert "jackknife" not in caption
    assert len(fig.axes) == 2


@pytest.mark.slow
def test_two_models_have_an_overview(tiny_folder):
    model = ti.load_model(tiny_folder, device="cpu")
    texts = [t.text[:50] for t in ti.bundled_texts("story")[:12]]
    ds = ti.geometry.compare_models(model, ti.untrained(model), texts, other_layers=[0, 3], k=3, progress=False)
    ((_, caption, fig),) = plots.overview(ds)
    assert "untrained" in caption
    assert_legible(fig)


@pytest.mark.slow
def test_report_and_command_line_show_them(logits, readings, tmp_path, capsys):
    import xarray as xr

    from tokinterp.cli.main import main

    tree = xr.DataTree.from_dict({"logits": logits, "augmentation": readings})
    tree.attrs = dict(readings.attrs)
    ti.write(tree, tmp_path / "run.zarr")
    with pytest.raises(SystemExit) as end:
        main(["plot", str(tmp_path / "run.zarr"), "-o", str(tmp_path / "figures")])
    assert end.value.code == 0
    drawn = {p.stem for p in (tmp_path / "figures").glob("*.png")}
    assert any("logit_dimension" in n for n in drawn)
    assert any("augmentation" in n for n in drawn)
    page = ti.report(tmp_path / "run.zarr", tmp_path / "report.html").read_text(encoding="utf-8")
    assert "one point of the vocabulary" in page
    assert f"jackknife intervals over {int(readings['n_prompts'])} prompts" in page
