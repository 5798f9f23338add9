"""Units known beforehand: their controls, chance and average precision against enumeration."""

import itertools

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.stats import t

from tokinterp.erasure.evaluation import evaluate, psi_of_spans
from tokinterp.erasure.kernels.spans import span_scores
from tokinterp.erasure.vocabulary import read_out
from tokinterp.results.dataset import variable
from tokinterp.text import Prompts, Spans


def with_delta(prompts, seed=0):
    """A result whose delta at offset 0 is drawn for each token, and missing at special tokens."""
    delta = np.random.default_rng(seed).random((prompts.n_tokens, 1)) / 4
    number = np.repeat(np.arange(len(prompts)), prompts.lengths)
    settings = {"denominator": "code", "left_penalty": 0, "right_penalty": 0}
    return xr.Dataset(
        {"delta": (("token", "offset"), delta)}, {"token_prompt": ("token", number), "offset": [0]}, settings
    )


def spans_of(prompts, places):
    """Spans (prompt, start, stop) in tokens; prompts of ids have texts "<5><6>..." of three characters a token."""
    return Spans.from_records(
        [{"document": p, "start": 3 * a, "stop": 3 * b, "kind": "word"} for p, a, b in places]
    ).align(prompts)


def test_controls_are_other_spans_of_the_length_of_their_unit():
    rng = np.random.default_rng(1)
    prompts = Prompts.from_ids(rng.integers(3, 9, (2, 8)).tolist())
    ds = with_delta(prompts)
    delta = ds["delta"].values[:, 0].reshape(2, 8)
    units = spans_of(prompts, [(0, 0, 2), (0, 4, 7), (1, 1, 3)])
    assert units.n_tokens.tolist() == [2, 3, 2]
    found = psi_of_spans(ds, prompts, units, controls=200, n_boot=5)
    columns = [found[n].values for n in ("span_prompt", "start", "stop", "psi", "control_psi")]
    taken = set(zip(*columns[:3], strict=True))
    for p, a, b, psi, control in zip(*columns, strict=True):
        n = b - a
        assert psi == pytest.approx(delta[p, b - 1], abs=1e-8)  # with offset 0 alone: that of the last token
        free = [q for q in range(8 - n + 1) if (p, q, q + n) not in taken]
        values, counts = np.unique(control.round(8), return_counts=True)
        np.testing.assert_allclose(values, np.sort(delta[p, [q + n - 1 for q in free]]), atol=2e-8)
        assert np.abs(counts - 200 / len(free)).max() < 5 * np.sqrt(200 / len(free))  # each place as often


def test_each_unit_says_its_text_kind_and_type_in_the_order_of_the_units():
    prompts = Prompts.from_ids([[5, 6, 7, 8], [9, 3, 4, 5]])
    given = [(1, 0, 2, "name", "GPE"), (0, 1, 3, "word", ""), (0, 0, 1, "word", "X"), (0, 0, 4, "name", "ORG")]
    names = ("document", "start", "stop", "kind", "type")
    spans = Spans.from_records([dict(zip(names, (d, 3 * a, 3 * b, *x), strict=True)) for d, a, b, *x in given])
    found = psi_of_spans(with_delta(prompts), prompts, spans.align(prompts), n_boot=5)
    said = {(p, a, b): x for p, a, b, *x in zip(
        *(found[n].values.tolist() for n in ("span_prompt", "start", "stop", "text", "kind", "type")), strict=True
    )}  # fmt: skip
    assert said == {  # a span of one token is left out
        (1, 0, 2): ["<9><3>", "name", "GPE"], (0, 1, 3): ["<6><7>", "word", ""],
        (0, 0, 4): ["<5><6><7><8>", "name", "ORG"],
    }  # fmt: skip


@pytest.mark.parametrize(("denominator", "left", "right"), [("code", 1, 0), ("paper", 1, 1), ("code", 0, 1)])
def test_units_are_scored_as_the_result_was(denominator, left, right):
    prompts = Prompts.from_ids([[5, 6, 7, 8, 9, 3, 4, 5]])
    delta = np.random.default_rng(0).random((8, 3))
    delta[0, 1:] = delta[1, 2] = np.nan
    attrs = {"denominator": denominator, "left_penalty": left, "right_penalty": right}
    coords = {"token_prompt": ("token", np.zeros(8, int)), "offset": [0, -1, -2]}
    ds = xr.Dataset({"delta": (("token", "offset"), delta)}, coords, attrs)
    places = [(0, 1, 3), (0, 3, 6), (0, 6, 7)]
    found = psi_of_spans(ds, prompts, spans_of(prompts, places), n_boot=5)
    scores = span_scores(
        torch.from_numpy(delta), None, (0, -1, -2), denominator=denominator, left_penalty=bool(left),
        right_penalty=bool(right), max_length=3,
    )  # fmt: skip
    assert found["start"].values.tolist() == [1, 3]  # a single token is no unit
    np.testing.assert_allclose(found["psi"], [scores[1, 1], scores[3, 2]])


def test_controls_are_drawn_by_the_seed():
    prompts = Prompts.from_ids(np.random.default_rng(1).integers(3, 9, (4, 20)).tolist())
    units = spans_of(prompts, [(p, a, a + 2) for p in range(4) for a in (0, 6)])
    one, again, other = (psi_of_spans(with_delta(prompts), prompts, units, n_boot=5, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(one["control_psi"], again["control_psi"])
    assert not np.allclose(one["control_psi"], other["control_psi"])


def test_a_place_counts_once_and_single_tokens_not_at_all():
    prompts = Prompts.from_ids([[3, 4, 5, 3, 4, 6]])
    rows = [(0, 0, 2, 0.9), (0, 3, 5, 0.9)]
    units = spans_of(prompts, [(0, 0, 2), (0, 0, 2), (0, 5, 6)])  # the same place twice: it occurs once
    scores = evaluate(read_out(segments(prompts, rows), prompts), units, prompts)
    assert scores["n_units"].item() == 1
    assert scores["n_attainable"].item() == 0


def test_auroc_counts_pairs_and_its_interval_draws_prompts():
    prompts = Prompts.from_ids([[5, 6, 7, 8, 9, 10]] * 40)
    above = np.random.default_rng(0).random(40) < 0.5  # units of half of the prompts score above their controls
    delta = np.zeros((40, 6, 1))
    delta[:, [1, 3], 0] = np.where(above, 0.4, -0.4)[:, None]  # both units of a prompt alike
    ds = with_delta(prompts)
    ds["delta"] = (("token", "offset"), delta.reshape(-1, 1))
    units = spans_of(prompts, [(p, a, a + 2) for p in range(40) for a in (0, 2)])
    found = psi_of_spans(ds, prompts, units, controls=5, n_boot=2000)
    share = above.mean()
    assert float(found["auroc"][-1]) == pytest.approx(share)
    low, high = found["auroc_interval"].values[:, -1]
    wide = t.ppf(0.975, 39) * np.sqrt(40 / 39)  # expanded percentiles
    assert (high - low) / 2 == pytest.approx(wide * np.sqrt(share * (1 - share) / 40), rel=0.15)


def test_windows_of_one_document_are_drawn_together():
    prompts = Prompts.from_ids([[5, 6, 7, 8, 9, 10]] * 40)
    ds, units = with_delta(prompts), spans_of(prompts, [(p, a, a + 2) for p in range(40) for a in (0, 2)])
    above = np.repeat(np.random.default_rng(0).random(10) < 0.5, 4)  # all windows of a document alike
    delta = np.zeros((40, 6, 1))
    delta[:, [1, 3], 0] = np.where(above, 0.4, -0.4)[:, None]
    ds["delta"] = (("token", "offset"), delta.reshape(-1, 1))
    apart = psi_of_spans(ds, prompts, units)
    assert (apart.attrs["n_groups"], apart.attrs["groups"]) == (40, "prompts")
    prompts.documents = np.repeat(np.arange(10), 4)
    whole = psi_of_spans(ds, prompts, units)
    assert (whole.attrs["n_groups"], whole.attrs["groups"]) == (10, "documents")
    assert (whole["n_groups"] == 10).all()
    assert "over 10 documents" in whole["auroc_interval"].attrs["long_name"]
    assert (whole["auroc_interval"].diff("bound") > 1.5 * apart["auroc_interval"].diff("bound")).all()
    prompts.documents = np.repeat([0, 1], 20)
    two = psi_of_spans(ds, prompts, units)
    assert np.isnan(two["auroc_interval"]).all()
    assert np.isfinite(two["auroc"]).all()


def segments(prompts, rows):
    number, start, stop, psi = map(np.array, zip(*rows, strict=True))
    span = {n: variable("span", x, n, "1") for n, x in (("psi", psi), ("seen", np.ones(len(psi))))}
    coords = {n: variable("span", x, n, "1") for n, x in (("span_prompt", number), ("start", start), ("stop", stop))}
    return xr.Dataset(span, coords, {"prompts": prompts.hash})


def test_average_precision_is_over_the_attainable_units_alone():
    prompts = Prompts.from_ids([[3, 4, 3, 4, 5, 6, 5, 6, 7, 8, 7, 8]])
    rows = [(0, 0, 2, 0.9), (0, 2, 4, 0.9), (0, 4, 6, 0.8), (0, 6, 8, 0.8), (0, 8, 10, 0.7), (0, 10, 12, 0.7)]
    units = spans_of(prompts, [(0, 0, 2), (0, 8, 10), (0, 10, 12)])  # 3 4 once: a hit, but not attainable; 7 8 twice
    scores = evaluate(read_out(segments(prompts, rows), prompts), units, prompts)
    assert scores["hit"].values.tolist() == [[True, False, True]]
    assert scores["n_attainable"].item() == 1
    assert scores["average_precision"].item() == pytest.approx(2 / 3)
    assert scores["attainable_recall"].values.tolist() == [[0, 0, 1]]
    assert scores["recall"].values.tolist() == [[0.5, 0.5, 1]]


def test_chance_is_that_of_all_spans_as_long_as_the_entries():
    prompts = Prompts.from_ids([[3, 4, 5, 3, 4, 5, 6, 3, 4, 3], [4, 5, 6, 3], *[[4, 5, 3]] * 6])  # 3, 4 across ends
    units = spans_of(prompts, [(0, 0, 2), (0, 4, 7)])  # 3 4 and 4 5 6
    vocabulary = read_out(segments(prompts, [(0, 0, 2, 0.9), (0, 3, 5, 0.9), (0, 4, 7, 0.8), (1, 0, 3, 0.8)]), prompts)
    assert sorted(vocabulary["n_tokens"].values.tolist()) == [2, 3]
    wanted = {(3, 4), (4, 5, 6)}
    share = []
    for n in (2, 3):
        texts = [prompts.ids(i).tolist() for i in range(len(prompts))]
        every = [tuple(ids[a : a + n]) for ids in texts for a in range(len(ids) - n + 1)]
        share.append(np.mean([e in wanted for e in every]))
    scores = evaluate(vocabulary, units, prompts)
    assert float(scores["chance"][0]) == pytest.approx(np.mean(share), abs=0.03)


def test_wilson_interval_is_that_of_scipy():
    from scipy.stats import binomtest

    from tokinterp.stats.tests import wilson

    for hits, n in itertools.product((0, 3, 10), (10, 40)):
        low, high = wilson(np.array(hits), np.array(n), 0.9)
        exact = binomtest(hits, n).proportion_ci(0.9, "wilson")
        assert (low, high) == (pytest.approx(exact.low, abs=1e-9), pytest.approx(exact.high, abs=1e-9))
