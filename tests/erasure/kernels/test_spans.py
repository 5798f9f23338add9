"""Scores of spans by prefix sums, and the choice of spans: test vectors, literal sums, brute force."""

import json
import math
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from golden import footprints
from hypothesis import given, settings
from hypothesis import strategies as st

from tokinterp.erasure.kernels import spans as seg

NAN = math.nan
FOUND = json.loads((Path(footprints.__file__).with_suffix(".json")).read_text(encoding="utf-8"))
# Section 3 of the sheet on token erasure: 4 tokens, offsets 0, -1, -2.
DELTA = torch.tensor([[0.1, NAN, NAN], [0.2, 0.5, NAN], [0.6, 0.4, 0.3], [0.0, -0.1, 0.2]])
VECTOR = {
    (0, 0): (0.1, 0.0333), (0, 1): (0.35, 0.14), (0, 2): (0.45, 0.2571), (0, 3): (0.2167, 0.1444),
    (1, 1): (-0.15, -0.1), (1, 2): (0.05, 0.04), (1, 3): (-0.05, -0.0429),
    (2, 2): (-0.0333, -0.0333), (2, 3): (-0.2, -0.2), (3, 3): (-0.0333, -0.0333),
}  # fmt: skip
SETTINGS = settings(max_examples=60, deadline=None)


def literal_psi(delta, offsets, p, q, denominator, left, right, inside):
    """Sum over a span, term by term, with all options."""
    total, terms = 0.0, 0
    if not all(inside[p : q + 1]):
        return -math.inf
    now = offsets.index(0)
    if not math.isnan(delta[q][now]):
        total, terms = delta[q][now], 1
    for t in range(p, len(delta)):
        for column, i in enumerate(offsets):
            d = delta[t][column]
            if i == 0 or math.isnan(d):
                continue
            if t <= q and t + i >= p:
                total, terms = total + d, terms + 1
            elif (t <= q and left) or (t > q and right and p <= t + i <= q):
                total, terms = total - d, terms + 1
    n = q - p + 1
    if denominator == "paper":
        terms = 1 + n * (len(offsets) - 1) + (sum(min(n, -i) for i in offsets if i < 0) if right else 0)
    return total / terms if terms else 0.0


@st.composite
def texts(draw, longest=9):
    n = draw(st.integers(1, longest))
    offsets = draw(st.sampled_from([(0, -1, -2), (0,), (-2, 0, -1), (0, -1, -2, -3), (0, -3)]))
    value = st.one_of(st.just(NAN), st.floats(-1, 1, width=32))
    delta = draw(st.lists(st.lists(value, min_size=len(offsets), max_size=len(offsets)), min_size=n, max_size=n))
    inside = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    return delta, offsets, inside


@pytest.mark.parametrize("column", [0, 1], ids=["code", "paper"])
def test_vector(column):
    psi = seg.span_scores(DELTA, denominator=("code", "paper")[column])
    for (p, q), values in VECTOR.items():
        assert float(psi[p, q - p]) == pytest.approx(values[column], abs=6e-5)
    assert int((psi > -math.inf).sum()) == len(VECTOR)
    assert [x.tolist() for x in seg.segments(seg.segment_greedy(psi)[None])][1:] == [[0, 3], [3, 4]]


@given(texts(), st.sampled_from(["code", "paper"]), st.booleans(), st.booleans(), st.integers(1, 10))
@SETTINGS
def test_prefix_sums_are_the_literal_sum(text, denominator, left, right, max_length):
    delta, offsets, inside = text
    psi = seg.span_scores(
        torch.tensor(delta), torch.tensor(inside), offsets, denominator=denominator, left_penalty=left,
        right_penalty=right, max_length=max_length,
    )  # fmt: skip
    assert psi.shape == (len(delta), min(max_length, len(delta)))
    for p in range(len(delta)):
        for k in range(psi.shape[1]):
            q = p + k
            expected = (
                literal_psi(delta, offsets, p, q, denominator, left, right, inside) if q < len(delta) else -math.inf
            )
            assert float(psi[p, k]) == pytest.approx(expected, abs=1e-8), (p, q)


@pytest.mark.parametrize("document", range(len(footprints.LENGTHS)))
def test_scores_and_segments_are_those_of_the_authors_functions(document):
    found, rows = FOUND["random"][document], footprints.random_drops()[document]
    delta = torch.tensor([[NAN if x is None else x for x in row] for row in rows], dtype=torch.float64)
    psi, n = seg.span_scores(delta, denominator="code"), len(delta)
    for p in range(n):
        assert psi[p, : n - p].tolist() == pytest.approx(found["psi"][p], abs=1e-8)
    _, start, stop = seg.segments(seg.segment_greedy(psi)[None])
    assert sorted(zip(start.tolist(), (stop - 1).tolist(), strict=True)) == sorted(map(tuple, found["segments"]))


def greedy_by_sorting(psi):
    n, m = psi.shape
    spans = [(-float(psi[p, k]), -k, p) for p in range(n) for k in range(m) if float(psi[p, k]) > -math.inf]
    taken, out = [False] * n, [0] * n
    for _, k, p in sorted(spans):
        if not any(taken[p : p - k + 1]):
            out[p] = 1 - k
            taken[p : p - k + 1] = [True] * (1 - k)
    return out


def scores(n, m, seed, levels=None):
    """Random scores, few different ones if levels are given, with some spans that are no candidates."""
    g = torch.Generator().manual_seed(seed)
    psi = torch.rand(n, m, generator=g, dtype=torch.float64) - 0.4
    if levels:
        psi = (psi * levels).round() / levels
    psi = psi.masked_fill(torch.rand(n, m, generator=g) < 0.15, -math.inf)
    place = torch.arange(n)[:, None] + torch.arange(m)
    return psi.masked_fill(place >= n, -math.inf)


@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 10**6), st.sampled_from([None, 2, 5]))
@SETTINGS
def test_greedy_is_greedy(n, m, seed, levels):
    psi = scores(n, m, seed, levels)
    assert seg.segment_greedy(psi).tolist() == greedy_by_sorting(psi)


def test_ties_go_to_the_longer_then_the_earlier_span():
    psi = torch.tensor([[0.5, 0.5, -math.inf], [0.5, 0.5, -math.inf], [0.5, -math.inf, -math.inf]])
    assert seg.segment_greedy(psi).tolist() == [2, 0, 1]
    assert seg.segment_greedy(torch.zeros(3, 1)).tolist() == [1, 1, 1]
    assert seg.segment_dp(torch.zeros(3, 2)).tolist() == [0, 0, 0]  # worth nothing, so not chosen


@given(
    st.integers(1, 9),
    st.integers(1, 5),
    st.integers(0, 10**6),
    st.sampled_from(["length", "span"]),
    st.floats(-0.3, 0.5),
)
@SETTINGS
def test_dynamic_program_is_optimal(n, m, seed, weight, penalty):
    psi = scores(n, m, seed)
    worth = seg.worth_of(psi, weight, penalty)
    best = [0.0] * (n + 1)  # by recursion over the first token, all choices
    for p in range(n - 1, -1, -1):
        best[p] = max([best[p + 1]] + [float(worth[p, k]) + best[p + k + 1] for k in range(min(m, n - p))])

    def value(lengths):
        return sum(float(worth[p, k - 1]) for p, k in enumerate(lengths) if k)

    lengths = seg.segment_dp(psi, weight, penalty).tolist()
    ends = [(p, p + k) for p, k in enumerate(lengths) if k]
    assert all(a[1] <= b[0] for a, b in pairwise(ends))
    assert value(lengths) == pytest.approx(best[0], abs=1e-12)
    assert value(lengths) >= value(seg.segment_greedy(psi).tolist()) - 1e-12
    assert all(float(worth[p, k - 1]) > 0 for p, k in enumerate(lengths) if k)


def test_the_worth_of_a_span_is_its_score_for_each_token():
    psi = torch.tensor([[0.5, 0.25, 1.0]])
    assert seg.worth_of(psi, "length", 0.25).tolist() == [[0.25, 0.0, 2.25]]
    assert seg.worth_of(psi, "span", 0.25).tolist() == [[0.25, 0.0, 0.75]]
    long = torch.tensor([[0.6, 0.5], [0.6, -torch.inf]])
    assert seg.segment_dp(long).tolist() == [1, 1]  # 1.2 for two, 1.0 for the whole
    assert seg.segment_dp(torch.tensor([[0.6, 0.7], [0.6, -torch.inf]])).tolist() == [2, 0]


def test_a_batch_is_its_texts_and_padding_changes_nothing():
    torch.manual_seed(0)
    delta = torch.rand(3, 20, 3) * 1.6 - 0.8
    lengths = torch.tensor([20, 11, 1])
    inside = torch.arange(20) < lengths[:, None]
    delta[~inside] = NAN
    inside[:, 0] = torch.tensor([False, False, True])
    psi = seg.span_scores(delta, inside)
    for choose in (seg.segment_greedy, seg.segment_dp):
        together = choose(psi)
        for b, n in enumerate(lengths.tolist()):
            alone = seg.span_scores(delta[b, :n], inside[b, :n])
            assert torch.equal(alone, psi[b, :n, :n])
            assert torch.equal(choose(alone), together[b, :n])
            assert not together[b, n:].any()
    covered = seg.segment_greedy(psi).sum(1)
    assert covered.tolist() == inside.sum(1).tolist()


def test_sums_do_not_depend_on_the_way_they_are_taken():
    delta = torch.full((64, 3), 0.1)  # not a binary fraction: plain prefix sums would break ties at random
    psi = seg.span_scores(delta, denominator="paper", left_penalty=False)
    for k in range(8):
        column = psi[: 64 - k, k]
        assert torch.equal(column, column[0].expand_as(column))


def test_256_tokens_take_milliseconds():
    torch.manual_seed(0)
    delta = torch.rand(256, 3) - 0.4
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        seg.segment_greedy(seg.span_scores(delta))
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) < 0.5  # 30 ms on one core; the literal loops take seconds even without a data frame


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"offsets": (0, 1, -1)}, "each once"),
        ({"offsets": (-1, -2, -3)}, "each once"),
        ({"offsets": (0, -1)}, "3 columns"),
        ({"denominator": "both"}, "'code' or 'paper'"),
        ({"max_length": 0}, "at least one token"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        seg.span_scores(DELTA, **options)


def test_bad_weight():
    with pytest.raises(ValueError, match="'length' or 'span'"):
        seg.segment_dp(torch.zeros(2, 2), "tokens")
