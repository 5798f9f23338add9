"""Kinds of settings: what is taken as what, and what is refused before the work."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from tiny import tiny

from tokinterp.settings import (
    check,
    checked,
    choose,
    count,
    kind_of,
    mapping,
    names,
    number,
    numbered,
    one_of,
    pair,
    several,
)
from tokinterp.text.removal import remove


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
        (pair(count(1), count(1)), [1, 0]), (numbered("layer"), [1.5]), (numbered("layer"), 10**400),
        (several(count(1), 2), [1]),
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


def test_a_dictionary_holds_what_its_annotation_says():
    assert kind_of("Mapping[str, Sequence[float]]")("x", {"a": [1]}) == {"a": [1.0]}
    for wrong in ({"a": 1}, {"a": ["b"]}, {1: [1.0]}):
        with pytest.raises(ValueError, match=r"^x=\{"):
            kind_of("Mapping[str, Sequence[float]]")("x", wrong)
    assert kind_of("Mapping[str, Any]")("x", {"a": object}) == {"a": object}


@checked()
def shown(ds: xr.Dataset, colour: str = "x", layers: list[int] | None = None, k: str = "a") -> None:
    """Refuses in its own words, and lets xarray refuse."""
    ds["x"].sel(k=k)
    if layers == [7]:
        ds["x"].sel(layer=layers)
    if layers == [9]:
        raise ValueError("give layers=[1]")
    if colour not in ds:
        raise ValueError(f"name={colour!r}: no variable {colour!r}: there are x")
    if layers:
        raise ValueError(f"x was not measured at layer {layers!r}: there are 0, 1")
    raise ValueError("name='y': no variable 'y': there are x")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"colour": "lost"}, r"^colour='lost': no variable 'lost': there are x$"),
        ({"layers": [5]}, r"^layers=\[5\]: x was not measured at layer \[5\]: there are 0, 1$"),
        ({"layers": [7]}, r"^layers=\[7\]: there are layer 0, 1$"),
        ({"layers": [9]}, r"^give layers=\[1\]$"),
        ({"k": "bb"}, r"^k='bb': there are k a, b; did you mean 'b'\?$"),
        ({}, r"^ds=a Dataset .*: no variable 'y': there are x$"),
    ],
)
def test_what_is_refused_inside_is_said_of_the_argument_given(given, said):
    ds = xr.Dataset({"x": (("layer", "k"), np.ones((2, 2)))}, {"layer": [0, 1], "k": ["a", "b"]})
    with pytest.raises(ValueError, match=said):
        shown(ds, **given)


def test_options_that_many_functions_share_are_checked_as_if_they_were_written_out():
    """Else a wrong one is refused by a function that the user never called, after the work, or by none."""
    from tokinterp.behaviour import surviving_loss
    from tokinterp.fillers import cell_clusters, insert

    model = tiny()
    with pytest.raises(TypeError, match=r"^surviving_loss has no 'stor'; did you mean 'store'\?; .*progress$"):
        surviving_loss(model, [remove("the sky", "articles")], stor="a.zarr")
    with pytest.raises(ValueError, match=r"^batch_tokens='a': give a whole number"):
        surviving_loss(model, [remove("the sky", "articles")], batch_tokens="a")
    with pytest.raises(TypeError, match=r"^insert has no 'kind'; did you mean 'kinds'"):
        insert(model, kind="dots")
    with pytest.raises(ValueError, match=r"^seed=4294967296: give a whole number of at most 4294967295"):
        cell_clusters(model, seed=2**32)
    with pytest.raises(TypeError, match="decorated has no parameter 'nonsense'"):

        @checked(nonsense=count())
        def decorated(a):
            return a
