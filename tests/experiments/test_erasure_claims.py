"""What is claimed of an erasure run follows from planted numbers: which layer, which control, above or below what."""

import numpy as np
import pytest
import xarray as xr
from tiny import tiny
from with_model import settings

import tokinterp as ti
from experiments import erasure
from experiments.runner.claims import evaluate


def scores(gap, band, n=50, accuracy=(1.0, 0.9, 0.7), layers=(0, 2, 4)):
    """Of one subset at two offsets; the other offset is of other numbers."""
    by, gap, band = ("subset", "layer", "offset"), np.array(gap), np.array(band)
    planted = np.stack([gap[None] * 0 + 0.7, gap[None]], -1)
    bounds = np.stack([band[:, None] * 0 + 0.6, band[:, None]], -1)
    own = np.stack([planted - 0.001, planted + 0.001])
    return xr.Dataset(
        {"gap": (by, planted), "gap_band": (("bound", *by), bounds), "gap_interval": (("bound", *by), own),
         "accuracy": (by, np.stack([np.zeros((1, len(layers))), np.array(accuracy)[None]], -1)),
         "n_positions": (("subset", "offset"), [[n, n]])},
        {"subset": ["last piece"], "layer": list(layers), "offset": [-1, 0], "bound": ["lower", "upper"]},
    )  # fmt: skip


def test_the_largest_gap_is_looked_for_behind_the_embedding_and_beside_the_untrained_network():
    trained = scores((0.9, 0.1, 0.3), ((0.8, 0, 0.2), (1, 0.2, 0.4)))
    blank = scores((0, 0.35), ((-0.1, 0.3), (0.1, 0.38)), accuracy=(1.0, 0.2), layers=(0, 4))
    found = erasure.gap({"trained/scores": trained, "untrained/scores": blank}, "last piece", 0)
    assert [*found] == ["largest gap, layer 4", "untrained, layer 4", "accuracy by layer", "gap by layer"]
    assert found["largest gap, layer 4"][:3] == pytest.approx((0.3, 0.2, 0.4))  # for all layers at once
    assert found["untrained, layer 4"][:3] == pytest.approx((0.35, 0.349, 0.351))  # of that layer alone
    assert found["accuracy by layer"] == [1.0, 0.9, 0.7]
    few = erasure.gap({"trained/scores": scores((0, 0.2), ((0, 0), (0, 0)), 29, (1, 1), (0, 2))}, "last piece", 0)
    assert np.isnan(few["largest gap"].value)


@pytest.mark.parametrize(("low", "verdict"), [(0.1, "yes"), (-0.1, "not shown"), (0.0, "not shown")])
def test_a_gap_whose_interval_holds_zero_is_not_shown(low, verdict):
    trained = scores((0.0, 0.2), ((-0.1, low), (0.1, 0.4)), accuracy=(1, 1), layers=(0, 2))
    rows = {r["claim"]: r["verdict"] for r in evaluate(erasure.CLAIMS, {"trained/scores": trained})}
    assert rows["the own token is forgotten at last tokens of words"] == verdict
    assert rows["the own token is forgotten at last tokens of names"] == "not measured"


@pytest.mark.parametrize(
    ("interval", "verdict"), [((0.4, 0.6), "not shown"), ((0.6, 0.8), "yes"), ((0.1, 0.4), "no"), ((0.1, 0.5), "no")]
)
def test_known_units_score_above_chance_or_not(interval, verdict):
    def units(value, bounds, n=40):
        return xr.Dataset(
            {"auroc": ("subset", [value]), "n_spans": ("subset", [n]),
             "auroc_interval": (("bound", "subset"), np.array(bounds)[:, None])},
            {"subset": ["word"], "bound": ["lower", "upper"]},
        )  # fmt: skip

    results = {"trained/units": units(0.45, interval), "untrained/units": units(0.7, (0.6, 0.8))}
    rows = {r["claim"]: r for r in evaluate(erasure.CLAIMS, results)}
    row = rows["psi marks words"]
    assert row["verdict"] == verdict
    assert row["numbers"]["untrained"]["value"] == 0.7
    assert rows["psi marks names"]["verdict"] == "not measured"
    few = {"trained/units": units(0.45, interval, 29)}
    assert np.isnan(erasure.auroc(few, "word")["trained"].value)


def test_segments_of_several_tokens_are_counted():
    coords = {"start": ("span", [1, 2, 4, 7]), "stop": ("span", [2, 4, 7, 9])}
    found = erasure.psi({"x": xr.Dataset({"psi": ("span", [0.9, 0.1, 0.5, -0.2])}, coords)}, "x")
    assert found.value == pytest.approx(0.4 / 3)
    alone = xr.Dataset({"psi": ("span", [0.9])}, {"start": ("span", [1]), "stop": ("span", [2])})
    assert np.isnan(erasure.psi({"x": alone}, "x").value)


def test_the_vocabulary_is_scored_as_a_whole_and_beside_its_own_controls():
    def evaluation(value):
        each = ("subset", "rank")
        data = {n: (each, [[1.0, v]]) for n, v in (("precision", value), ("recall", value / 5))}
        return xr.Dataset({**data, "chance": ("subset", [0.05])}, {"subset": ["word"], "rank": [0, 1]})

    groups = {"trained/text": 0.5, "trained/shuffled": 0.11, "trained/bigram": 0.22, "untrained/text": 0.33}
    results = {f"{g}_evaluation": evaluation(v) for g, v in groups.items()}
    results["trained/precision"] = xr.Dataset(
        {"difference": 0.39, "difference_interval": ("bound", [0.2, 0.5])}, {"bound": ["lower", "upper"]}
    )
    found = erasure.precision(results)
    assert found["text less shuffled"][1:3] == (0.2, 0.5)
    assert {n: x.value for n, x in found.items()} == pytest.approx(
        {"text less shuffled": 0.39, "text": 0.5, "shuffled": 0.11, "bigram text": 0.22, "untrained": 0.33,
         "random spans": 0.05, "recall": 0.1}
    )  # fmt: skip


def test_ends_are_chosen_by_the_gap_at_offset_0():
    accuracy = np.array([[1, 1, 0.9, 0.9], [1, 1, 0.5, 0.5]])[:, :, None] * np.array([0, 1])
    accuracy[1, :, 0] = [1, 1, 1, 0]  # at offset -1 it grows to the end
    accuracy[0, :, 0] = 1
    ds = xr.Dataset(
        {"accuracy": (("subset", "layer", "offset"), accuracy)},
        {"subset": ["other", "last piece"], "layer": [0, 1, 2, 3], "offset": [-1, 0]},
    )
    assert erasure.choose_ends(ds, 3, 0, None) == (0, 2)


def test_the_bundled_texts_of_fit_and_test_are_not_the_same(monkeypatch):
    """And nothing else may be fitted on: whatever is scored was not in the fit."""
    seen = {}

    class Seen(Exception):
        pass

    def fit(model, prompts, **options):
        seen["fit"] = {prompts.document_text(int(d)) for d in set(prompts.documents.tolist())}
        raise Seen

    make = ti.Prompts.from_texts

    def from_texts(texts, *arguments, **options):
        seen.setdefault("made", []).append({*texts})
        return make(texts, *arguments, **options)

    monkeypatch.setattr(ti.erasure, "fit_probes", fit)
    monkeypatch.setattr(ti.Prompts, "from_texts", from_texts)
    with pytest.raises(Seen):
        erasure.run(settings(erasure.PRESETS["tiny"], tiny()))
    train, *tests = seen["made"]
    assert seen["fit"] <= train
    assert all(test == tests[0] for test in tests)
    assert not train & tests[0]
