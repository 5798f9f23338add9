"""The implicit vocabulary of a planted language, its sums, its evaluation, and bad input."""

from collections import Counter

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import WORDS, LinearProbes, PlantedModel, planted_spans, planted_texts
from text_helpers import byte_tokenizer

import tokinterp as ti
from tokinterp.erasure.erasure import ErasureScores
from tokinterp.erasure.evaluation import evaluate, psi_of_spans
from tokinterp.erasure.probes import fit_probes
from tokinterp.erasure.vocabulary import contexts, permutation_threshold, read_out, token_ids
from tokinterp.erasure.vocabulary_tally import Tally, word_edges
from tokinterp.results.dataset import variable
from tokinterp.text import Prompts, Spans

MODEL = PlantedModel()


def measured(texts=None, probes=None, **options):
    prompts = Prompts.from_texts(texts or planted_texts(8, words=20), MODEL)
    erasure = ErasureScores(probes or LinearProbes.planted(MODEL, [1, 3]), 1, 3, tokens=None, **options)
    tree = ti.measure(MODEL, prompts, {"erasure": erasure}, progress=False)
    return tree["erasure"].to_dataset(), prompts


@pytest.fixture(scope="module")
def planted():
    return measured()


def segments(prompts, rows):
    """A result with these segments (prompt, start, stop, psi)."""
    number, start, stop, psi = map(np.array, zip(*rows, strict=True))
    span = {n: variable("span", x, n, "1") for n, x in (("psi", psi), ("seen", np.ones(len(psi))))}
    coords = {n: variable("span", x, n, "1") for n, x in (("span_prompt", number), ("start", start), ("stop", stop))}
    return xr.Dataset(span, coords, {"prompts": prompts.hash})


# -- reading out --------------------------------------------------------------------------------------------------
def test_the_planted_words_are_read_out_with_precision_one(planted):
    ds, prompts = planted
    vocabulary = read_out(ds, prompts)
    ti.check(vocabulary)
    occurs = Counter(prompts.document_text(p)[a - 1 : b - 1] for p, a, b in planted_spans(prompts))
    assert set(occurs) == set(WORDS)
    assert dict(zip(vocabulary["text"].values, vocabulary["count"].values, strict=True)) == occurs
    words = Spans.words(prompts).align(prompts)
    scores = evaluate(vocabulary, words, prompts)
    assert (scores["precision"] == 1).all()
    assert float(scores["attainable_recall"].sel(subset="word")[-1]) == 1
    assert float(scores["recall"].sel(subset="word")[-1]) == 1
    assert scores["average_precision"].item() == 1
    assert scores["n_units"].item() == len(WORDS)
    assert (vocabulary["left_boundary"] == 1).all()
    assert (vocabulary["right_boundary"] == 1).all()
    assert (np.diff(vocabulary["psi"]) <= 0).all()
    columns = vocabulary["text"].values, token_ids(vocabulary), vocabulary["n_tokens"].values
    for text, ids, n in zip(*columns, strict=True):
        assert "".join(prompts.vocabulary.strings(ids)) == text
        assert n == len(ids) == len(text)


def test_numbers_are_those_of_the_segments(planted):
    ds, prompts = planted
    vocabulary = read_out(ds, prompts, min_psi=None, min_count=1)
    scores: dict[tuple, list] = {}
    for p, a, b, psi in zip(*(ds[n].values for n in ("span_prompt", "start", "stop", "psi")), strict=True):
        if b - a > 1:
            scores.setdefault(tuple(prompts.ids(p)[a:b].tolist()), []).append((float(psi), int(p)))
    assert set(token_ids(vocabulary)) == set(scores)
    for n, ids in enumerate(token_ids(vocabulary)):
        psi, documents = map(np.array, zip(*scores[ids], strict=True))
        one = vocabulary.isel(rank=n)
        assert float(one["psi"]) == pytest.approx(psi.mean())
        assert int(one["count"]) == len(psi)
        assert int(one["n_documents"]) == len(set(documents.tolist()))
        expected = psi.std(ddof=1) if len(psi) > 1 else np.nan
        assert float(one["psi_sd"]) == pytest.approx(expected, abs=1e-6, nan_ok=True)
        low, high = one["psi_interval"].values
        assert int(one["n_groups"]) == len(set(documents.tolist()))
        if len(set(documents.tolist())) > 2:
            assert low <= psi.mean() + 1e-9
            assert psi.mean() - 1e-9 <= high
            if len(set(documents.tolist())) > 5:  # of fewer it is Student's, which may lie outside of the values
                assert psi.min() - 1e-9 <= low <= high <= psi.max() + 1e-9
        else:
            assert np.isnan([low, high]).all()


def test_interval_covers_the_spread_between_documents():
    prompts = Prompts.from_ids([[3, 4, 3, 4]] * 200)
    means = np.random.default_rng(0).normal(0.3, 0.1, 200)
    ds = segments(prompts, [(p, a, a + 2, means[p]) for p in range(200) for a in (0, 2)])
    low, high = read_out(ds, prompts, n_boot=400)["psi_interval"].values[:, 0]
    se = means.std() / np.sqrt(200)  # of documents, not of the 400 segments
    assert (high - low) / 2 == pytest.approx(1.96 * se, rel=0.2)
    assert (high + low) / 2 == pytest.approx(means.mean(), abs=0.3 * se)


@given(st.integers(1, 7), st.booleans())
@settings(max_examples=8, deadline=None)
@pytest.mark.slow
def test_shards_add_up(cut, merged):
    texts = planted_texts(8, words=20)
    whole = read_out(*measured(texts), n_boot=20)
    parts = [measured(texts[:cut]), measured(texts[cut:])]
    if merged:
        both = Tally().add(*parts[0]).merge(Tally().add(*parts[1])).table(n_boot=20)
    else:
        both = read_out(iter(parts), n_boot=20)
    for name in set(whole.data_vars) - {"example_shard", "example_prompt", "example_start"}:
        a, b = whole[name].values, both[name].values
        assert (a == b).all() if a.dtype == object else np.allclose(a, b, equal_nan=True), name
    shown = contexts(both, [p for _, p in parts], width=8)
    for text, context in zip(both["text"].values, shown, strict=True):
        assert f"[{text}]" in context


def test_filters():
    prompts = Prompts.from_texts(["mi tane", "mi tane"], MODEL)
    rows = [(0, 1, 3, 0.5), (1, 1, 3, 0.3), (0, 3, 4, 0.9), (1, 3, 4, 0.9), (0, 4, 8, -0.2), (1, 4, 8, -0.1)]
    ds = segments(prompts, rows)
    assert len(read_out(ds, prompts)["rank"]) == 1
    every = read_out(ds, prompts, min_psi=None)
    assert every["psi"].values.tolist() == pytest.approx([0.4, -0.15])
    assert len(read_out(ds, prompts, min_psi=None, keep_single=True)["rank"]) == 3
    with pytest.raises(ValueError, match="none of the 2 units occurs 3 times"):
        read_out(ds, prompts, min_count=3)


def test_ties_go_to_the_more_frequent_and_one_document_has_no_interval():
    prompts = Prompts.from_ids([[3, 4, 5, 6, 3, 4, 5, 6, 7, 8], [5, 6, 7, 8], [5, 6]])
    rows = [(0, 0, 2, 0.5), (0, 4, 6, 0.5), (0, 2, 4, 0.5), (0, 6, 8, 0.25), (1, 0, 2, 0.75), (0, 8, 10, 0.0)]
    ds = segments(prompts, [*rows, (1, 2, 4, 0.0), (2, 0, 2, 0.5)])
    found = read_out(ds, prompts)
    assert token_ids(found) == [(5, 6), (3, 4)]  # of equal scores; 7 8 is at the limit, not above it
    assert found["n_documents"].values.tolist() == [3, 1]
    assert np.isfinite(found["psi_interval"][:, 0]).all()
    assert np.isnan(found["psi_interval"][:, 1]).all()
    assert token_ids(read_out(ds, prompts, min_psi=None)) == [(5, 6), (3, 4), (7, 8)]


def test_a_context_is_the_text_around_the_unit():
    prompts = Prompts.from_texts(["kato mikato tane"], MODEL)
    ds = segments(prompts, [(0, 6, 8, 0.9), (0, 5, 6, 0.1)])
    (one,) = contexts(read_out(ds, prompts, min_count=1), prompts, width=3)
    assert one == "to [mi]kat"


def test_single_tokens_have_no_part_in_the_threshold():
    prompts = Prompts.from_ids([[3, 4, 5, 6, 7, 8, 9]])
    ds = segments(prompts, [(0, 0, 2, 0.1), (0, 2, 4, 0.3), (0, 4, 5, 0.9), (0, 5, 6, -0.9)])
    assert permutation_threshold(ds, 0.5) == pytest.approx(0.2)
    assert permutation_threshold([ds, ds], 0.95) == pytest.approx(np.quantile([0.1, 0.3, 0.1, 0.3], 0.95))


def test_word_boundaries_are_those_of_the_text():
    tokenizer = byte_tokenizer()
    text = "the well-known cats' house, 1867"
    prompts = Prompts.from_texts([text], tokenizer)
    strings = prompts.strings(0)
    stops = np.cumsum([len(s) if t else 0 for t, s in enumerate(strings)])
    starts = stops - [len(s) if t else 0 for t, s in enumerate(strings)]
    spans = [(a, b) for a in range(1, len(strings)) for b in range(a + 1, len(strings) + 1)]
    edges = word_edges(prompts, np.zeros(len(spans), int), *map(np.array, zip(*spans, strict=True)))

    def cuts(place):  # between two characters of a word, hyphens and inner apostrophes included
        inside = [(text.index(w), text.index(w) + len(w)) for w in ("the", "well-known", "cats", "house", "1867")]
        return any(a < place < b for a, b in inside)

    for (a, b), edge in zip(spans, edges.tolist(), strict=True):
        first = starts[a] + (len(strings[a]) - len(strings[a].lstrip()))
        assert bool(edge & 1) == (not cuts(first)), strings[a:b]
        assert bool(edge & 2) == (not cuts(stops[b - 1])), strings[a:b]
    assert {0, 1, 2, 3} == set(edges.tolist())


def test_only_occurrences_at_word_boundaries():
    prompts = Prompts.from_texts(["kato mikato", "kato kato"], MODEL)
    rows = [(0, 1, 5, 0.5), (0, 8, 12, 0.1), (1, 1, 5, 0.7), (0, 6, 8, 0.9), (1, 5, 6, 0.9)]
    every = read_out(segments(prompts, rows), prompts, min_count=1)
    assert dict(zip(every["text"].values, every["count"].values, strict=True)) == {"mi": 1, "kato": 3}
    kato = every.isel(rank=list(every["text"].values).index("kato"))
    assert float(kato["left_boundary"]) == pytest.approx(2 / 3)
    assert float(kato["right_boundary"]) == 1
    whole = read_out(segments(prompts, rows), prompts, min_count=1, boundaries="word")
    assert whole["text"].values.tolist() == ["kato"]
    assert int(whole["count"][0]) == 2
    assert float(whole["psi"][0]) == pytest.approx(0.6)


def test_bytes_that_are_no_whole_character_are_marked():
    tokenizer = byte_tokenizer()
    text = "日日 cat"
    prompts = Prompts.from_texts([text], tokenizer)
    strings = prompts.strings(0)
    n = len(strings)
    rows = [(0, a, b, 0.5) for a in range(1, n) for b in range(a + 2, n + 1)]
    vocabulary = read_out(segments(prompts, rows), prompts, min_count=1)
    for ids, valid, space in zip(
        token_ids(vocabulary), vocabulary["valid_utf8"].values, vocabulary["leading_space"].values, strict=True
    ):
        raw = b"".join(prompts.vocabulary.bytes(np.array(ids)))
        assert valid == (raw.decode("utf-8", "ignore").encode() == raw)
        assert space == raw.startswith(b" ")
    assert set(vocabulary["valid_utf8"].values.tolist()) == {True, False}


def test_equal_text_of_different_ids_stays_apart():
    prompts = Prompts.from_ids([[300, 5, 300, 5, 6, 6]], byte_tokenizer())
    ds = segments(prompts, [(0, 0, 2, 0.1), (0, 2, 4, 0.3), (0, 4, 6, 0.2)])
    vocabulary = read_out(ds, prompts, min_count=1)
    assert token_ids(vocabulary) == [(300, 5), (6, 6)] or token_ids(vocabulary) == [(6, 6), (300, 5)]
    assert dict(zip(token_ids(vocabulary), vocabulary["count"].values.tolist(), strict=True)) == {
        (300, 5): 2,
        (6, 6): 1,
    }


def test_permutation_threshold_is_a_level_of_shuffled_text(planted):
    ds, prompts = planted
    shuffled, _ = measured(probes=LinearProbes.random([1, 3], [0, -1, -2], MODEL.info.d_model, range(MODEL.vocab)))
    psi = shuffled["psi"].values[(shuffled["stop"] - shuffled["start"]).values > 1]
    threshold = permutation_threshold(shuffled, 0.9)
    assert np.mean(psi <= threshold) >= 0.9
    assert np.mean(psi < threshold) <= 0.9
    assert permutation_threshold([shuffled, shuffled], 0.9) == pytest.approx(threshold, abs=0.02)
    kept = read_out(ds, prompts, min_psi=threshold)
    assert (kept["psi"] > threshold).all()


# -- given units --------------------------------------------------------------------------------------------------
def test_planted_words_score_above_random_spans(planted):
    ds, prompts = planted
    words = Spans.words(prompts).align(prompts)
    found = psi_of_spans(ds, prompts, words, controls=3)
    ti.check(found)
    assert float(found["auroc"].sel(subset="word")) > 0.95  # a random span may hold a word
    assert int(found["n_spans"].sel(subset="word")) == len(planted_spans(prompts))
    low, high = found["auroc_interval"].sel(subset="word").values
    assert low <= float(found["auroc"].sel(subset="word")) <= high
    names = ("span_prompt", "start", "stop", "psi")
    multi = {(p, a, b): float(x) for p, a, b, x in zip(*(ds[n].values for n in names), strict=True)}
    for p, a, b, x in zip(*(found[n].values for n in names), strict=True):
        assert x == pytest.approx(multi[p, a, b], abs=1e-6)  # each word is a segment


def test_random_probes_see_no_words():
    probes = LinearProbes.random([1, 3], [0, -1, -2], MODEL.info.d_model, range(MODEL.vocab), seed=5, scale=3.0)
    texts = planted_texts(30, words=30)
    ds, prompts = measured(texts, probes)
    shuffled = ti.text.shuffle_words(prompts)  # as many words, at other places: the scores belong to the old ones
    words = Spans.words(shuffled).align(shuffled)
    found = psi_of_spans(ds, prompts, words, n_boot=50)
    assert abs(float(found["auroc"].sel(subset="all")) - 0.5) < 0.1


def test_recall_counts_what_can_be_attained():
    prompts = Prompts.from_texts(["kato mi tane mi", "mi a tim e"], MODEL)
    words = Spans.words(prompts).align(prompts)
    rows = [(0, 6, 8, 0.9), (0, 14, 16, 0.9), (1, 1, 3, 0.8), (0, 5, 7, 0.7), (0, 13, 15, 0.7), (0, 1, 5, 0.1)]
    vocabulary = read_out(segments(prompts, rows), prompts)
    assert vocabulary["text"].values.tolist() == ["mi", " m"]
    scores = evaluate(vocabulary, words, prompts, k=(1, 2, 50))
    assert scores["hit"].values.tolist() == [[True, False]]
    assert scores["precision"].values.tolist() == [[1, 0.5]]
    assert scores["n_units"].item() == 4  # kato, mi, tane, tim
    assert scores["n_attainable"].item() == 1  # only mi occurs twice
    assert scores["recall"].values.tolist() == [[0.25, 0.25]]
    assert scores["attainable_recall"].values.tolist() == [[1, 1]]
    assert scores["k"].values.tolist() == [1, 2]
    assert scores["precision_at_k"].values.tolist() == [[1, 0.5]]
    assert (scores["precision_at_k_interval"][0] <= scores["precision_at_k"]).all()
    more = evaluate(vocabulary, words, prompts, min_count=1)
    assert more["n_attainable"].item() == 4
    assert float(more["attainable_recall"][0, -1]) == 0.25
    # Wilson's interval of 1 in 2: 0.0945 to 0.9055
    assert scores["precision_at_k_interval"].values[:, 0, 1] == pytest.approx([0.0945, 0.9055], abs=1e-4)


def test_recall_against_whole_documents():
    texts = ["mi mi kato tane lomi", "mi tim"]
    whole = Prompts.from_texts(texts, MODEL)
    prompts = Prompts.from_texts(texts, MODEL, max_tokens=6)
    vocabulary = read_out(segments(prompts, [(0, 1, 3, 0.5), (0, 4, 6, 0.5)]), prompts)
    units, every = Spans.words(texts).align(prompts), Spans.words(texts).align(whole)
    part = evaluate(vocabulary, units, prompts)
    full = evaluate(vocabulary, units, prompts, whole=(every, whole))
    assert (part["n_units"].item(), full["n_units"].item()) == (1, 5)
    assert float(full["recall"][0, -1]) == pytest.approx(0.2)
    assert full["n_attainable"].item() == 1


def test_kinds_of_units_are_told_apart(planted):
    ds, prompts = planted
    start, stop = next((a, b) for p, a, b in sorted(planted_spans(prompts)) if p == 0)
    entity = Spans.from_records([{"document": 0, "start": start - 1, "stop": stop - 1, "kind": "entity"}])
    both = (Spans.words(prompts) + entity).align(prompts)
    scores = evaluate(read_out(ds, prompts), both, prompts)
    assert scores["subset"].values.tolist() == ["entity", "word", "any"]
    assert int(scores["n_units"].sel(subset="entity")) == 1
    assert (scores["precision"].sel(subset="any") == scores["precision"].sel(subset="word").values).all()
    found = psi_of_spans(ds, prompts, both, n_boot=20)
    assert found["subset"].values.tolist() == ["entity", "word", "all"]


def test_chance_is_the_share_of_random_spans_that_are_units():
    prompts = Prompts.from_ids([[1, 2, 3, 1, 2, 3, 1, 2, 3, 1]] * 3)
    spans = Spans.from_records([{"document": 0, "start": 0, "stop": 6, "kind": "word"}])  # "<1><2>"
    units = spans.align(prompts)
    assert units.n_tokens.tolist() == [2]
    ds = segments(prompts, [(0, 1, 3, 0.5), (0, 4, 6, 0.5)])
    scores = evaluate(read_out(ds, prompts), units, prompts)
    assert float(scores["chance"][0]) == pytest.approx(1 / 3, abs=0.04)
    assert float(scores["precision"][0, -1]) == 0


# -- bad input ----------------------------------------------------------------------------------------------------
def test_bad_input(planted):
    ds, prompts = planted
    other = Prompts.from_texts(planted_texts(8, seed=9), MODEL)
    words = Spans.words(prompts).align(prompts)
    with pytest.raises(ValueError, match="other prompts"):
        read_out(ds, other)
    with pytest.raises(ValueError, match="give the prompts"):
        read_out(ds)
    with pytest.raises(ValueError, match=r"ds=\[\]: give a list"):
        read_out([])
    with pytest.raises(ValueError, match="'any' or 'word'"):
        read_out(ds, prompts, boundaries="both")
    with pytest.raises(ValueError, match=r"min_count=0: give .* at least 1"):
        read_out(ds, prompts, min_count=0)
    with pytest.raises(ValueError, match="no segments in this result"):
        read_out(ds[["mean_delta"]], prompts)
    single = measured(["a e a e a"])
    with pytest.raises(ValueError, match="no segment has two or more tokens"):
        read_out(*single)
    with pytest.raises(ValueError, match="two or more tokens"):
        permutation_threshold(single[0])
    with pytest.raises(ValueError, match="between 0 and 1"):
        permutation_threshold(ds, 1.0)
    with pytest.raises(ValueError, match="no delta per token"):
        psi_of_spans(ds.drop_vars("delta"), prompts, words)
    with pytest.raises(ValueError, match="aligned with other prompts"):
        evaluate(read_out(ds, prompts), words, prompts[:2])
    with pytest.raises(ValueError, match="has 2 or more tokens"):
        evaluate(read_out(ds, prompts), words.where(words.n_tokens == 1), prompts)
    crossing = Spans.from_records([{"document": 0, "start": 0, "stop": 400, "kind": "word"}]).align(prompts)
    with pytest.raises(ValueError, match=r"none of the 1 spans aligns .*1 outside the window"):
        evaluate(read_out(ds, prompts), crossing, prompts)
    log, _ = measured(scale="logprob")
    assert read_out(log, prompts)["psi"].attrs["units"] == "nat"
    with pytest.raises(ValueError, match=r"scale \(prob before, logprob now\)"):
        Tally().add(ds, prompts).add(log, prompts)
    with pytest.raises(ValueError, match=r"scale \(prob before, logprob now\)"):
        Tally().add(ds, prompts).merge(Tally().add(log, prompts))
    with pytest.raises(ValueError, match="keeps single tokens"):
        Tally(True).merge(Tally())
    kept = ds.isel(token=np.flatnonzero(ds["token_prompt"].values == 0))
    first = sum(p == 0 for p, *_ in planted_spans(prompts))
    assert int(psi_of_spans(kept, prompts, words, n_boot=5)["n_spans"][-1]) == first
    last = words.where(words.prompt == 5)
    with pytest.raises(ValueError, match="whose delta was kept"):
        psi_of_spans(kept, prompts, last)


def test_probes_of_the_package_fit(bundled):
    texts = ["Once upon a time there was a little girl named Lily.", "The little dog ran to the park with Lily."] * 4
    prompts = Prompts.from_texts(texts, bundled)
    fitted = fit_probes(bundled, prompts, layers=[1, 2], offsets=[0, -1, -2], progress=False)
    run = ti.measure(bundled, prompts, {"erasure": ErasureScores(fitted, 1, 2, tokens=None)}, progress=False)
    ds = run["erasure"].to_dataset()
    assert torch.isfinite(torch.from_numpy(ds["psi"].values)).all()
    assert (ds["seen"] == 1).all()


def test_another_seed_is_another_draw_of_documents(planted):
    run, prompts = planted
    draw = lambda seed: read_out(run, prompts, n_boot=50, seed=seed)["psi_interval"].values  # noqa: E731
    np.testing.assert_array_equal(draw(1), draw(1))
    assert (draw(1) != draw(2)).any()


def test_a_unit_of_one_document_has_no_interval():
    prompts = Prompts.from_ids([[5, 6, 7, 5, 6], [5, 6, 9], [8, 5, 6]])
    rows = [(0, 0, 2, 0.3), (0, 3, 5, 0.5), (1, 0, 2, 0.4), (2, 1, 3, 0.9), (0, 1, 3, 0.2), (0, 1, 3, 0.6)]
    found = read_out(segments(prompts, rows), prompts, min_count=1)
    ids = found["ids"].values.tolist()
    assert found["n_documents"].values[ids.index("5 6")] == 3
    assert found["n_documents"].values[ids.index("6 7")] == 1
    assert np.isfinite(found["psi_interval"].values[:, ids.index("5 6")]).all()
    assert np.isnan(found["psi_interval"].values[:, ids.index("6 7")]).all()


def test_ties_go_to_the_more_frequent_and_thresholds_are_of_several_tokens():
    prompts = Prompts.from_ids([[5, 6, 7, 9, 9]])
    rows = [(0, 0, 2, 0.5), (0, 1, 3, 0.5), (0, 1, 3, 0.5), (0, 3, 5, 0.5)]
    found = read_out(segments(prompts, rows), prompts, min_count=1)
    assert found["ids"].values.tolist() == ["6 7", "5 6", "9 9"]
    single = [(0, 0, 1, 1000.0)] * 50 + [(0, 0, 2, float(n)) for n in range(101)]
    assert permutation_threshold(segments(prompts, single)) == 95.0
