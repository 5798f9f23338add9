"""Augmented readings: which tokens stay, at what rate others change, and on what the draws depend."""

import numpy as np
import pytest

import tokinterp as ti
from tokinterp.text.augment import augment_prompts


def prompts(n=4, length=400):
    return ti.Prompts.from_ids([np.arange(1000 * i + 5, 1000 * i + 5 + length) for i in range(n)])


@pytest.mark.parametrize("kind", ["delete", "replace", "swap"])
def test_tokens_come_from_where_it_is_said(kind):
    given = prompts()
    one, two = augment_prompts(given, rate=0.2, kind=kind)
    assert one.hash != two.hash
    for i in range(len(given)):
        ids, new = given.ids(i), one.ids(i)
        origin = one.origin[one.starts[i] : one.starts[i + 1]]
        same = new == ids[origin]
        if kind == "delete":
            assert same.all()
            assert (np.diff(origin) > 0).all()
            assert abs(1 - len(new) / len(ids) - 0.2) < 0.08
        elif kind == "replace":
            assert origin.tolist() == list(range(400))
            assert abs((~same).mean() - 0.2) < 0.08
            assert np.isin(new, given.token_ids).all()
        else:
            assert same.all()
            assert sorted(origin.tolist()) == list(range(400))
            assert 0.2 < (origin != np.arange(400)).mean() < 0.45


def test_draws_depend_on_seed_reading_and_ids_alone():
    given = prompts()
    one = augment_prompts(given, q=1, seed=3)[0]
    backwards = augment_prompts(given[[3, 1]], q=1, seed=3)[0]
    assert backwards.ids(0).tolist() == one.ids(3).tolist()
    assert backwards.ids(1).tolist() == one.ids(1).tolist()
    assert augment_prompts(given, q=1, seed=4)[0].ids(0).tolist() != one.ids(0).tolist()


def test_one_token_is_always_left():
    given = ti.Prompts.from_ids([[5], [7, 8]])
    for reading in augment_prompts(given, q=30, rate=0.95):
        assert (np.asarray(reading.lengths) >= 1).all()


def test_special_tokens_stay(bundled):
    given = ti.Prompts.from_texts(["The river runs to the sea."] * 2, bundled)
    for kind in ("delete", "replace", "swap"):
        for reading in augment_prompts(given, rate=0.9, kind=kind):
            assert reading.ids(0)[0] == given.ids(0)[0]
            assert reading.special(0).tolist() == [True] + [False] * (reading.lengths[0] - 1)


def test_bad_input_is_one_line():
    for options, message in (({"rate": 1.0}, "rate=1.0"), ({"q": 0}, "q=0"), ({"kind": "deleet"}, "kind='deleet'")):
        with pytest.raises(ValueError, match=message):
            augment_prompts(prompts(1, 3), **options)
