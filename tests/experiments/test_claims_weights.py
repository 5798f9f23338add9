"""Claims on routes, lenses, valley and vocabulary, judged on planted results."""

import numpy as np
import pytest
import xarray as xr

from experiments import lenses, routes, valley, vocabulary
from experiments.runner.claims import evaluate

RNG = np.random.default_rng(0)
NULLS = {"null": ["none", "untrained"]}


def row_of(experiment, says, results, model=""):
    """The row of the claim that begins with some words."""
    (row,) = [r for r in evaluate(experiment.CLAIMS, results, model) if r["claim"].startswith(says)]
    return row


def first(row):
    """The first number of a row, and its verdict."""
    return next(iter(row["numbers"].values()))["value"], row["verdict"]


# -- routes ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("planted", "said"), [(0.2, "yes"), (-0.2, "no")])
def test_a_head_is_chosen_on_other_prompts_than_it_is_judged_on(planted, said):
    """One that is best on the even prompts alone is no finding."""
    values = RNG.normal(0, 0.01, (2, 24, 3, 4))
    values[0, 0::2, 2, 1] += 0.2
    values[0, 1::2, 2, 1] += planted
    dims = ("null", "prompt", "block", "head")
    ds = xr.Dataset(
        {"previous": (dims, values), "previous_control": (dims, 0 * values)},
        {**NULLS, "block": [0, 1, 2], "head": [0, 1, 2, 3]},
    )
    row = row_of(routes, "a head reads", {"routes": ds})
    assert first(row) == (pytest.approx(planted, abs=0.02), said)
    assert "trained, block.head 2.1" in row["numbers"]
    chosen = values[0, 0::2].mean(0).argmax(1)
    shown = values[0, 1::2].mean(0)[range(3), chosen]
    np.testing.assert_allclose(row["numbers"]["trained, head of each block"]["curve"], shown, atol=1e-3)


@pytest.mark.parametrize(("last", "said"), [(0.3, "yes"), (0.01, "no")])
def test_mlps_act_most_at_both_ends(last, said):
    """What the first block alone does is no finding about the last."""
    share = np.array([0.9, 0.1, 0.1, last]) + RNG.normal(0, 0.01, (2, 12, 4))
    ds = xr.Dataset({"mlp_share": (("null", "prompt", "block"), share)}, NULLS)
    value, verdict = first(row_of(routes, "MLPs act most", {"routes": ds}))
    assert (value, verdict) == (pytest.approx(last - 0.1, abs=0.02), said)


def test_ranks_are_compared_at_the_longest_length():
    dims, shape = ("null", "prompt", "length", "block", "head"), (2, 6, 2, 2, 2)
    own = RNG.normal(5, 0.1, shape)
    names = ("eff_rank", "null_eff_rank", "eff_rank_pattern")
    data = {
        k: (dims, own + n + RNG.normal(0, 0.01, shape), {"long_name": k})
        for k, n in zip(names, (0, 2, -3), strict=True)
    }
    data["eff_rank"][1][:, :, 0] += 10
    ds = xr.Dataset(data, {**NULLS, "length": [8, 16]})
    assert first(row_of(routes, "heads use fewer", {"rank": ds})) == (pytest.approx(-2, abs=0.02), "yes")
    assert first(row_of(routes, "the softmax", {"rank": ds})) == (pytest.approx(-3, abs=0.02), "no")


# -- valley ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("middle", "said"), [(0.3, "yes"), (0.75, "no")])
def test_a_valley_lies_below_both_ends(middle, said):
    noise = RNG.normal(0, 0.005, (2, 12, 5))
    entropy = noise + np.array([0.9, 0.8, middle, 0.6, 0.7])
    held = np.abs(noise) + np.array([0, 0.1, 0.8, 0.2, 0.9])
    dims = ("null", "prompt", "layer")
    data = {"entropy": (dims, entropy), "trace_share": (dims, held)}
    data |= {"entropy_without": (dims, noise + 0.8), "entropy_control": (dims, entropy)}
    ds = xr.Dataset(data, {**NULLS, "layer": range(5)})
    value, verdict = first(row_of(valley, "entropy is lower", {"valley": ds}))
    assert (value, verdict) == (pytest.approx(0.7 - middle, abs=0.01), said)
    row = row_of(valley, "the valley is the doing", {"valley": ds})
    assert first(row)[0] == pytest.approx(0.8 - middle, abs=0.01)
    assert row["numbers"]["layer"]["value"] == 2


def test_a_layer_is_chosen_on_other_prompts_than_it_is_judged_on():
    """Of many layers that differ by chance alone the best of its own prompts is above all."""
    held = 0.5 + RNG.normal(0, 0.1, (2, 8, 200))
    held[0, 0::2, 150] += 0.3
    ds = xr.Dataset({"trace_share": (("null", "prompt", "layer"), held)}, {**NULLS, "layer": range(200)})
    for name in ("largest_norm_ratio", "persistence", "constancy", "constancy_control"):
        ds[name] = ds["trace_share"]
    assert valley.deepest(ds) == 150
    number = next(iter(row_of(valley, "one row holds", {"valley": ds})["numbers"].values()))
    assert number["value"] == pytest.approx(held[0, 1::2, 150].mean())


@pytest.mark.parametrize(("control", "said"), [(0.0, "yes"), (-0.5, "no")])
def test_sinks_are_compared_with_ordinary_rows(control, said):
    shift = np.array([-0.3, 0, control, 0])[:, None, None]
    names = ["zero", "mean", "zero, ordinary rows", "mean, ordinary rows"]
    change = RNG.normal(0, 0.01, (4, 12, 3)) + shift
    ds = xr.Dataset({"sink_change": (("intervention", "prompt", "block"), change), "onset": 2.0},
                    {"intervention": names})  # fmt: skip
    value, verdict = first(row_of(valley, "attention sinks", {"massive": ds}))
    assert (value, verdict) == (pytest.approx(-0.3 - control, abs=0.02), said)


# -- lenses ---------------------------------------------------------------------------------------------------
def test_lenses_are_compared_at_their_own_depth_and_in_their_own_direction():
    levels = np.array([[9.0, 5, 4, 3, 1], [6, 3, 2, 2, 1], [7, 4, 3, 4, 1]]).T  # (layer, variant)
    values = RNG.normal(0, 0.01, (8, 5, 3)) + levels
    data = dict.fromkeys(("cross_entropy", "kl"), (("prompt", "layer", "variant"), values))
    ds = xr.Dataset(data, {"layer": [1, 2, 4, 6, 8], "variant": list(lenses.VARIANTS)})
    assert first(row_of(lenses, "early layers", {"lens": ds})) == (pytest.approx(1, abs=0.02), "yes")
    assert first(row_of(lenses, "a lens fitted", {"lens": ds})) == (pytest.approx(1, abs=0.02), "yes")
    few = {"lens": ds.isel(layer=[0, 1, 4])}  # half of the depth is layer 4, and 2 nearer to it than 1 and 8
    assert "tuned, layer 2" in row_of(lenses, "a lens fitted", few)["numbers"]
    assert "tuned, layer 2" in row_of(lenses, "early layers", few)["numbers"]
    many = {"lens": ds.isel(layer=[0, 1, 2, 4]).assign_coords(layer=[2, 12, 18, 24])}
    assert "tuned, layer 12" in row_of(lenses, "a lens fitted", many)["numbers"]


def test_states_of_one_prompt_are_not_independent():
    prompt = np.repeat(np.arange(6), 50)
    level = RNG.normal(0.3, 0.1, 6)[prompt]
    share = np.repeat(level[:, None, None], 3, 1)
    ds = xr.Dataset(
        {"share": (("token", "layer", "n_chosen"), share), "control": (("token", "layer", "n_chosen"), 0 * share),
         "n_active": (("token", "layer"), np.full((300, 3), 5))},
        {"prompt": ("token", prompt), "layer": [1, 2, 3], "n_chosen": [25]},
    )  # fmt: skip
    row = row_of(lenses, "states are sums", {"space": ds})
    number = row["numbers"]["own less rotated"]
    assert number["value"] == pytest.approx(level.mean())
    assert np.diff(number["interval"]) > 2 * 1.96 * level.std() / np.sqrt(300)  # as of 300 states it were far narrower


# -- vocabulary -----------------------------------------------------------------------------------------------
def tokens(shares):
    """Shares that are not repeated, of candidates and of controls."""
    ends = [[x - 0.05 for x in shares], [x + 0.05 for x in shares]]
    data = {
        "verified_share": ("kind", list(shares)), "verified_share_interval": (("bound", "kind"), ends),
        "n_asked": ("kind", [80, 80]), "median_p": ("kind", [0.1, 0.2]), "mean": ("indicator", [1.0, 0.5361]),
        "sd": ("indicator", [1.0, 0.2]), "threshold": ("indicator", [1.0, 0.424]),
    }  # fmt: skip
    coords = {"kind": ["candidate", "control"], "bound": ["lower", "upper"], "indicator": ["ein_l2", "eout_cos"]}
    attrs = {"default_indicator": "eout_cos", "model": "openai-community/gpt2"}
    return xr.Dataset(data, coords, attrs)


@pytest.mark.parametrize(("shares", "said"), [((0.4, 0.1), "yes"), ((0.2, 0.15), "not shown"), ((0.1, 0.4), "no")])
def test_candidates_are_compared_with_other_tokens(shares, said):
    row = row_of(vocabulary, "what looks untrained", {"tokens": tokens(shares)})
    assert first(row) == (pytest.approx(shares[0] - shares[1]), said)
    low, high = row["numbers"]["candidates less others"]["interval"]
    assert high - low == pytest.approx(2 * np.hypot(0.05, 0.05))


def test_the_published_numbers_are_those_of_their_model_and_indicator():
    found = {"tokens": tokens((0.03, 0.0))}
    rows = {n: row_of(vocabulary, said, found, "openai-community/gpt2") for n, (said, _) in vocabulary.SAYS.items()}
    assert {n: r["verdict"] for n, r in rows.items()} == {"mean": "yes", "sd": "no", "threshold": "yes", "share": "yes"}
    assert rows["sd"]["numbers"]["difference"]["value"] == pytest.approx(0.13)
    assert not [r for r in evaluate(vocabulary.CLAIMS, found, "another") if "gpt2" in r["claim"]]


def test_words_of_full_rank_are_counted_among_words_of_several_tokens():
    rest, n = vocabulary.REST, 40
    ds = xr.Dataset(
        {"relative_rank": ("word", [1.0] * (n - 1) + [0.5, 1.0, 1.0, np.nan]),
         "n_tokens": ("word", [2] * n + [1, 2, 2]),
         "n_distinct": ("word", [2] * (n - 1) + [1, 1, 2, 2])},
        {"concept": ("word", [rest] * (n + 1) + ["animal", rest])},
    )  # fmt: skip
    numbers = row_of(vocabulary, "words of several", {"frames": ds})["numbers"]
    assert numbers["full rank"]["value"] == pytest.approx((n - 1) / n)
    assert [numbers[k]["value"] for k in ("words", "exceptions", "of these with a token twice")] == [n, 1, 1]


def test_words_of_one_concept_are_not_independent():
    """They are compared with nearly one frame: eight concepts are eight groups, however many words they have."""
    concept = np.repeat([f"c{n}" for n in range(8)], 50)
    level = np.repeat(RNG.normal(0.2, 0.2, 8), 50)
    data = {"cosine": level, "cosine_other": 0 * level, "cosine_random": 0 * level}
    own = xr.Dataset({k: ("word", x) for k, x in data.items()}, {"concept": ("word", concept)})
    rest = own.assign_coords(concept=("word", [vocabulary.REST] * 400)) + 0.5
    frames = xr.concat([own, rest], "word").assign(n_tokens=2, relative_rank=("word", np.ones(800)))
    number = row_of(vocabulary, "a word is nearer", {"frames": frames})["numbers"]["own less another word"]
    assert number["value"] == pytest.approx(level.mean())
    assert np.diff(number["interval"]) > 2 * 1.96 * level.std() / np.sqrt(8)
