"""Deletions beside their controls: what is compared with what."""

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.stats import binomtest
from tiny import tiny

import tokinterp as ti
from tokinterp.behaviour import removal as removal_loss
from tokinterp.text.removal import find_units, remove

ITEMS = [
    ti.behaviour.Item("the river to the", ("north", "in"), 0), ti.behaviour.Item("and the moon", ("is", "rises",
    "to"), 2),
    ti.behaviour.Item("a", ("b", "c"), 1),
]  # fmt: skip


QUESTIONS = [f"the owl and a fox number {n} in the wood of an elm saw the moon" for n in range(60)]


@pytest.fixture
def answers(monkeypatch):
    """Answers that depend on the edited question alone; every call is written down."""
    calls = []

    def answered(model, items, **_):
        n = len({i.subject for i in items})
        texts = [i.question for i in items]
        correct = np.array([sum(t.encode()) % 7 < (5 if k < n else 3) for k, t in enumerate(texts)], float)
        calls.extend((texts[a : a + n], correct[a : a + n]) for a in range(0, len(items), n))
        coords = {"prompt": np.arange(len(items)), "subject": ("prompt", [i.subject for i in items])}
        return xr.Dataset({"correct": ("prompt", correct)}, coords, attrs={"prompts": "x", "fingerprint": "x"})

    monkeypatch.setattr(removal_loss, "multiple_choice", answered)
    monkeypatch.setattr(removal_loss, "stamped", lambda ds, *_, **__: ds)
    return calls


def exact(a, b):
    """McNemar's exact test by the library's binomial test."""
    won, lost = int(((a == 0) & (b == 1)).sum()), int(((a == 1) & (b == 0)).sum())
    return binomtest(won, won + lost).pvalue


def test_each_test_compares_what_its_name_says(answers):
    items = [ti.behaviour.Item(q, ("x", "y"), 0, q) for q in QUESTIONS]
    ds = ti.behaviour.removal_accuracy(tiny(), items, ["articles"], controls=3)
    (whole, before), (_, after), *controls = answers
    assert whole == QUESTIONS
    assert len(controls) == 2 * 3
    controls, same = controls[:3], controls[3:]
    assert float(ds["accuracy"][0]) == pytest.approx(after.mean())
    assert float(ds["accuracy_control"][0]) == pytest.approx(np.mean([c.mean() for _, c in controls]))
    p, p_control = exact(before, after), exact(controls[0][1], after)
    assert p != pytest.approx(p_control, rel=0.1)
    assert float(ds["p"][0]) == pytest.approx(p)
    assert float(ds["p_control"][0]) == pytest.approx(p_control)
    assert float(ds["p_class_control"][0]) == pytest.approx(exact(same[0][1], after))
    assert int(ds["n_class_control"][0]) == 60
    assert float(ds.attrs["accuracy_original"]) == pytest.approx(before.mean())


def test_controls_delete_as_many_units_elsewhere_and_each_others(answers):
    items = [ti.behaviour.Item(q, ("x", "y"), 0, q) for q in QUESTIONS]
    ti.behaviour.removal_accuracy(tiny(), items, ["articles"], controls=2)
    first, n = answers[2:], len(answers)
    ti.behaviour.removal_accuracy(tiny(), items, ["articles"], controls=2, seed=1)
    again = answers[n + 2]
    (_, _), (left, _), (one, _), (two, _) = answers[:4]
    count = [[len(find_units(t)[0]) for t in texts] for texts in (left, one, two)]
    assert count[0] == count[1] == count[2]
    for a, b in ((left, one), (one, two), (first[0][0], again[0])):
        assert np.mean([x != y for x, y in zip(a, b, strict=True)]) > 0.9
    kept = [sum(w in t.split() for t in one for w in ("the", "a", "an")) for one in (left, one)]
    assert kept[0] == 0
    assert kept[1] > 0


def test_class_controls_delete_other_function_words_and_nothing_else(answers):
    items = [ti.behaviour.Item(q, ("x", "y"), 0, q) for q in QUESTIONS]
    ti.behaviour.removal_accuracy(tiny(), items, ["articles"], controls=1)
    (_, _), (left, _), (anywhere, _), (same, _) = answers

    def content(text):
        units, classes = find_units(text)
        return [text[a:b] for (a, b), c in zip(units, classes, strict=True) if c == 0]

    assert [content(t) for t in same] == [content(t) for t in left] == [content(q) for q in QUESTIONS]
    assert np.mean([a != b for a, b in zip(same, left, strict=True)]) > 0.8
    assert np.mean([content(t) != content(q) for t, q in zip(anywhere, QUESTIONS, strict=True)]) > 0.8


@pytest.mark.parametrize(("edit_options", "number"), [(False, 60), (True, 0)])
def test_options_of_which_nothing_is_left_have_no_control_within_their_class(answers, edit_options, number):
    items = [ti.behaviour.Item(q, ("the", "an elm"), 0, q) for q in QUESTIONS]
    ds = ti.behaviour.removal_accuracy(tiny(), items, ["articles"], edit_options=edit_options)
    assert int(ds["n_class_control"][0]) == number


def test_surviving_loss_equals_brute_force():
    model, text = tiny(), "the river runs to the north, and a river ends"
    r = remove(text, "articles")
    ds = ti.behaviour.surviving_loss(model, [r])
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
    ds = ti.behaviour.surviving_loss(tiny(), [remove("owl river", "articles"), remove("the of", "stop words")])
    assert float(ds["difference"][0]) == 0
    assert np.isnan(ds["loss_removed"][1])
    assert int(ds["n_surviving"][1]) == 0
    with pytest.raises(ValueError, match="removals"):
        ti.behaviour.surviving_loss(tiny(), [])


def test_a_text_that_is_cut_off_compares_what_both_versions_hold():
    text = "the river and the moon " * 12
    ds = ti.behaviour.surviving_loss(tiny(), [remove(text, "articles")], max_tokens=20)
    assert 0 < int(ds["n_surviving"][0]) < 15
    assert 0 < int(ds["n_removed"][0]) < 12


def test_accuracy_beside_its_controls():
    ds = ti.behaviour.removal_accuracy(
        tiny(), ITEMS, {"articles": "articles", "mine": lambda t: t.replace("the ", "")}, score="option", controls=2
    )
    ti.check(ds)
    assert ds["variant"].values.tolist() == ["articles", "mine"]
    assert float(ds["removal_rate"][0]) == pytest.approx(4 / 8)
    edited = ti.behaviour.multiple_choice(tiny(), ITEMS, score="option", edit=lambda t: remove(t, "articles").text)
    np.testing.assert_array_equal(ds["correct"][0], edited["correct"])
    assert (ds["p"] <= 1).all()
