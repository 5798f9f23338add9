"""The experiment on frozen models runs from end to end, its figures say what they show, and the commands work."""

import json

import pytest
from matplotlib.figure import Figure

import tokinterp as ti
from experiments import fillers
from figures.fillers import draw

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
