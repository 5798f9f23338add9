"""ErasureScores: a planted language, the published steps written out, the four verbs, and bad input."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import footprints
from hypothesis import given, settings
from planted import LinearProbes, planted_spans, planted_texts
from planted_run import MODEL, planted_run
from standin import StandIn, partitions

import tokinterp as ti
from tokinterp.erasure.erasure import ErasureScores, default_layers, end_layer
from tokinterp.erasure.published import Feucht2024Scores
from tokinterp.text import Prompts
from tokinterp.text.bigrams import sample_bigrams

FOUND = json.loads((Path(footprints.__file__).with_suffix(".json")).read_text(encoding="utf-8"))


def units(ds):
    """(prompt, start, stop) of the segments of two or more tokens with psi > 0."""
    keep = ((ds["stop"] - ds["start"] > 1) & (ds["psi"] > 0)).values
    return set(zip(*(ds[n].values[keep].tolist() for n in ("span_prompt", "start", "stop")), strict=True))


# -- the planted language -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"psi": {"denominator": "paper"}},
        {"segmentation": "dp"},
        {"segmentation": "dp", "psi": {"denominator": "paper"}},
        {"scale": "logprob"},
        {"scale": "rank"},
        {"psi": {"max_length": 6}},
    ],
    ids=str,
)
def test_planted_units_are_the_segments(options):
    ds, prompts = planted_run(**options)
    assert units(ds) == planted_spans(prompts)
    assert ((ds["stop"] - ds["start"])[ds["psi"] > 0.15] > 1).all()


def test_planted_units_after_a_single_letter():
    # Under "code" a span that begins right after BOS gains a token to the left for nothing; "paper" has no such gap.
    prompts = Prompts.from_texts(planted_texts(8, first=["a"], seed=3), MODEL)
    ds, _ = planted_run(prompts, psi={"denominator": "paper"})
    assert units(ds) == planted_spans(prompts)


def test_nothing_is_erased_between_equal_layers():
    ds, _ = planted_run(start=1, end=2)
    assert float(np.abs(ds["delta"]).max()) == 0
    assert not units(ds)


def test_every_position_is_in_one_greedy_segment_and_bos_in_none():
    ds, prompts = planted_run()
    for i in range(len(prompts)):
        here = ds["span_prompt"].values == i
        order = np.argsort(ds["start"].values[here])
        start, stop = ds["start"].values[here][order], ds["stop"].values[here][order]
        assert start[0] == 1
        assert stop[-1] == prompts.lengths[i]
        assert (start[1:] == stop[:-1]).all()
    assert np.isnan(ds["token_psi"].values[ds["position"].values == 0]).all()
    covered = ds["token_psi"].notnull().groupby("token_prompt").sum().values
    assert covered.tolist() == [n - 1 for n in prompts.lengths]


def test_per_prompt_numbers():
    ds, prompts = planted_run()
    planted = planted_spans(prompts)
    for i in range(len(prompts)):
        mine = [(a, b) for p, a, b in planted if p == i]
        assert int(ds["n_multi"][i]) == len(mine)
        here = (ds["span_prompt"].values == i) & ((ds["stop"] - ds["start"]).values > 1)
        assert float(ds["mean_psi"][i]) == pytest.approx(float(ds["psi"].values[here].mean()), rel=1e-6)
        assert float(ds["in_units"][i]) == pytest.approx(sum(b - a for a, b in mine) / (prompts.lengths[i] - 1))
        delta = ds["delta"].values[ds["token_prompt"].values == i]
        assert ds["mean_delta"].values[i] == pytest.approx(np.nanmean(delta, axis=0), abs=1e-6)
        assert ds["n_terms"].values[i].tolist() == (~np.isnan(delta)).sum(0).tolist()


def test_controls_are_the_same_measurement_on_other_text():
    prompts = Prompts.from_texts(planted_texts(6, words=20), MODEL)
    words = {tuple(prompts.ids(p)[a:b].tolist()) for p, a, b in planted_spans(prompts)}
    for control in (ti.text.shuffle_blocks(prompts, 5), sample_bigrams(prompts)):
        ds, _ = planted_run(control)
        found = [tuple(control.ids(p)[a:b].tolist()) for p, a, b in units(ds)]
        assert np.mean([f in words for f in found]) < 0.6  # their letters make up words of their own


def test_bigram_text_has_only_the_bigrams_of_the_text():
    prompts = Prompts.from_texts(planted_texts(6, words=20), MODEL)
    drawn = sample_bigrams(prompts, seed=1)
    assert drawn.lengths == prompts.lengths
    assert (drawn.token_ids[drawn.starts[:-1]] == 0).all()

    def pairs(p):
        return [pair for i in range(len(p)) for pair in zip(p.ids(i)[1:].tolist(), p.ids(i)[2:].tolist(), strict=False)]

    assert set(pairs(drawn)) <= set(pairs(prompts))
    assert not np.array_equal(drawn.token_ids, prompts.token_ids)
    assert np.array_equal(drawn.token_ids, sample_bigrams(prompts, seed=1).token_ids)
    assert len({drawn.hash, prompts.hash, sample_bigrams(prompts, seed=2).hash}) == 3


# -- the published steps, on numbers that mean nothing -------------------------------------------------------------
class Everywhere(ErasureScores):
    """Special tokens are like others."""

    exclude = ()


def standin(seed=0, labels=range(17), kind=Everywhere, **options):
    """A random stream, random probes, and the measurement."""
    model = StandIn(lengths=(9, 5, 12, 2, 7), seed=seed)
    model.prompts = Prompts.from_ids(model.ids)
    probes = LinearProbes.random([1, 3], [0, -1, -2], model.d, list(labels), seed, scale=0.7)
    settings = {"start": 1, "end": 3, "tokens": None, **options}
    return model, probes, kind(probes, **settings)


@pytest.mark.parametrize("denominator", ["code", "paper"])
def test_scores_and_segments_are_those_of_the_authors_functions(denominator):
    model, probes = footprints.streams()
    model.prompts = Prompts.from_ids(model.ids)
    asked = {"start": footprints.START, "end": footprints.END, "tokens": None, "psi": {"denominator": denominator}}
    ds = model.measured(Everywhere(probes, **asked)).result()
    for document, theirs in enumerate(FOUND["streams"]):
        delta = ds["delta"].values[ds["token_prompt"].values == document]
        for row, own in zip(theirs["delta"], delta, strict=True):
            assert own == pytest.approx([np.nan if x is None else x for x in row], abs=1e-6, nan_ok=True)
        here = ds["span_prompt"].values == document
        mine = sorted(zip(*(ds[n].values[here].tolist() for n in ("start", "stop", "psi")), strict=True))
        if denominator == "code":
            assert [s[:2] for s in mine] == sorted((p, q + 1) for p, q in theirs["segments"])
        for start, stop, psi in mine:
            wanted, terms = theirs["psi"][start][stop - 1 - start], 1 + 2 * (stop - start)
            if denominator == "paper":  # the same sum, but missing terms count
                wanted *= (1 + sum(x is not None for row in theirs["delta"][start:stop] for x in row[1:])) / terms
            assert psi == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("scale", ["rank", "logprob"])
def test_other_scales_are_those_of_a_loop(scale):
    model, probes, measurement = standin(scale=scale)
    ds = model.measured(measurement).result()
    for document, ids in enumerate(model.ids):
        delta = ds["delta"].values[ds["token_prompt"].values == document]
        for t in range(len(ids)):
            for column, i in enumerate((0, -1, -2)):
                if t + i < 0:
                    assert np.isnan(delta[t, column])
                    continue
                score = []
                for layer in (1, 3):
                    logits = probes.weight(layer, i).double() @ torch.from_numpy(model.streams[document][layer][t])
                    own = logits[int(ids[t + i])]
                    rank = int((logits > own).sum())
                    score.append(1 / (1 + rank) if scale == "rank" else float(own - logits.logsumexp(0)))
                assert delta[t, column] == pytest.approx(score[0] - score[1], abs=1e-5)


@given(partitions(5))
@settings(max_examples=20, deadline=None)
@pytest.mark.slow
def test_any_batches_give_the_same_result(batches):
    model, _, measurement = standin()
    whole = model.measured(measurement).result()
    other = model.measured(standin()[2], batches).result()
    for name in whole.variables:
        assert np.allclose(whole[name].values, other[name].values, atol=1e-6, equal_nan=True), name


def test_merge_and_state_give_the_same_result():
    model, _, measurement = standin()
    whole = model.measured(measurement).result()
    parts = [standin()[2], standin()[2]]
    for part, numbers in zip(parts, ([0, 3], [1, 2, 4]), strict=True):
        model.measured(part, [numbers])
    fresh = standin()[2]
    fresh.begin(model.info, model.prompts)
    fresh.load(parts[0].state())
    fresh.merge(parts[1])
    again = fresh.result()
    for name in whole.variables:
        assert np.allclose(whole[name].values, again[name].values, atol=1e-6, equal_nan=True), name
    with pytest.raises(ValueError, match="settings must be equal"):
        fresh.merge(standin(seed=1)[2])


@pytest.mark.slow
def test_an_interrupted_run_resumes(tmp_path):
    prompts = Prompts.from_texts(planted_texts(6), MODEL)
    probes = LinearProbes.planted(MODEL, [1, 3])
    whole = ti.measure(MODEL, prompts, {"e": ErasureScores(probes, 1, 3)}, progress=False, batch_tokens=100)

    class Stops(ErasureScores):
        left = 4

        def update(self, batch):
            Stops.left -= 1
            if not Stops.left:
                raise RuntimeError("power cut")
            super().update(batch)

    store = tmp_path / "run.zarr"
    options = {"progress": False, "batch_tokens": 100, "store": store, "checkpoint_every": 0}
    with pytest.raises(RuntimeError, match="power cut"):
        ti.measure(MODEL, prompts, {"e": Stops(probes, 1, 3)}, **options)
    tree = ti.measure(MODEL, prompts, {"e": Stops(probes, 1, 3)}, **options)
    for name, v in whole["e"].to_dataset().variables.items():
        a, b = v.values, tree["e"].to_dataset()[name].values
        assert np.array_equal(a, b, equal_nan=a.dtype.kind == "f"), name


# -- missing terms --------------------------------------------------------------------------------------------------
def test_special_tokens_are_in_no_span_and_no_target():
    ids = [[0, 4, 5, 0, 6, 7, 8]]  # a special token in the middle
    prompts = Prompts.from_ids(ids, MODEL.tokenizer)
    ds, _ = planted_run(prompts)
    missing = np.isnan(ds["delta"].values)
    offsets = ds["offset"].values
    special = np.array(ids[0]) == 0
    for t in range(7):
        for c, i in enumerate(offsets):
            there = t + i >= 0 and not special[t] and not special[t + i]
            assert missing[t, c] == (not there), (t, i)
    for a, b in zip(ds["start"].values, ds["stop"].values, strict=True):
        assert not special[a:b].any()
    published, _ = planted_run(prompts, kind=Feucht2024Scores)
    assert int(np.isnan(published["delta"].values).sum()) == 3
    assert int((published["stop"] - published["start"]).sum()) == 7


def test_types_that_were_never_labels():
    labels = [n for n in range(17) if n % 3]
    model, _, measurement = standin(labels=labels)
    ds = model.measured(measurement).result()
    zero = model.measured(standin(labels=labels, kind=Feucht2024Scores)[2]).result()
    unknown = ~np.isin(ds["token_id"].values, labels)
    now = list(ds["offset"].values).index(0)
    assert unknown.any()
    assert np.isnan(ds["delta"].values[unknown, now]).all()
    assert (zero["delta"].values[unknown, now] == 0).all()
    assert (zero["seen"] == 1).all()
    for p, a, b, seen in zip(*(ds[n].values for n in ("span_prompt", "start", "stop", "seen")), strict=True):
        terms = [(b - 1, 0)] + [(t, i) for t in range(a, b) for i in (-1, -2) if t + i >= 0]
        assert seen == pytest.approx(np.mean([model.ids[p][t + i] in labels for t, i in terms]))


def test_tokens_says_for_how_many_prompts_delta_is_kept():
    ds, _ = planted_run(tokens=2)
    assert set(ds["token_prompt"].values.tolist()) == {0, 1}
    none, _ = planted_run(tokens=0)
    assert "delta" not in none
    assert none["psi"].equals(ds["psi"])


def test_a_real_model(bundled, tmp_path):
    texts = ["The lighthouse keeper counted ships.", "Once upon a time there was a little girl named Lily."]
    prompts = Prompts.from_texts(texts, bundled)
    end = bundled.info.n_layers
    probes = LinearProbes.random([1, end], [0, -1, -2], bundled.info.d_model, sorted(set(prompts.token_ids.tolist())))
    tree = ti.measure(bundled, prompts, {"erasure": ErasureScores(probes, 1, end)}, progress=False)
    ti.check(tree)
    ti.write(tree, tmp_path / "e.zarr")
    ds = ti.read(tmp_path / "e.zarr")["erasure"].to_dataset()
    assert float(np.abs(ds["psi"]).max()) <= 1
    assert ds.attrs["end_layer"] == end
    kept = json.loads(ds.attrs["parameters"])
    assert kept["probes"] == ErasureScores(probes, 1, end).settings()["probes"]
    assert (kept["start"], kept["end"]) == (1, end)


# -- settings and bad input -----------------------------------------------------------------------------------------
def test_settings_name_the_probes_by_their_weights():
    a, b, c = (standin(seed=s)[2].settings() for s in (0, 0, 1))
    assert a == b
    assert a["probes"] != c["probes"]
    json.dumps(a)


def test_layers_of_other_depths():
    assert default_layers(32) == (2, 10)
    for depth in range(1, 100):
        start, end = default_layers(depth)
        assert 0 <= start < end <= depth
    layers = [0, 1, 2, 4, 8, 16]
    assert end_layer(layers, [1, 1, 0.95, 0.9, 0.8, 0.8], [1, 0.9, 0.8, 0.5, 0.35, 0.36]) == 8
    with pytest.raises(ValueError, match="finite"):
        end_layer([0, 1], [1, np.nan], [1, 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 3, "end": 1}, "earlier layer to a later"),
        ({"start": 2, "end": 2}, "earlier layer to a later"),
        ({"offsets": (0, -1, -3)}, r"no offsets \[-3\]"),
        ({"offsets": (0, 1)}, "before them"),
        ({"scale": "odds"}, "scale='odds': give one of 'prob'"),
        ({"segmentation": "viterbi"}, "'greedy' or 'dp'"),
        ({"psi": {"denominator": 3}}, "'code' or 'paper'"),
        ({"psi": {"left_penalty": 2}}, "left_penalty=2: give True or False"),
        ({"psi": {"penalty": 2}}, "psi has no option 'penalty': give denominator"),
        ({"psi": {"max_length": 0}}, "max_length=0: .*at least one"),
        ({"tokens": -1}, "tokens=-1: .*at least 0"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        ErasureScores(LinearProbes.planted(MODEL, [1, 3]), **options)


def test_bad_probes_and_layers_are_refused_before_the_model_runs():
    prompts = Prompts.from_texts(planted_texts(2), MODEL)

    def start(probes, **options):
        ErasureScores(probes, **options).begin(MODEL.info, prompts)

    good = LinearProbes.planted(MODEL, [1, 3])
    start(good, start=1, end=3)
    with pytest.raises(ValueError, match=r"no layer 2, only \[1, 3\]"):
        start(good, start=2, end=3)
    with pytest.raises(ValueError, match="layers 0 to 4"):
        start(good, start=1, end=9)
    with pytest.raises(ValueError, match="another model"):
        start(LinearProbes.random([1, 3], [0, -1, -2], 7, range(5)), start=1, end=3)
    with pytest.raises(ValueError, match="another tokenizer"):
        start(LinearProbes.random([1, 3], [0, -1, -2], MODEL.info.d_model, [900, 901]), start=1, end=3)
