"""Deletions delete what they say and nothing else; their cost is that of the surviving words."""

import tarfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny

import tokinterp as ti
from tokinterp.text.removal import CLASSES, CONDITIONS, find_units, remove, remove_random

torch.set_num_threads(1)
TEXT = "The end of a day, it seems: \"an owl's\" cry (far) —\nand the (moon). Don't!"
WORDS = st.sampled_from(["the", "A", "owl", "of", "day", "don't", "3.14", ",", "...", "(", "an", "moon's", "\n", "  "])


def survivors(r):
    return [r.original[a:b] for (a, b), gone in zip(r.units, r.removed, strict=True) if not gone]


# -- deletion -------------------------------------------------------------------------------------------------
def test_conditions():
    assert remove(TEXT, "articles").text == "end of day, it seems: \"owl's\" cry (far) —\nand (moon). Don't!"
    assert remove(TEXT, "punctuation").text == "The end of a day it seems an owl's cry far\nand the moon Don't"
    assert remove(TEXT, "stop words").text == 'end day, seems: "owl\'s" cry (far) —\n(moon). !'
    assert remove(TEXT, "stop words and punctuation").text == "end day seems owl's cry far\nmoon"
    with pytest.raises(ValueError, match="'verbs'"):
        remove(TEXT, "verbs")
    assert np.isnan(remove("  ", "articles").rate)


@settings(max_examples=60, deadline=None)
@given(st.lists(WORDS, max_size=14), st.sampled_from(CONDITIONS), st.integers(0, 9))
def test_what_is_left_is_the_text_without_the_deleted_units(pieces, condition, seed):
    text = " ".join(pieces)
    for r in (remove(text, condition), remove_random(remove(text, condition), seed)):
        assert [r.text[a:b] for a, b in r.places if a >= 0] == survivors(r)
        assert "".join(r.text.split()) == "".join("".join(survivors(r)).split())
        assert r.text.count("\n") == text.count("\n")
        assert np.isnan(r.rate) if not len(r.units) else r.rate == r.removed.mean()
    none = remove(text, lambda t: np.zeros(len(find_units(t)[0]), bool))
    assert none.text == text


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999))
def test_controls_delete_as_many_and_of_the_same_classes(seed):
    first = remove(TEXT, "articles")
    other, same = remove_random(first, seed), remove_random(first, seed, within="class")
    assert other.removed.sum() == same.removed.sum() == first.removed.sum() == 4
    assert (same.classes[same.removed] == CLASSES.index("function word")).all()
    assert remove_random(first, seed).text == other.text
    with pytest.raises(ValueError, match="every function word"):
        remove_random(remove(TEXT, "stop words"), seed, within="class")
    with pytest.raises(ValueError, match="within='pos'"):
        remove_random(first, seed, within="pos")


def test_a_judge_may_only_delete():
    assert remove(TEXT, lambda t: t.replace("The ", "").replace(" of", "")).removed.nonzero()[0].tolist() == [0, 2]
    with pytest.raises(ValueError, match=r"'sunset' .* does not follow"):
        remove(TEXT, lambda t: t.replace("end", "sunset"))
    with pytest.raises(ValueError, match="did not only delete"):
        remove("the red fox", lambda t: "fox red")
    with pytest.raises(ValueError, match="one for each unit"):
        remove(TEXT, lambda t: [True])


# -- loss -----------------------------------------------------------------------------------------------------
def test_surviving_loss_equals_brute_force():
    model, text = tiny(), "the river runs to the north, and a river ends"
    r = remove(text, "articles")
    ds = ti.surviving_loss(model, [r])
    want = []
    for t, places in ((text, r.units), (r.text, r.places)):
        enc = model.tokenizer(t, return_offsets_mapping=True)
        ids = torch.tensor([enc["input_ids"]])
        logp = model.lm(ids).logits[0].detach().log_softmax(-1)
        loss = {}
        for k, (a, b) in enumerate(enc["offset_mapping"]):
            if k and b > a:
                while t[a].isspace() and a < b:
                    a += 1
                unit = next(i for i, (x, y) in enumerate(places) if x <= a < y)
                loss[unit] = loss.get(unit, 0) - float(logp[k - 1, ids[0, k]])
        want.append([loss[i] for i in np.flatnonzero(~r.removed)])
    assert float(ds["loss_original"][0]) == pytest.approx(np.mean(want[0]), rel=1e-4)
    assert float(ds["loss_removed"][0]) == pytest.approx(np.mean(want[1]), rel=1e-4)
    assert float(ds["difference_per_removed"][0]) == pytest.approx((np.sum(want[1]) - np.sum(want[0])) / 3, rel=1e-3)
    assert int(ds["n_surviving"][0]) == 8
    ti.check(ds)


def test_nothing_deleted_costs_nothing_and_everything_is_nan():
    ds = ti.surviving_loss(tiny(), [remove("owl river", "articles"), remove("the of", "stop words")])
    assert float(ds["difference"][0]) == 0
    assert np.isnan(ds["loss_removed"][1])
    assert int(ds["n_surviving"][1]) == 0
    with pytest.raises(ValueError, match="removals"):
        ti.surviving_loss(tiny(), [])


def test_a_text_that_is_cut_off_compares_what_both_versions_hold():
    text = "the river and the moon " * 12
    ds = ti.surviving_loss(tiny(), [remove(text, "articles")], max_tokens=20)
    assert 0 < int(ds["n_surviving"][0]) < 15
    assert 0 < int(ds["n_removed"][0]) < 12


# -- items ----------------------------------------------------------------------------------------------------
ITEMS = [
    ti.Item("the river to the", ("north", "in"), 0), ti.Item("and the moon", ("is", "rises", "to"), 2),
    ti.Item("a", ("b", "c"), 1),
]  # fmt: skip


@pytest.mark.parametrize("score", ["letter", "option", "option_mean"])
def test_logprobs_equal_brute_force(score):
    from tokinterp.measurements.multiple_choice import item_prompt

    model = tiny()
    ds = ti.multiple_choice(model, ITEMS[1:2] if score == "letter" else ITEMS, score=score)
    ti.check(ds)
    for n, item in enumerate(ITEMS[1:2] if score == "letter" else ITEMS):
        text = item_prompt(item, letters=score == "letter")
        context = len(model.tokenizer(text)["input_ids"])
        for k, option in enumerate(item.options):
            ids = model.tokenizer(f"{text} {'ABC'[k] if score == 'letter' else option}")["input_ids"]
            logp = model.lm(torch.tensor([ids])).logits[0].detach().log_softmax(-1)
            parts = [float(logp[i - 1, ids[i]].detach()) for i in range(context, len(ids))]
            want = np.mean(parts) if score == "option_mean" else np.sum(parts)
            assert float(ds["logprob"][n, k]) == pytest.approx(want, abs=1e-4)
    filled = np.nan_to_num(ds["logprob"].values, nan=-np.inf)
    assert (ds["choice"] == filled.argmax(1)).all()
    assert ((ds["margin"] > 0) == (ds["correct"] == 1)).all()


def test_long_items():
    long = [*ITEMS, ti.Item("the owl " * 60, ("a", "b"), 0)]
    with pytest.raises(ValueError, match=r"item 3 has .* tokens, tiny-llama takes 64"):
        ti.multiple_choice(tiny(), long, score="option")
    ds = ti.multiple_choice(tiny(), long, score="option", on_long="skip")
    assert int(ds["choice"][3]) == -1
    assert np.isnan(ds["correct"][3])


def write_mmlu(folder):
    (folder / "test").mkdir(parents=True)
    head = "question,choice0,choice1,choice2,choice3,answer\n"
    (folder / "test" / "anatomy_test.csv").write_text(head + '"Which, of these?",w,x,y,z,2\nSecond,w,x,y,z,0\n')
    (folder / "test" / "virology_test.csv").write_text("No header?,w,x,y,z,D\n")


def test_mmlu_from_folder_and_tar(tmp_path):
    write_mmlu(tmp_path / "mmlu")
    with tarfile.open(tmp_path / "mmlu.tar.xz", "w:xz") as tar:
        tar.add(tmp_path / "mmlu", "mmlu")
    for path in (tmp_path / "mmlu", tmp_path / "mmlu.tar.xz"):
        items = ti.read_mmlu(path)
        assert [i.answer for i in items] == [2, 0, 3]
        assert items[0] == ti.Item("Which, of these?", ("w", "x", "y", "z"), 2, "anatomy")
        assert len(ti.read_mmlu(path, subjects=["virology"])) == 1
        assert len(ti.read_mmlu(path, limit=1)) == 2
        with pytest.raises(ValueError, match="no items"):
            ti.read_mmlu(path, split="val")
    (tmp_path / "mmlu" / "test" / "bad_test.csv").write_text("q,a,b,c,d,7\n")
    with pytest.raises(ValueError, match="item 1: 6 columns"):
        ti.read_mmlu(tmp_path / "mmlu")
    with pytest.raises(FileNotFoundError):
        ti.read_mmlu(tmp_path / "nothing")


def test_accuracy_beside_its_controls():
    ds = ti.removal_accuracy(
        tiny(), ITEMS, {"articles": "articles", "mine": lambda t: t.replace("the ", "")}, score="option", controls=2
    )
    ti.check(ds)
    assert ds["variant"].values.tolist() == ["articles", "mine"]
    assert float(ds["removal_rate"][0]) == pytest.approx(4 / 8)
    edited = ti.multiple_choice(tiny(), ITEMS, score="option", edit=lambda t: remove(t, "articles").text)
    np.testing.assert_array_equal(ds["correct"][0], edited["correct"])
    assert (ds["p"] <= 1).all()
