"""Deletions delete what they say and nothing else."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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


def test_controls_of_other_seeds_delete_every_unit_equally_often():
    first, n_draws = remove(TEXT, "articles"), 400
    gone = np.mean([remove_random(first, seed).removed for seed in range(n_draws)], 0)
    share = first.rate
    assert np.abs(gone - share).max() < 4.5 * np.sqrt(share * (1 - share) / n_draws)
    within = np.mean([remove_random(first, seed, within="class").removed for seed in range(n_draws)], 0)
    mine = first.classes == CLASSES.index("function word")
    share = first.removed.sum() / mine.sum()
    assert np.abs(within[mine] - share).max() < 4.5 * np.sqrt(share * (1 - share) / n_draws)
    assert not within[~mine].any()
