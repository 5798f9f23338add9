"""What is said of an erasure run follows from planted numbers: which layer, which control, above or below what."""

import numpy as np
import pytest
import xarray as xr
from tiny import tiny

import tokinterp as ti
from experiments import erasure
from experiments.erasure_summary import (
    evaluation_table,
    gap_sentences,
    psi_sentences,
    scores_table,
    segments_table,
    vocabulary_sentences,
)


def test_segments_of_several_tokens_are_counted():
    coords = {"start": ("span", [1, 2, 4, 7]), "stop": ("span", [2, 4, 7, 9]), "offset": [0, -1]}
    data = {
        "psi": ("span", [0.9, 0.1, 0.5, -0.2]), "in_units": ("prompt", [0.2, 0.6]),
        "mean_delta": (("prompt", "offset"), [[0.1, 0.3], [0.3, 0.5]]),
    }  # fmt: skip
    found = segments_table(xr.Dataset(data, coords, {"start_layer": 1, "end_layer": 3, "threshold": 0.3}))
    assert (found["n_segments"], found["n_multi"], found["mean_length"]) == (4, 3, 2.0)
    assert found["psi_mean"] == pytest.approx(0.4 / 3)
    assert found["psi_sd"] == pytest.approx(np.std([0.1, 0.5, -0.2]))
    assert found["psi_quantiles"]["50%"] == pytest.approx(0.1)
    assert found["share_above_threshold"] == pytest.approx(1 / 3)
    assert found["share_of_tokens_in_units"] == pytest.approx(0.4)
    assert found["mean_delta"] == {0: pytest.approx(0.2), -1: pytest.approx(0.4)}


def row(gap, low, high, accuracy=(1.0, 0.9, 0.7), n=50):
    bounds = [list(low), list(high)]
    alone = [[g - 0.001 for g in gap], [g + 0.001 for g in gap]]  # of one layer by itself: not for the largest
    return {"n": n, "accuracy": list(accuracy), "gap": list(gap), "gap_band": bounds, "gap_interval": alone}


def test_the_largest_gap_is_looked_for_behind_the_embedding_and_beside_the_untrained_network():
    trained = {"layer": [0, 2, 4], "last piece": {"offset 0": row((0.9, 0.1, 0.3), (0.8, 0, 0.2), (1, 0.2, 0.4))}}
    blank = {"layer": [0, 4], "last piece": {"offset 0": row((0, 0.35), (-0.1, 0.3), (0.1, 0.38))}}
    blank["last piece"]["offset 0"]["gap_interval"] = [[-0.1, 0.3], [0.1, 0.38]]
    (one,) = gap_sentences(trained, blank)
    assert "accuracy 1.00 at layer 0, 0.70 at layer 4; at layer 4, where the gap is largest, lower than" in one
    assert "gap +0.300 [+0.200, +0.400] (for all 3 layers at once), at layer 0 +0.900" in one
    assert "untrained network there +0.350 [+0.300, +0.380]" in one
    assert "no sign of anything learned" not in one
    blank["last piece"]["offset 0"]["gap_interval"][0][1] = 0.41
    assert "no sign of anything learned" in gap_sentences(trained, blank)[0]


@pytest.mark.parametrize(("low", "null"), [(0.1, False), (-0.1, True), (0.0, True)])
def test_a_gap_whose_interval_holds_zero_is_a_null(low, null):
    trained = {"layer": [0, 2], "last piece": {"offset 0": row((0.0, 0.2), (-0.1, low), (0.1, 0.4), (1.0, 0.9))}}
    assert ("not lower than at other tokens (null)" in gap_sentences(trained, None)[0]) == null
    trained["last piece"]["offset 0"]["n"] = 29
    assert gap_sentences(trained, None) == []


@pytest.mark.parametrize(
    ("interval", "verdict"), [((0.4, 0.6), "not distinguishable from"), ((0.6, 0.8), "above"), ((0.1, 0.4), "below")]
)
def test_known_units_score_above_chance_or_not(interval, verdict):
    one = {"start_layer": 1, "end_layer": 2, "psi_mean": 0.1, "share_above_threshold": None}
    unit = {"n": 40, "auroc": 0.5, "interval": interval}
    last = psi_sentences({"text": one, "units": {"word": unit}}, {})[-1]
    assert last.startswith(f"Known units (word, 40) score {verdict} random spans")
    assert len(psi_sentences({"text": one, "units": {"word": {**unit, "n": 29}}}, {})) == 1


def test_gaps_of_the_table_are_those_of_the_result():
    scores = xr.Dataset(
        {
            "n_positions": (("subset", "offset"), [[7, 8], [0, 0]]),
            "accuracy": (("subset", "layer", "offset"), np.arange(8.0).reshape(2, 2, 2)),
            "gap": (("subset", "layer", "offset"), -np.arange(8.0).reshape(2, 2, 2)),
            "gap_interval": (("bound", "subset", "layer", "offset"), np.arange(16.0).reshape(2, 2, 2, 2)),
            "gap_band": (("bound", "subset", "layer", "offset"), -np.arange(16.0).reshape(2, 2, 2, 2)),
        },
        {"subset": ["last piece", "other"], "layer": [0, 3], "offset": [-1, 0]}, {"n_documents": 4},
    )  # fmt: skip
    found = scores_table(scores)
    assert set(found) == {"layer", "n_documents", "last piece"}
    here = found["last piece"]["offset 0"]
    assert here["n"] == 8
    assert here["accuracy"].tolist() == [1, 3]
    assert here["gap"].tolist() == [-1, -3]
    assert here["gap_interval"].tolist() == [[1, 3], [9, 11]]
    assert here["gap_band"].tolist() == [[-1, -3], [-9, -11]]


def test_the_vocabulary_is_scored_as_a_whole_and_beside_its_own_controls():
    each = ("subset", "rank")
    data = {
        **{n: (each, [[v, v / 2]]) for n, v in (("precision", 1.0), ("recall", 0.2), ("attainable_recall", 0.4))},
        **{n: ("subset", [v]) for n, v in (("n_units", 40), ("n_attainable", 20), ("average_precision", 0.3),
                                          ("chance", 0.05))},
        "precision_at_k": (("subset", "k"), [[0.8]]), "precision_at_k_interval": (("bound", "subset", "k"),
                                                                                [[[0.7]], [[0.9]]]),
    }  # fmt: skip
    table = evaluation_table(xr.Dataset(data, {"subset": ["word"], "k": [10], "rank": [0, 1]}))
    assert table["word"]["precision"] == 0.5
    assert table["word"]["precision_at_interval"][10].tolist() == [0.7, 0.9]
    trained = {"text_evaluation": table, "text_vocabulary": {"n_entries": 2}}
    for name, value in (("shuffled", 0.11), ("bigram", 0.22)):
        trained[f"{name}_evaluation"] = {"word": {"precision": value}}
    (said,) = vocabulary_sentences(trained, {"text_evaluation": {"word": {"precision": 0.33}}})
    assert "precision 0.500, recall 0.100 (0.200 of the attainable); random spans 0.050" in said
    assert said.endswith("shuffled 0.110, bigram 0.220, untrained network 0.330.")


def test_psi_is_said_beside_its_controls():
    one = {"start_layer": 1, "end_layer": 2, "psi_mean": 0.1, "share_above_threshold": 0.25}
    known = {"text": one, "shuffled": {"psi_mean": 0.2}, "bigram": {"psi_mean": 0.3}, "units": {}}
    said = psi_sentences(known, {"text": {"psi_mean": 0.4}})
    assert said[0].endswith("text 0.100; shuffled 0.200, bigram 0.300, untrained network 0.400.")
    assert said[1].startswith("25.0% of these segments")


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
        erasure.run(tiny(), small=True, progress=False)
    train, *tests = seen["made"]
    assert seen["fit"] <= train
    assert all(test == tests[0] for test in tests)
    assert not train & tests[0]
