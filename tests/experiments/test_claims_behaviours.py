"""Claims on repetition, ciphers, letters, heads, features, tokens to come and topics, judged on planted results."""

import numpy as np
import pytest
import xarray as xr

from experiments import behaviours, features, filler_tasks, heads
from experiments.runner.claims import Number, evaluate, less

RNG = np.random.default_rng(0)
BOUND = {"bound": ["lower", "upper"]}


def first(experiment, says, results, model=""):
    """The row of the claim that begins with some words: first number, verdict, all numbers."""
    (row,) = [r for r in evaluate(experiment.CLAIMS, results, model) if r["claim"].startswith(says)]
    return next(iter(row["numbers"].values()))["value"], row["verdict"], row["numbers"]


def sized(dims, values, half=0.02):
    """A variable, and its interval of some half width."""
    values = np.asarray(values, float)
    return (dims, values), (("bound", *dims), np.stack([values - half, values + half]))


def test_the_difference_of_two_numbers_has_the_interval_of_both():
    assert less(Number(3, 0, 3), Number(1, 1, 5))[:3] == (2, -3, 2)


# -- behaviours -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("moved", "said"), [(0.1, "yes"), (0.9, "no")])
def test_repetition_in_place_is_compared_with_repetition_anywhere(moved, said):
    """What rises in the control, too, binds nothing."""
    names = [f"{k} kept{how}" for k in ("all", 4, 2) for how in ("", ", moved")] + ["none kept"]
    level = np.array([0.8, moved] * 3 + [0.0])[:, None]
    slope = RNG.normal(level, 0.02, (7, 20))
    ds = xr.Dataset({"slope": (("condition", "prompt"), slope)}, {"condition": names})
    value, verdict, _ = first(behaviours, "tokens that are repeated", {"repetition": ds})
    assert (value, verdict) == (pytest.approx(0.8 - moved, abs=0.02), said)


@pytest.mark.parametrize(("far", "said"), [(0.2, "yes"), (0.8, "no")])
def test_near_tokens_are_compared_with_far_ones_and_not_with_those_apart(far, said):
    slope = RNG.normal(np.array([0.5, 0.4, far, -3.0])[:, None], 0.02, (4, 20))
    ds = xr.Dataset({"slope": (("condition", "prompt"), slope)},
                    {"condition": ["distance 0", "distance 1", "distance 3", "apart"]})  # fmt: skip
    value, verdict, _ = first(behaviours, "two tokens bind", {"distance": ds})
    assert (value, verdict) == (pytest.approx(0.5 - far, abs=0.02), said)


@pytest.mark.parametrize(("no_key", "said"), [(0.0, "yes"), (2.0, "no")])
def test_what_a_context_gives_back_is_beyond_what_it_gives_without_a_key(no_key, said):
    falls = {"plain": 2.0, "cipher": 1.0, "no key": no_key}
    loss = RNG.normal(9, 0.05, (3, 16, 4)) - np.array([*falls.values()])[:, None, None] * np.array([9, 0, 0.5, 1])
    loss[:, :, 0] = np.nan
    coords = {"condition": list(falls), "place": [0, 1, 2, 4]}
    ds = xr.Dataset({"loss": (("condition", "prompt", "place"), loss)}, coords)
    # the first place that is known is left out, too: a single token
    half = xr.Dataset({"half_life": 4.0, "half_life_interval": ("bound", [3.0, 5.0])}, BOUND)
    value, verdict, _ = first(behaviours, "context gives", {"ciphers": ds, "half_life": half})
    assert (value, verdict) == (pytest.approx((1 - no_key) / 2, abs=0.05), said)


@pytest.mark.parametrize(("null", "said"), [(0.2, "yes"), (0.7, "no")])
def test_answers_are_compared_with_the_best_of_what_needs_no_letters(null, said):
    value, interval = sized(("task",), [0.5], 0.1)
    data = {"accuracy": value, "accuracy_interval": interval, "accuracy_guess": ("task", [0.1]),
            "accuracy_null": ("task", [null]), "accuracy_copy": ("task", [np.nan])}  # fmt: skip
    found = first(behaviours, "words are spelt", {"cute": xr.Dataset(data, {"task": ["spell"], **BOUND})})
    assert found[:2] == (pytest.approx(0.5 - null), said)


@pytest.mark.parametrize(("length", "said"), [(0.55, "yes"), (0.75, "no")])
def test_letters_are_compared_with_the_best_baseline(length, said):
    name, data = "mean_matched_auc", {"first_accuracy": ("layer", [0.5, 0.5])}
    for end, level in {"": 0.7, "_shuffled": 0.5, "_random": 0.5, "_length": length}.items():
        value, interval = sized(("layer",), [level, 0.9 * level])
        data |= {name + end: value, f"{name}{end}_interval": interval}
    found = first(behaviours, "embeddings know", {"spelling": xr.Dataset(data, {"layer": [0, 4], **BOUND})})
    assert found[:2] == (pytest.approx(0.7 - length), said)


# -- heads ----------------------------------------------------------------------------------------------------
def induction(judged, shuffled=0.05):
    """One head looks on the half where heads are chosen, and as much as is said on the other."""
    names = ["entities", "random tokens"]
    names += [f"{n}, {how}" for how in ("shuffled", "untrained") for n in ("entities", "random tokens")]
    v = np.full((2, 6, 2, 2, 3), 0.05)  # (half, condition, key_set, block, head)
    v[0, :2, :, 1, 2], v[1, :2, :, 1, 2], v[1, 2:4, :, 1, 2] = 0.6, judged, shuffled
    v[1, :2, :, 0, 0] = 0.9
    value, interval = sized(("half", "condition", "key_set", "block", "head"), v)
    chance = ("half", "condition", "key_set"), np.full((2, 6, 2), 0.05)
    coords = {"half": list(heads.HALVES), "condition": names, "key_set": ["next", "end"], "block": [0, 1],
              "head": [0, 1, 2], **BOUND}  # fmt: skip
    return xr.Dataset({"attention": value, "attention_interval": interval, "chance": chance}, coords)


@pytest.mark.parametrize(("judged", "shuffled", "said"), [(0.5, 0.05, "yes"), (0.5, 0.6, "no"), (0.02, 0.05, "no")])
@pytest.mark.parametrize("says", ["a head looks at the token", "a head looks at the end"])
def test_a_head_is_chosen_on_one_half_and_compared_with_the_shuffled_copy_on_the_other(judged, shuffled, said, says):
    value, verdict, numbers = first(heads, says, {"induction": induction(judged, shuffled)})
    assert value == pytest.approx(judged - shuffled)
    assert verdict == said
    assert "head 1.2" in numbers
    assert numbers["head of each block"]["curve"][1] == pytest.approx(judged), "not the largest of its own half"


@pytest.mark.parametrize(("kind", "says"), [("token", "next token"), ("concept", "end of the word")])
def test_a_head_of_the_last_block_can_add_nothing_to_the_second_token(kind, says):
    ds, name = induction(0.5), f"{kind}_copying"
    ds["attention"][0, :2, :, 0, 0] = 0.3
    ds[f"{kind}_score"] = ds["attention"][:, 0, 0]
    value, interval = sized(("block", "head"), [[0.2, 0, 0], [0, 0, 0.4]])
    coords = {"block": [0, 1], "head": [0, 1, 2], **BOUND}
    null = ("block", "head"), np.full((2, 3), 0.1)
    copying = xr.Dataset({name: value, f"{name}_interval": interval, f"{name}_null": null}, coords)
    found = first(heads, f"the head that looks at the {says}", {"induction": ds, "copying": copying})
    assert found[:2] == (pytest.approx(0.3 if kind == "token" else 0.1), "yes")


@pytest.mark.parametrize(("random", "said"), [(-1.0, "yes"), (-4.0, "no")])
def test_heads_taken_away_are_compared_with_as_many_others(random, said):
    dims = ("ranking", "choice", "n_heads", "task")
    v = np.zeros((2, 2, 2, 1))
    v[:, 0, 1], v[:, 1, 1] = -3.0, random
    data = {}
    for name in ("log_prob", "accuracy"):
        data[name], data[f"{name}_interval"] = sized(dims, v)
    coords = {"ranking": ["token", "concept"], "choice": ["ranked", "random"], "n_heads": [0, 8], "task": ["copying"]}
    value, verdict, _ = first(heads, "words are copied", {"ablation": xr.Dataset(data, coords | BOUND)})
    assert (value, verdict) == (pytest.approx(-3 - random), said)


@pytest.mark.parametrize(("blank", "said"), [(0.0, "yes"), (0.3, "no")])
def test_the_first_block_is_compared_with_an_untrained_one(blank, said):
    v = np.zeros((2, 2, 3))  # (null, half, head)
    v[0, :, 1], v[1, :, 2], v[0, 1, 0] = 0.2, blank, 0.9
    value, interval = sized(("null", "half", "head"), v)
    coords = {"null": ["none", "untrained"], "half": list(heads.HALVES), "head": [0, 1, 2], **BOUND}
    ds = xr.Dataset({"excess": value, "excess_interval": interval}, coords)
    found = first(heads, "a head of the first block", {"detokenisation": ds})
    assert found[:2] == (pytest.approx(0.2 - blank), said)


# -- features -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("own", "said"), [(0.3, "yes"), (-0.3, "no")])
def test_texts_are_compared_about_the_mean_of_each_concept(own, said):
    """A concept that all texts lie along is none that a text is about."""
    has = np.arange(24)[:, None] % 3 == np.arange(3)
    score = RNG.normal(0, 0.02, (2, 24, 3)) + np.array([5.0, 0, -5])
    score[0] += own * has
    ds = xr.Dataset({"score": (("null", "prompt", "concept"), score), "contains": (("prompt", "concept"), has)},
                    {"null": ["none", "untrained"]})  # fmt: skip
    value, verdict, _ = first(features, "a text lies along", {"concepts": ds})
    assert (value, verdict) == (pytest.approx(own, abs=0.02), said)


@pytest.mark.parametrize(("other", "said"), [(0.1, "yes"), (0.9, "no")])
def test_decoding_along_a_concept_is_compared_with_another_concept(other, said):
    names = ["greedy", "concept", "other concept", "random frame"]
    score = RNG.normal(np.array([-1, 0.5, other, 0])[:, None], 0.02, (4, 16))
    ds = xr.Dataset({"score": (("guide", "prompt"), score)}, {"guide": names})
    value, verdict, _ = first(features, "decoding along", {"guided": ds})
    assert (value, verdict) == (pytest.approx(0.5 - other, abs=0.02), said)


@pytest.mark.parametrize(("embedding", "said"), [(0.1, "yes"), (0.4, "no")])
def test_tokens_to_come_are_compared_with_what_the_embedding_says(embedding, said):
    v = np.zeros((2, 3, 2))  # (condition, layer, offset)
    v[0, 0, 1], v[0, 1, 1], v[0, 2, 0] = embedding, 0.3, 0.9
    value, interval = sized(("condition", "layer", "offset"), v)
    coords = {"condition": ["text", "shuffled"], "layer": [0, 4, 8], "offset": [1, 2], **BOUND}
    bigram = ("condition", "offset"), np.zeros((2, 2))
    ds = xr.Dataset({"accuracy": value, "accuracy_interval": interval, "bigram_accuracy": bigram}, coords)
    value, verdict, _ = first(features, "states hold tokens", {"future": ds})
    assert (value, verdict) == (pytest.approx(0.3 - embedding), said)


@pytest.mark.parametrize(("frequent", "said"), [(0.4, "yes"), (0.7, "no")])
def test_a_topic_is_compared_with_the_better_of_permuted_labels_and_the_most_frequent(frequent, said):
    value, interval = sized(("layer", "position"), [[0.9, 0.9], [0.2, 0.6], [0.9, 0.9]])
    data = {"accuracy": value, "accuracy_interval": interval, "accuracy_frequent": frequent,
            "accuracy_shuffled": (("layer", "position"), np.full((3, 2), 0.3))}  # fmt: skip
    ds = xr.Dataset(data, {"layer": [0, 4, 8], "position": [1, 16], **BOUND})
    value, verdict, _ = first(features, "one state holds", {"topic": ds})
    assert (value, verdict) == (pytest.approx(0.6 - frequent), said)
    assert first(features, "later tokens", {"topic": ds})[:2] == (pytest.approx(0.4), "yes")


@pytest.mark.parametrize(("permuted", "said"), [(0.5, "yes"), (0.8, "no")])
def test_labels_are_compared_with_permuted_ones(permuted, said):
    value, interval = sized(("dictionary",), [0.7, 0.4])
    data = {"accuracy": value, "accuracy_interval": interval, "accuracy_shuffled": ("dictionary", [permuted, 0.0]),
            "accuracy_frequent": 0.3, "accuracy_states": 0.9}  # fmt: skip
    ds = xr.Dataset(data, {"dictionary": ["learned", "random"], **BOUND})
    assert first(features, "features say", {"features": ds})[:2] == (pytest.approx(0.7 - permuted), said)


# -- filler_tasks ---------------------------------------------------------------------------------------------
def answered(after, before):
    """Results of a task: 40 items, half right without fillers, a share with them after or before."""
    right = np.zeros((40, 1, 2, 2))
    right[:20, :, :, 0] = 1
    for k, share in enumerate((after, before)):
        right[: int(40 * share), 0, k, 1] = 1
    dims = ("prompt", "filler", "placement", "n_fillers")
    coords = {"filler": ["dots"], "placement": ["post", "pre"], "n_fillers": [0, 10]}
    ds = xr.Dataset({"correct": (dims, right)}, coords)
    names = ("accuracy", "helped", "hurt", "mcnemar_p", "log_prob_change")
    tests = xr.Dataset({n: (dims[1:], np.zeros((1, 2, 2))) for n in names}, {**coords, **BOUND})
    tests["log_prob_change_interval"] = ("bound", *dims[1:]), np.zeros((2, 1, 2, 2))
    return {"facts/insertion": ds, "facts/untrained_insertion": ds * 0, "facts/tests": tests}


@pytest.mark.parametrize(("after", "said"), [(0.9, "yes"), (0.1, "no"), (0.5, "no interval")])
def test_fillers_raise_the_accuracy_after_the_question(after, said):
    """What they do before it is a control; that nothing changed is no interval of no width."""
    says = "fillers raise the accuracy on sums"
    value, verdict, numbers = first(filler_tasks, says, answered(after, 1.0))
    assert (value, verdict) == (pytest.approx(after - 0.5), said)
    assert numbers["dots before it"]["value"] == 0.5
    assert numbers["untrained"]["value"] == 0


@pytest.mark.parametrize(("by", "said"), [(0.5, "yes"), (-0.5, "no")])
def test_fillers_carry_the_answer_of_the_donor(by, said):
    """Items without a donor of their length are left out; the question's own transplant is another number."""
    change = RNG.normal([[by], [3]], 0.1, (2, 30))
    change[:, ::3] = np.nan
    both = {"donor_change": change, "log_prob_change": -change, "donor_rank": np.abs(change)}
    ds = xr.Dataset(
        {k: (("intervention", "prompt"), v) for k, v in both.items()}, {"intervention": list(filler_tasks.SWAPS)}
    )
    value, verdict, numbers = first(filler_tasks, "fillers carry", {"equations/interventions": ds})
    assert (value, verdict) == (pytest.approx(by, abs=0.1), said)
    assert numbers["its question"]["value"] == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize(("own", "said"), [(0.8, "yes"), (0.2, "no")])
def test_read_outs_are_compared_with_the_answers_of_others(own, said):
    held = RNG.random((2, 2, 60)) < np.array([0.99, own])[:, None, None] * [[1], [0]] + [[0], [0.5]]
    ds = xr.Dataset(
        {"fingerprint": (("variant", "target", "prompt"), held.astype(float))},
        {"variant": ["as it is", "residual"], "target": ["answer", "answer of another item"]},
    )
    _, verdict, _ = first(filler_tasks, "fillers are read", {"letters/lens": ds})
    assert verdict == said
