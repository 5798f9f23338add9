"""Claims judged on planted results: yes where it is so, no where the contrary is, no verdict without an interval."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from tiny import tiny

import tokinterp as ti
from experiments import dot_by_dot, erasure, fillers, inner_lexicon, microscope, token_geometry
from experiments.parts.left_out import linearity_spread, without_each
from experiments.parts.precision import precision_difference, word_precision
from experiments.runner.claims import Claim, best, evaluate, judge, mean, mean_difference

RNG = np.random.default_rng(0)
BOUND = {"bound": ["lower", "upper"]}


def verdict(experiment, says, results):
    """The verdict and the first number of the claim that begins with some words."""
    (row,) = [r for r in evaluate(experiment.CLAIMS, results) if r["claim"].startswith(says)]
    return row["verdict"], next(iter(row["numbers"].values()))


# -- what claims are made of ----------------------------------------------------------------------------------
def test_a_difference_of_unpaired_spans_draws_whole_prompts_with_what_both_have_of_them():
    prompt = np.repeat(np.arange(8), 5)
    level = RNG.normal(size=8)[prompt]  # prompts differ much, the two texts of a prompt little
    one = xr.DataArray(level + 0.1, dims="span", coords={"span_prompt": ("span", prompt)})
    other = one[::2].copy(data=level[::2])
    found = mean_difference(one, other, "span")
    assert found.value == pytest.approx(float(one.mean() - other.mean()))
    apart = [np.ptp(mean(v, "span")[1:3]) for v in (one, other)]
    assert found.high - found.low < 0.3 * min(apart)  # paired: the spread of the prompts drops out
    assert mean_difference(one[:10], other[:5], "span").why == "2 prompts: an interval takes 3"


def test_values_that_are_all_the_same_have_no_interval_of_no_width():
    v = xr.DataArray(np.zeros(50), dims="prompt")
    assert mean(v).why == "all 50 prompts have the same value"
    assert judge(Claim("more than 5 %", "we", "", dict, above=0.05), mean(v)) == "no interval"
    low, high = mean(v, share=True)[1:3]
    assert (low, round(high, 3)) == (0, 0.071)  # Wilson, of 50
    assert np.isnan(mean(v.isel(prompt=slice(2)))[1])


def test_the_best_of_many_is_judged_as_the_best_of_many():
    claim, wrong = Claim("above chance", "we", "", dict, above=0.5), 0
    for seed in range(60):
        values = np.random.default_rng(seed).random((60, 30)) < 0.5
        rows = best({str(k): xr.DataArray(values[:, k].astype(float), dims="prompt") for k in range(30)})
        first = next(iter(rows.values()))
        assert first.value == max(x.value for x in rows.values())
        wrong += judge(claim, first) == "yes"
    assert wrong <= 5  # with an interval of its own, 48 of 60 such seeds would have a column above chance
    none = {str(k): xr.DataArray(np.zeros(200), dims="prompt") for k in range(8)}
    number = next(iter(best(none).values()))
    assert judge(Claim("above 5 %", "we", "", dict, above=0.05), number) == "no"
    assert number.high > mean(none["0"], share=True).high  # eight tries
    few = next(iter(best({k: v[:2] for k, v in none.items()}).values()))
    assert (few.why, judge(claim, few)) == ("2 prompts: an interval takes 3", "no interval")


# -- erasure --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("shift", "prompts", "said"), [(0.3, 9, "yes"), (-0.3, 9, "no"), (0.0, 9, "not shown"), (0.3, 2, "no interval")]
)
def test_psi_of_text_against_shuffled_text(shift, prompts, said):
    def scores(level):
        n = 6 * prompts
        coords = {"start": ("span", np.zeros(n)), "stop": ("span", np.full(n, 2)),
                  "span_prompt": ("span", np.repeat(np.arange(prompts), 6))}  # fmt: skip
        return xr.Dataset({"psi": ("span", level + np.random.default_rng(1).normal(0, 0.05, n))}, coords)

    results = {"trained/text": scores(shift), "trained/shuffled": scores(0.0)}
    if shift == 0:
        results["trained/shuffled"]["psi"] = results["trained/shuffled"]["psi"].roll(span=7)
    assert verdict(erasure, "psi is higher", results)[0] == said


def vocabulary_case(n):
    """Texts of n documents whose segments are words, and others that are none; one word in two documents each."""
    rng = np.random.default_rng(0)
    word = [rng.integers(300, 310, 2).tolist() for _ in range(12)]
    ids = [[*word[d % 12], 5, 6, *word[(d + 1) % 12]] for d in range(n)]
    prompts = ti.Prompts.from_ids(ids)
    place = [(d, a) for d in range(n) for a in (0, 4)]
    numbers = np.array([d for d, _ in place])

    def segments(shift):
        start = np.array([a for _, a in place]) + shift * np.array([1, -1] * n)
        coords = {"span_prompt": ("span", numbers), "start": ("span", start), "stop": ("span", start + 2)}
        return xr.Dataset({"psi": ("span", rng.random(2 * n)), "seen": ("span", np.ones(2 * n))}, coords)

    begin = [[0, *np.cumsum([len(s) for s in prompts.strings(d)])] for d in range(n)]
    spans = [{"document": d, "start": int(begin[d][a]), "stop": int(begin[d][a + 2]), "kind": "word"} for d, a in place]
    return prompts, segments(0), segments(1), ti.Spans.from_records(spans).align(prompts)


def test_the_vocabulary_of_words_against_one_of_none():
    prompts, words, others, units = vocabulary_case(24)
    for pair, said in (((words, others), "yes"), ((others, words), "no")):
        found = precision_difference(*((ds, prompts) for ds in pair), units, 2)
        read = ti.erasure.read_out(pair[0], prompts, min_psi=None)
        results = {"trained/text_evaluation": ti.erasure.evaluate(read, units, prompts), "trained/precision": found}
        assert verdict(erasure, "the vocabulary of a text", results)[0] == said
    every = np.ones(len(prompts), bool)
    for ds in (words, others):
        of_all = ti.erasure.evaluate(ti.erasure.read_out(ds, prompts, min_psi=None), units, prompts)["precision"]
        assert word_precision(ds, prompts, prompts, units, every, 2) == pytest.approx(
            float(of_all.isel(rank=-1).sel(subset="word"))
        )
    few, _, _, units = vocabulary_case(2)
    pair = [(ds.isel(span=slice(4)), few) for ds in (words, others)]
    few = precision_difference(*pair, units, 1)
    assert np.isnan(few["difference_interval"]).all()


def test_the_vocabulary_of_shuffled_text_is_read_from_the_shuffled_text():
    prompts, words, _, units = vocabulary_case(24)
    mixed = ti.Prompts.from_ids([prompts.ids(i)[[2, 3, 0, 1, 4, 5]].tolist() for i in range(24)])
    every, scores = np.ones(24, bool), words.assign_attrs(prompts=mixed.hash)
    assert word_precision(words, prompts, prompts, units, every, 2) == 1.0
    assert word_precision(scores, mixed, prompts, units, every, 2) < 1.0  # "5 6" stands where a word stood
    with pytest.raises(ValueError, match="of other prompts"):
        word_precision(scores, prompts, prompts, units, every, 2)


def test_a_document_that_is_left_out_leaves_with_its_words():
    prompts, words, _, units = vocabulary_case(24)
    stays = np.ones(24, bool)
    stays[::2] = False
    kind = np.where(stays[units.prompt], "other", "word")  # words only in the documents that are left out
    assert word_precision(words, prompts, prompts, units, stays, 2) == 1.0
    units = SimpleNamespace(kind=kind, prompt=units.prompt, start=units.start, n_tokens=units.n_tokens)
    assert word_precision(words, prompts, prompts, units, np.ones(24, bool), 2) == 1.0
    assert word_precision(words, prompts, prompts, units, stays, 2) == 0.0


@pytest.mark.parametrize(("kept", "said"), [(39, "yes"), (20, "no")])
def test_fits_that_agree_and_fits_that_do_not(kept, said):
    def fit(n):
        spans = [(p, s) for p in range(10) for s in range(n // 10 + (p < n % 10))]
        coords = {"span_prompt": ("span", [p for p, _ in spans]), "start": ("span", [s * 2 for _, s in spans]),
                  "stop": ("span", [s * 2 + 2 for _, s in spans]), "offset": [0],
                  "token_prompt": ("token", [0, 1]), "position": ("token", [0, 0])}  # fmt: skip
        data = {"psi": ("span", np.zeros(len(spans))), "delta": (("token", "offset"), [[0.1], [0.2]])}
        return xr.Dataset(data, coords)

    found = ti.erasure.seed_agreement([fit(40), fit(kept)])
    assert float(found["shared_segments"]) == pytest.approx(kept / 40)
    low, high = found["shared_segments_interval"].values
    assert low <= kept / 40 <= high
    (claim,) = [c for c in erasure.CLAIMS if c.says.startswith("segments do not depend")]
    number = claim.numbers({"trained/seeds": found})["same segments"]
    below = Claim("other target", "we", "", dict, above=0.8)
    assert judge(below, number) == said


# -- microscope -----------------------------------------------------------------------------------------------
def spread(middle, last, width=0.05, linear=0.995):
    layers = np.array([0, 1, 2, 3, 4])
    anisotropy = np.array([0.9, 0.1, middle, 0.1, last])[:, None].repeat(2, 1)
    data = {"linearity": linear, "drop": 0.3, "anisotropy": (("layer", "subset"), anisotropy)}
    bounds = {"linearity": [linear - 0.002, linear + 0.002], "drop": [0.2, 0.4]}
    data |= {f"{k}_interval": ("bound", b) for k, b in bounds.items()}
    data["anisotropy_interval"] = (("bound", "layer", "subset"), np.stack([anisotropy - width, anisotropy + width]))
    coords = {"layer": layers, "relative_depth": ("layer", layers / 4), "subset": ["all", "regular"], **BOUND}
    one = xr.Dataset(data, coords).expand_dims(null=["none"])
    every = xr.Dataset(
        {n: (("null", "block"), np.full((2, 4), 0.5)) for n in ("linearity", "linearity_without_residual")},
        {"null": ["none", "untrained"]},
    )
    spectrum = xr.Dataset({"anisotropy": (("null", "layer", "subset"), np.stack([anisotropy] * 2))},
                          {"null": ["none", "untrained"], "subset": ["all", "regular"]})  # fmt: skip
    held = xr.Dataset(
        {"linearity_held_out": (("null", "block"), np.full((2, 4), 0.4))}, {"null": ["none", "untrained"]}
    )
    return {"linearity_spread": one, "linearity_all": every, "spectrum": spectrum, "linearity": held}


def test_one_direction_dominates_at_mid_depth_and_not_somewhere():
    assert verdict(microscope, "one direction", spread(0.8, 0.1))[0] == "yes"
    assert verdict(microscope, "one direction", spread(0.2, 0.99))[0] == "no"  # another layer does
    assert verdict(microscope, "one direction", spread(0.52, 0.1))[0] == "not shown"
    assert verdict(microscope, "one direction", spread(0.8, 0.1, np.nan))[0] == "no interval"
    assert verdict(microscope, "blocks are nearly", spread(0.8, 0.1))[0] == "yes"
    assert verdict(microscope, "blocks are nearly", spread(0.8, 0.1, linear=0.95))[0] == "no"
    assert verdict(microscope, "without the residual", spread(0.8, 0.1))[0] == "yes"


def test_what_is_left_out_is_left_out_and_nothing_else():
    model = tiny()
    prompts = ti.Prompts.from_ids([RNG.integers(5, 60, 24).tolist() for _ in range(7)], model)
    asked = {"linearity": ti.linearity.Linearity(exclude=(), held_out=False),
             "spectrum": ti.geometry.Spectrum(components=1)}  # fmt: skip
    groups = [np.array([5, 0]), np.array([3, 4]), np.array([1, 6])]  # prompt 2 is never left out
    for out, found in zip(groups, without_each(model, prompts, asked, groups, size=2), strict=True):
        direct = ti.measure(model, prompts[np.setdiff1d(np.arange(7), out)], asked, progress=False)
        for name, variable in (("linearity", "linearity"), ("spectrum", "anisotropy")):
            np.testing.assert_allclose(found[name][variable], direct[name][variable], rtol=1e-6)
    whole = ti.measure(model, prompts, asked, progress=False)
    ds = linearity_spread(model, prompts, *(whole[n].to_dataset() for n in asked))
    assert float(ds["linearity"]) == pytest.approx(float(whole["linearity"]["linearity"].mean()))
    low, high = ds["linearity_interval"].values
    assert low < float(ds["linearity"]) < high
    few = linearity_spread(model, prompts[:2], *(whole[n].to_dataset() for n in asked))
    assert np.isnan(few["anisotropy_interval"]).all()


@pytest.mark.parametrize(("flip", "said"), [(False, "yes"), (True, "no")])
def test_answers_with_and_without_words_are_paired(flip, said):
    before, after = np.ones(40), (np.arange(40) >= 12).astype(float)
    pair = (after, before) if flip else (before, after)
    one = xr.Dataset({"correct": (("variant", "prompt"), pair[1][None]), "correct_original": ("prompt", pair[0])},
                     {"variant": ["stop words"]}).expand_dims(null=["none"])  # fmt: skip
    found, number = verdict(microscope, "answers to questions", {"mmlu": one})
    assert found == said
    assert abs(number["value"]) == pytest.approx(0.3)
    assert verdict(microscope, "answers to questions", {"mmlu": one.isel(prompt=slice(11, 13))})[0] == "no interval"


# -- token geometry, lexicon, fillers -------------------------------------------------------------------------
def geometry(scales, n=60, documents=None):
    rng = np.random.default_rng(3)
    losses = rng.normal(size=n)
    dims = {4: np.exp(losses + rng.normal(0, 0.5, n)), 2: np.exp(rng.normal(size=n))}
    values = np.stack([dims[s] for s in scales], -1)[None, :, None]
    coords = {"null": ["none"], "scale": [4, 2], "layer": [8]}
    if documents is not None:
        coords["document"] = ("prompt", documents)
    r = np.array([np.corrcoef(np.log(values[0, :, 0, k]), losses)[0, 1] for k in range(2)])
    by = ("null", "layer", "scale")
    data = dict.fromkeys(("pearson", "partial"), (by, r[None, None]))
    data |= {f"{k}_interval": ((*by, "bound"), np.stack([r, r], -1)[None, None]) for k in ("pearson", "partial")}
    lens = xr.Dataset(
        {"cross_entropy": (("null", "prompt", "layer", "variant"), losses[None, :, None, None])}, {"null": ["none"]}
    )
    return {
        "dimension": xr.Dataset({"dimension": (("null", "prompt", "layer", "scale"), values)}, coords), "lens": lens,
        "correlation": xr.Dataset(data, {"null": ["none"], "scale": [4, 2], "layer": [8], **BOUND}),
    }, r  # fmt: skip


def test_one_correlation_is_better_than_another_over_the_same_prompts():
    results, r = geometry((4, 2))
    found, number = verdict(token_geometry, "it goes better", results)
    assert (found, number["value"]) == ("yes", pytest.approx(r[0] - r[1]))
    assert verdict(token_geometry, "it goes better", geometry((2, 4))[0])[0] == "no"
    assert verdict(token_geometry, "it goes better", geometry((4, 4))[0])[1]["value"] == pytest.approx(0)
    assert verdict(token_geometry, "it goes better", geometry((4, 2), n=7)[0])[0] == "not measured"
    two = geometry((4, 2), documents=np.arange(60) % 2)[0]
    found, number = verdict(token_geometry, "it goes better", two)
    assert (found, number["why"]) == ("no interval", "2 documents: an interval takes 3")


@pytest.mark.parametrize(
    ("low", "high", "said"), [(0.1, 0.3, "yes"), (-0.3, -0.1, "no"), (np.nan, np.nan, "no interval")]
)
def test_the_last_piece_against_the_last_but_one(low, high, said):
    by = ("subset", "layer")
    ds = xr.Dataset(
        {"accuracy": (by, np.full((2, 5), 0.6)), "accuracy_interval": (("bound", *by), np.full((2, 2, 5), 0.6)),
         "difference": ("layer", [0, 0, 0, (low + high) / 2 if said != "no interval" else 0.2, 0]),
         "difference_interval": (("bound", "layer"), [[9] * 3 + [low, 9], [9] * 3 + [high, 9]])},
        {"subset": ["last", "penultimate"], "layer": range(5), **BOUND},
    )  # fmt: skip
    assert verdict(inner_lexicon, "at the last piece but one", {"trained/probe": ds})[0] == said


@pytest.mark.parametrize(("trained", "said"), [(0.8, "yes"), (0.05, "no")])
def test_a_sink_is_one_beyond_that_of_the_untrained_network(trained, said):
    def sinks(level, n=12):
        return xr.Dataset({"first_above": ("prompt", level + np.random.default_rng(0).normal(0, 0.02, n))})

    results = {"sinks": sinks(trained), "untrained_sinks": sinks(0.3).roll(prompt=1)}
    assert verdict(fillers, "the first position", results)[0] == said
    few = {k: v.isel(prompt=slice(2)) for k, v in results.items()}
    assert verdict(fillers, "the first position", few)[0] == "no interval"


# -- dot by dot -----------------------------------------------------------------------------------------------
def arms(filler, none, seeds=3, task="t"):
    def one(accuracy, form):
        values = accuracy + np.array([0.0, 0.004, -0.004])[:seeds]
        by = ("seed", "step", "format", "stratum")
        return xr.Dataset(
            {"accuracy": (by, values[:, None, None, None]), "seconds": (("seed", "step"), np.ones((seeds, 1))),
             "majority": ("format", [0.5])},
            {"seed": range(seeds), "step": [1], "format": [form], "stratum": ["all"]},
            {"parameters": json.dumps({"task": {"n": 4, "d": 1, "m": 3}})},
        )  # fmt: skip

    parts = {"filler": one(filler, "filler"), "none": one(none[0], "none"), "none_equal_flops": one(none[1], "none")}
    right = np.stack([np.arange(50) < 30, np.arange(50) < 40])[None]
    probe = xr.Dataset({"correct": (("trunk", "kept", "prompt"), right)}, {"trunk": ["filler"], "kept": [0.0, 1.0]},
                       {"task": task})  # fmt: skip
    return {f"training/{task}/{k}": v for k, v in parts.items()} | {"probe/frozen": probe}


def test_fillers_have_to_beat_both_arms_without_in_every_seed():
    says = "fillers raise the accuracy"
    assert verdict(dot_by_dot, says, arms(0.9, (0.6, 0.7)))[0] == "yes"
    found, number = verdict(dot_by_dot, says, arms(0.9, (0.6, 0.95)))
    assert (found, number["value"]) == ("no", pytest.approx(-0.05))
    found, number = verdict(dot_by_dot, says, arms(0.9, (0.6, 0.7), seeds=2))
    assert (found, number["why"]) == ("no interval", "2 seeds: an interval takes 3")


def test_a_probe_gains_from_fillers_on_the_same_examples():
    results = arms(0.9, (0.6, 0.7))
    found, number = verdict(dot_by_dot, "a frozen probe gains", results)
    assert (found, number["value"]) == ("yes", pytest.approx(0.2))
    worse = results["probe/frozen"].isel(kept=[1, 0]).assign_coords(kept=[0.0, 1.0])
    assert verdict(dot_by_dot, "a frozen probe gains", {**results, "probe/frozen": worse})[0] == "no"
    few = results["probe/frozen"].isel(prompt=[0, 35])
    assert verdict(dot_by_dot, "a frozen probe gains", {**results, "probe/frozen": few})[0] == "no interval"


@pytest.mark.parametrize(("level", "said"), [(0.999, "yes"), (0.9, "no")])
def test_the_task_is_learned_by_the_seeds_together(level, said):
    results = arms(0.5, (0.5, 0.5))
    values = np.clip(level + np.array([0.0, 0.0005, -0.0005]), 0, 1)
    one = results["training/t/filler"].isel(format=[0]).assign_coords(format=["parallel"])
    one["accuracy"] = (one["accuracy"].dims, values[:, None, None, None])
    assert verdict(dot_by_dot, "with a parallel chain", {**results, "training/t/filler": one})[0] == said
