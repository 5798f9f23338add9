"""Experiments and figures run on a tiny model, and what they return is what it says."""

import importlib
import pkgutil

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

import experiments
import figures
import tokinterp as ti
from experiments import first_look
from figures.__main__ import NAMES, redraw

pytestmark = pytest.mark.slow

TEXTS = [t.text for t in ti.bundled_texts("story")[:4]]


@pytest.fixture(scope="module")
def model(tiny_folder):
    return ti.load_model(tiny_folder, device="cpu")


@pytest.fixture(scope="module")
def results(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "first_look.zarr"
    tree = first_look.run(model, TEXTS, levels=(0, 3), n_tokens=100, limit=3, scales=(2, 4), out=out, progress=False)
    xr.testing.assert_equal(tree["lens"].to_dataset(), ti.read(out)["lens"].to_dataset())
    return out, tree


def test_every_figure_has_an_experiment_of_its_name():
    known = {m.name for m in pkgutil.iter_modules(experiments.__path__)}
    assert NAMES
    assert set(NAMES) <= known
    for name in NAMES:
        assert callable(importlib.import_module(f"{figures.__name__}.{name}").draw)
        assert callable(importlib.import_module(f"experiments.{name}").run)


def test_levels_lie_side_by_side_and_level_0_is_the_text(results, model):
    _, tree = results
    prompts = ti.Prompts.from_texts(TEXTS, model, max_tokens=100, min_tokens=100)[:3]
    plain = ti.measure(model, prompts, {"lens": ti.lens.LogitLens(top=0, tokens=0)}, progress=False)
    assert tree["lens"]["shuffle"].values.tolist() == [0, 3]
    level_0 = tree["lens"]["cross_entropy"].sel(shuffle=0)
    np.testing.assert_array_equal(level_0, plain["lens"]["cross_entropy"])
    assert not np.allclose(level_0, tree["lens"]["cross_entropy"].sel(shuffle=3))
    # Shuffling moves tokens and changes none: the cloud of embeddings stays what it was.
    embedded = tree["spectrum"]["total_variance"].sel(layer=0)
    np.testing.assert_allclose(embedded.sel(shuffle=0), embedded.sel(shuffle=3), rtol=1e-6)
    ti.check(tree)


def test_a_model_with_a_shorter_context_is_given_what_it_takes(model):
    tree = first_look.run(model, TEXTS, levels=(0,), n_tokens=10_000, limit=1, scales=(2,), progress=False)
    assert int(tree["lens"]["n_targets"].max()) == model.info.max_tokens - 1


@pytest.mark.parametrize("name", ["first_look"])
def test_figure_is_redrawn_from_the_stored_result(name, results, tmp_path):
    out, tree = results
    drawn = importlib.import_module(f"figures.{name}").draw(tree)
    assert isinstance(drawn, Figure)
    assert drawn.get_size_inches()[0] <= 7
    assert [ax.get_ylabel() for ax in drawn.axes][2] == "next-token cross-entropy (nat)"
    files = redraw(name, tmp_path / "figures", runs=out.parent)
    assert [f.suffix for f in files] == [".pdf", ".png"]
    assert all(f.stat().st_size > 1000 for f in files)
