"""Kinds of settings: what is taken as what, and what is refused before the work."""

from __future__ import annotations

import numpy as np
import pytest

from tokinterp.settings import check, checked, choose, count, mapping, names, number, numbered, one_of, pair, several


@pytest.mark.parametrize(
    ("kind", "given", "taken"),
    [
        (count(1), np.int32(3), 3), (count(0, 5), 5, 5), (number(0, below=1), 0, 0.0), (number(), np.float32(0.5), 0.5),
        (one_of("a", "b"), "b", "b"), (names("a", "b"), ["b", "a"], ("b", "a")), (names("a", "b"), "a", ("a",)),
        (pair(count(1), number(0)), [2, 0.5], (2, 0.5)), (numbered("layer"), range(3), [0, 1, 2]),
    ],
)  # fmt: skip
def test_values_are_taken_as_they_are_used(kind, given, taken):
    found = kind("x", given)
    assert found == taken
    assert type(found) is type(taken)


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (count(1), 0), (count(1), 1.5), (count(1), True), (count(0, 5), 6), (count(1), "3"), (number(0, below=1), 1),
        (number(above=0), 0), (number(), float("nan")), (number(), "0.5"), (one_of("a", "b"), "c"),
        (names("a", "b"), ["a", "c"]), (names("a", least=1), []), (pair(count(1), count(1)), [1]),
        (pair(count(1), count(1)), [1, 0]), (numbered("layer"), [1.5]), (several(count(1), 2), [1]),
        (several(count(1), ascending=True), [2, 1]), (several(count(1), once=True), [1, 1]), (mapping(count(1)), [1]),
        (mapping(count(1)), {"a": 0}),
    ],
)  # fmt: skip
def test_others_are_refused_in_one_line_that_names_the_parameter(kind, given):
    with pytest.raises((ValueError, TypeError), match=r"^x\b") as caught:
        kind("x", given)
    assert "\n" not in str(caught.value)


def test_arguments_of_a_function_are_checked_by_name_and_by_annotation():
    @checked(q=count(1))
    def f(q: int, rate: float = 0.5, name: str = "a") -> tuple:
        return q, rate, name

    assert f(np.int64(2), rate=1) == (2, 1, "a")
    for options, word in (({"q": 0}, "q=0"), ({"q": 1, "rate": "x"}, "rate='x'"), ({"q": 1, "name": 3}, "name=3")):
        with pytest.raises((ValueError, TypeError), match=word):
            f(**options)
    check(f, q=3)
    with pytest.raises(ValueError, match="q=0"):
        check(f, q=0)


def test_layers_are_those_of_the_model_in_order_and_once():
    assert choose("layers", None, 3, "m") == [0, 1, 2, 3]
    assert choose("layers", [3, 1], 3, "m") in ([3, 1], [1, 3])
    with pytest.raises(ValueError, match=r"layers=\[4\]: m has layers 0 .*to 3"):
        choose("layers", [4], 3, "m")
