"""Kinds that go by a name: what each takes, what it makes of it, and what it says to everything else."""

import numpy as np
import pytest
import torch
import xarray as xr
from tiny import Norms, tiny

from tokinterp.settings import known


@pytest.mark.parametrize(
    ("name", "given", "taken"),
    [
        ("flag", np.bool_(True), True), ("seed", np.int64(3), 3), ("fraction", 1, 1.0), ("word", "a-b_1", "a-b_1"),
        ("share", [1, 3], (1, 3)), ("device", "cuda:1", "cuda:1"), ("dtype", "bfloat16", "bfloat16"),
        ("encoding", "latin-1", "latin-1"), ("string", "é", "é"), ("texts", ("a", "b"), ("a", "b")),
        ("strings", np.array(["a", "b"]), ["a", "b"]),
    ],
)  # fmt: skip
def test_what_is_right_is_taken(name, given, taken):
    found = getattr(known, name)("x", given)
    assert found == taken
    assert type(found) is type(taken)


@pytest.mark.parametrize(
    ("name", "given", "way"),
    [
        ("flag", 1, "give True or False"), ("seed", -1, "from 0 on"), ("level", 1, "give"), ("word", "a b", "letters"),
        ("share", (3, 3), "i from 0 to n - 1"), ("device", "gpu", "a device such as"), ("dtype", "int9", "'float32'"),
        ("encoding", "utf-9", "the name of an encoding"), ("string", "\ud800", "lone surrogate"),
        ("path", " ", "a path"),
        ("texts", "one", "one string is not a list of texts"), ("texts", {"text": ["a"]}, r"texts\['text'\]"),
        ("texts", {"a", "b"}, "a set has no order"), ("strings", ["a", 3], "text 1 is int"),
        ("some_strings", [], "the list of texts is empty"), ("ranks", [3, 1], "ascending numbers"),
        ("scales", [2, 3], "powers of two"), ("model", "gpt2", r"ti.load_model\(name\)"),
        ("result", xr.DataTree.from_dict({"lens": xr.Dataset()}), "for example run"), ("result", 3, "one result"),
        ("measurements", {"a": 3}, "'a' is a int, not a measurement"), ("measurements", {}, "no measurement"),
        ("measurements", {"prompts": Norms()}, "becomes a group of the result"), ("places", [0.5], "whole numbers"),
    ],
)  # fmt: skip
def test_everything_else_is_refused_with_the_way_out(name, given, way):
    with pytest.raises((ValueError, TypeError), match=way) as caught:
        getattr(known, name)("x", given)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("x")


def test_what_is_a_model_or_a_tensor_is_taken_as_it_is():
    assert known.model("x", tiny()) is tiny()
    mask = torch.tensor([True, False])
    assert known.positions("x", mask) is mask
    assert known.positions("x", torch.tensor([1, 2])) == [1, 2]
    assert known.places("x", [1, 2]).tolist() == [1, 2]
