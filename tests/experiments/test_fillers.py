"""The experiment on frozen models runs from end to end, its figures say what they show, and the commands work."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from with_model import as_tree, settings

import tokinterp as ti
from experiments import fillers
from experiments.runner.claims import evaluate
from figures.fillers import compose
from tokinterp.fillers.interventions import intervene

pytestmark = pytest.mark.slow

MISSING = {"insertion_tests", "massive_effects"}  # tables, nothing to draw over depth


@pytest.fixture(scope="module")
def results(bundled):
    return as_tree(fillers.run(settings(fillers.PRESETS["tiny"], bundled, max_tokens=100)))


@pytest.fixture(scope="module")
def rows(results):
    found = evaluate(fillers.CLAIMS, {n: node.to_dataset() for n, node in results.children.items()})
    return {row["claim"]: row for row in found}


def test_the_control_is_random_words(results, bundled):
    asked = ti.bundled_questions("cloze")[:10]
    for name, kind in (("interventions", "dots"), ("control", "words")):
        own = intervene(bundled, asked, n_fillers=4, kind=kind, interventions=["knock-out"])
        np.testing.assert_allclose(results[name]["kl"].sel(intervention="knock-out"), own["kl"][0], rtol=1e-4)


def test_heads_are_shown_with_what_they_attend_to(results):
    pictures = ti.plots.draw(results["text_attention"].to_dataset(inherit=False))
    legends = [ax.get_legend() for p in pictures for ax in p.figure.axes]
    assert "sink" in {t.get_text() for legend in legends if legend is not None for t in legend.get_texts()}


def test_figure_and_overviews(results):
    assert isinstance(compose(results), Figure)
    for name, node in results.children.items():
        ds = node.to_dataset(inherit=False)
        drawn = ti.plots.draw(ds)
        assert drawn or ds.attrs["measurement"] in MISSING, name
        for figure, caption, fig in drawn:
            assert figure
            assert caption.endswith(".")
            assert all(ax.get_xlabel() or ax.get_ylabel() for ax in fig.axes)


def test_claims_say_what_the_datasets_say(rows, results):
    assert len(rows) == len(fillers.CLAIMS) - ("segments" not in results.children)
    numbers = rows["fillers help a frozen model"]["numbers"]
    mean = results["insertion"]["log_prob"].mean("prompt").sel(filler="dots")
    for label, placement in (("dots after the question", "post"), ("dots before the question", "pre")):
        one = mean.sel(placement=placement)
        wanted = float(one.sel(n_fillers=4) - one.sel(n_fillers=0))
        assert numbers[label]["value"] == pytest.approx(wanted, rel=1e-3)
    low, high = numbers["dots after the question"]["interval"]
    assert rows["fillers help a frozen model"]["verdict"] == ("yes" if low > 0 else "no" if high <= 0 else "not shown")
    kl = results["windows"]["kl"].sel(intervention="all blocks")
    wanted = float((kl.sel(policy="separators") - kl.sel(policy="random")).mean())
    numbers = rows["the model relies on separators"]["numbers"]
    assert numbers["separators less random"]["value"] == pytest.approx(wanted)
    routing = results["routing"].to_dataset()
    numbers = rows["the answer reads the question by way of the fillers"]["numbers"]
    assert numbers["by way of them less direct"]["value"] == pytest.approx(
        float((routing["routed"] - routing["direct"]).mean())
    )


def test_the_layer_that_is_said_is_the_best_and_its_interval_knows_of_the_choice():
    explained = np.random.default_rng(0).random((2, 3, 4))
    by = ("target", "source", "layer")
    segments = xr.Dataset(
        {"explained": (by, explained), "explained_interval": (("bound", *by), np.stack([explained, explained])),
         "explained_band": (("bound", *by), np.stack([explained - 0.1, explained + 0.1]))},
        {"source": ["separator", "last", "other"], "layer": [0, 2, 4, 6], "bound": ["lower", "upper"]},
    )  # fmt: skip
    found = fillers.segments({"segments": segments, "untrained_segments": segments})
    assert [*found] == ["separator", "last", "other", "separator, untrained"]
    for n, source in enumerate(("separator", "last", "other")):
        best = explained[1, n].max()
        assert found[source][:3] == pytest.approx((best, best - 0.1, best + 0.1))


def test_trained_and_untrained_attention_differ_as_known(rows):
    """Position 0 is a sink and separators are enriched in a trained model, and neither in an untrained one."""
    sinks = rows["the first position is a sink"]["numbers"]
    assert sinks["trained"]["value"] > 0.2
    assert sinks["untrained"]["value"] < 0.05
    times = rows["separators get more attention than their share"]["numbers"]
    assert times["trained"]["interval"][0] > 1
    assert times["untrained"]["value"] == pytest.approx(1, abs=0.1)
