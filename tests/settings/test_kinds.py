"""Kinds of settings: the value as it is used, or one line that names parameter, value and way out."""

import numpy as np
import pytest
import torch

from tokinterp.settings.kinds import Refused, like, of, refuse, short

EVEN = of("an even number", lambda v: isinstance(v, int | np.integer) and v % 2 == 0, int)
WORD = of("a word", lambda v: isinstance(v, str), wrong=TypeError)


def test_a_value_is_returned_as_it_is_used():
    found = EVEN("n", np.int64(4))
    assert (found, type(found)) == (4, int)
    assert (EVEN | WORD)("n", "x") == "x"


def test_what_is_refused_is_named_with_the_way_out():
    with pytest.raises(ValueError, match=r"^n=3: give an even number$"):
        EVEN("n", 3)
    with pytest.raises(TypeError, match=r"^w=3: give a word$"):
        WORD("w", 3)
    with pytest.raises(ValueError, match=r"^n=3.5: give an even number, or a word$"):
        (EVEN | WORD)("n", 3.5)
    with pytest.raises(ValueError, match=r"^w=the class str: give a word$"):
        of("a word", lambda v: True)("w", str)
    with pytest.raises(ValueError, match=r"^k=\[1\]: too short$"):
        refuse("k", [1], "too short")

    def own(value):
        raise Refused("look again")

    with pytest.raises(ValueError, match=r"^s='x': look again$"):
        of("anything", own)("s", "x")


def test_values_are_shown_on_one_short_line():
    assert short(torch.zeros(2, 3)) == "a Tensor of shape (2, 3)"
    assert short(np.float64(0.5)) == "0.5"
    assert short("a\nb") == "'a\\nb'"
    long = short(list(range(100)))
    assert len(long) == 60
    assert long.endswith(" ...")
    assert short(object()) == "a object"


def test_a_close_word_is_offered():
    assert like("trunsplant", ["deletion", "transplant"]) == "; did you mean 'transplant'?"
    assert like("xyz", ["deletion"]) == ""
