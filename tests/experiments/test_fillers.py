"""The experiment on frozen models runs from end to end, its figures say what they show, and the commands work."""

import json

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

import tokinterp as ti
from experiments import fillers
from figures.fillers import draw
from tokinterp.fillers.interventions import intervene

pytestmark = pytest.mark.slow

MISSING = {"insertion_tests", "massive_effects"}  # tables, nothing to draw over depth


@pytest.fixture(scope="module")
def results(bundled, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "fillers.zarr"
    return fillers.run(bundled, ti.bundled_questions("cloze")[:10], small=True, out=out), out


def test_results_are_read_back(results):
    tree, out = results
    again = ti.read(out)
    assert set(again.children) == set(tree.children)
    assert again["verdict"].attrs["verdict"] in ("used", "not shown")


def test_headline_is_json_and_says_what_the_datasets_say(results):
    tree, _ = results
    head = json.loads(json.dumps(fillers.headline(tree), allow_nan=False))
    assert head["n_items"] == 10
    row = next(
        r for r in head["insertion"] if r["filler"] == "dots" and r["placement"] == "post" and r["n_fillers"] == 4
    )
    mean = tree["insertion"]["log_prob"].sel(filler="dots", placement="post").mean("prompt")
    assert row["log_prob_change"] == pytest.approx(float(mean.sel(n_fillers=4) - mean.sel(n_fillers=0)), rel=1e-3)
    assert head["interventions"]["knock-out"]["kl"][0] >= 0
    assert head["verdict"] == tree["verdict"].attrs["verdict"]
    assert "verdict on the fillers: not shown" in head["seen"]
    assert any(s.startswith("4 dots after the question lower log p") for s in head["seen"]) == (row["interval"][1] < 0)


def test_the_control_is_random_words(results, bundled):
    asked = ti.bundled_questions("cloze")[:10]
    for name, kind in (("interventions", "dots"), ("control", "words")):
        own = intervene(bundled, asked, n_fillers=4, kind=kind, interventions=["knock-out"])
        np.testing.assert_allclose(results[0][name]["kl"].sel(intervention="knock-out"), own["kl"][0], rtol=1e-4)


def test_an_interval_that_holds_zero_is_said_to_be_a_null(results):
    head = fillers.headline(results[0])
    for (low, high), said in (((0.1, 0.2), "raise"), ((-0.2, -0.1), "lower"), ((-0.1, 0.1), "do not measurably")):
        for one in head["insertion"]:
            one["interval"] = [low, high]
        first = next(s for s in fillers.seen(head) if s.startswith("4 dots after the question"))
        assert f"after the question {said}" in first


def test_the_layer_that_is_said_is_the_best():
    rng = np.random.default_rng(0)
    explained = rng.random((2, 3, 4))
    segments = xr.Dataset(
        {"explained": (("target", "source", "layer"), explained),
         "explained_interval": (("bound", "target", "source", "layer"), np.stack([explained, explained])),
         "explained_band": (("bound", "target", "source", "layer"), np.stack([explained - 0.1, explained + 0.1]))},
        {"source": ["separator", "last", "other"], "layer": [0, 2, 4, 6]},
    )  # fmt: skip
    coverage = xr.Dataset({n: (("prompt", "block"), rng.random((4, 2))) for n in
                           ("far_mass", "separator_share", "chance", "enrichment")})  # fmt: skip
    names = ("direct", "answer_to_fillers", "fillers_to_question", "routed", "direct_change", "chance_change")
    routing = xr.Dataset({n: (("prompt", "block"), rng.random((4, 2))) for n in names})
    named = {"intervention": ["all blocks", "blocks 0-1"], "policy": ["separators", "random"]}
    windows = xr.Dataset({"kl": (("intervention", "policy", "prompt"), rng.random((2, 2, 4)))}, named)
    registers = xr.Dataset(
        {"mass": (("n_fillers", "prompt", "block", "key_set"), rng.random((2, 4, 2, 3))),
         "loss_change": (("n_fillers", "prompt"), rng.random((2, 4)))},
        {"n_fillers": [0, 1], "key_set": ["registers", "first", "other"]},
    )  # fmt: skip
    sets = {f"{u}{n}": ds for u in ("", "untrained_") for n, ds in
            (("coverage", coverage), ("routing", routing), ("segments", segments))}  # fmt: skip
    out = fillers.beyond_the_answer({**sets, "windows": windows, "registers": registers})
    for n, source in enumerate(("separator", "last", "other")):
        best = int(explained[1, n].argmax())
        one = out["segments"][source]
        assert one["layer"] == 2 * best
        assert one["explained"] == pytest.approx(explained[1, n, best] + np.array([0, -0.1, 0.1]), rel=1e-3)
    assert out["coverage"]["enrichment"][0] == pytest.approx(float(coverage["enrichment"].mean()), rel=1e-3)
    kl = windows["kl"].values
    assert out["windows"]["blocks 0-1"]["random"][0] == pytest.approx(kl[1, 1].mean(), rel=1e-3)
    first = registers["mass"].values[1, ..., 1].mean()
    assert out["registers"]["1"]["first"][0] == pytest.approx(first, rel=1e-3)


def test_trained_and_untrained_attention_differ_as_known(results):
    """Position 0 is a sink and separators are enriched in a trained model, and neither in an untrained one."""
    head = fillers.headline(results[0])
    assert head["sinks"]["first"] > 0.2
    assert head["untrained_sinks"]["first"] < 0.05
    assert head["text_attention"]["separators"]["net_enrichment"][1] > 1
    assert head["untrained_text_attention"]["separators"]["net_enrichment"][0] == pytest.approx(1, abs=0.1)


def test_heads_are_shown_with_what_they_attend_to(results):
    ax = ti.plots.head_map(results[0]["text_attention"].to_dataset(inherit=False))
    assert ax.get_title("left") == "all → sink"


def test_figure_and_overviews(results):
    tree, _ = results
    assert isinstance(draw(tree), Figure)
    for name, node in tree.children.items():
        ds = node.to_dataset(inherit=False)
        drawn = list(ti.plots.overview(ds))
        assert drawn or ds.attrs["measurement"] in MISSING, name
        for figure, caption, fig in drawn:
            assert figure
            assert caption.endswith(".")
            assert all(ax.get_xlabel() or ax.get_ylabel() for ax in fig.axes)
