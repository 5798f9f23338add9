"""Marks: ranges and flags are the same; what does not fit is refused."""

import numpy as np
import pytest
from tiny import some_prompts

from tokinterp.text.marks import in_ranges, mark


def test_ranges_are_flags_at_their_positions():
    assert in_ranges(np.array([[1, 3], [0, 0]]), [4, 2]).tolist() == [False, True, True, False, False, False]
    ranges = mark(some_prompts([4, 2]), a=[[1, 3], [0, 0]])
    assert ranges.hash == mark(some_prompts([4, 2]), a=np.array([0, 1, 1, 0, 0, 0], bool)).hash
    again = mark(ranges, b=[[0, 1], [0, 1]])
    assert list(again.marks) == ["a", "b"]
    assert list(ranges.marks) == ["a"]


@pytest.mark.parametrize("given", [[[1, 5], [0, 0]], [[-1, 2], [0, 0]], [True] * 5, [[1, 2]], [1, 2, 3, 4, 5, 6]])
def test_marks_that_do_not_fit_are_refused(given):
    with pytest.raises(ValueError, match="a=") as error:
        mark(some_prompts([4, 2]), a=given)
    assert "\n" not in str(error.value)


def test_marks_are_a_copy_and_a_range_the_wrong_way_round_is_refused():
    prompts = some_prompts((4, 5))
    given = np.zeros(9, bool)
    marked = mark(prompts, here=given)
    given[3] = True  # the user's array can still be written, and the marks stay those that the hash is of
    assert not marked.marks["here"].any()
    with pytest.raises(ValueError, match="ends before it starts"):
        mark(prompts, here=[[3, 1], [0, 2]])
