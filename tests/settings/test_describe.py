"""Descriptions of settings: different values differ, equal ones are the same, code counts."""

import json
import math
import re
from functools import partial

import numpy as np
import pytest
import torch
from tiny import Norms

import tokinterp as ti
from tokinterp.settings.describe import describe, digest


# -- settings -------------------------------------------------------------------------------------------------
def test_different_values_have_different_descriptions_and_equal_ones_the_same():
    class Slots:
        __slots__ = ("a",)

        def __init__(self, a):
            self.a = a

    class Deep:
        def __init__(self, n, end):
            self.inner = Deep(n - 1, end) if n else end

    def closing(k):
        return lambda x: k * x

    one, two = (lambda x: x + 1), (lambda x: x + 2)
    kinds = [
        lambda: 1.0, lambda: 1, lambda: True, lambda: "1", lambda: None, lambda: float("nan"), lambda: "nan",
        lambda: math.inf, lambda: slice(1, 2), lambda: "slice(1, 2, None)", lambda: {"!slice": [1, 2, None]},
        lambda: Slots(1), lambda: Slots(2), lambda: Deep(9, 1), lambda: Deep(9, 2), lambda: closing(1),
        lambda: closing(2), lambda: one, lambda: two, lambda: partial(one, x=1), lambda: partial(one, x=2),
        lambda: partial(two, x=1), lambda: Slots(1).__init__, lambda: np.arange(3), lambda: np.arange(3.0),
        lambda: np.array(["a", "b"], object), lambda: np.array(["a", "c"], object), lambda: torch.arange(3),
        lambda: torch.arange(3.0), lambda: torch.arange(3.0, dtype=torch.bfloat16), lambda: {1: 2}, lambda: {"1": 2},
        lambda: {"b", "a"}, lambda: ["a", "b"], lambda: re.compile("a"), lambda: re.compile("b"), lambda: b"a",
        lambda: np.linalg.norm, lambda: np.linalg.det, lambda: np.random.default_rng(0),
        lambda: np.random.default_rng(1), lambda: list(range(5000)), lambda: list(range(1, 5001)),
        lambda: len, lambda: max,
        lambda: "x".join, lambda: "y".join, lambda: Slots, lambda: Deep, lambda: torch.float32, lambda: torch.float64,
    ]  # fmt: skip
    found = [json.dumps(describe(make()), sort_keys=True) for make in kinds]
    assert len(set(found)) == len(found)
    assert found == [json.dumps(describe(make()), sort_keys=True) for make in kinds]
    assert all(len(text) < 2100 for text in found)
    assert describe({"b": 1, "a": {3, 2}}) == describe({"a": {2, 3}, "b": 1})
    assert describe(np.float32(0.5)) == 0.5
    with pytest.raises(TypeError, match=r"a setting holds a builtins\.generator"):
        describe(n for n in range(3))


def written(text, **names):
    """What a file with this text defines last."""
    space = {"Measurement": ti.Measurement, "Norms": Norms, "np": np, "torch": torch, "__name__": "user", **names}
    exec(text, space)
    return [v for k, v in space.items() if k not in names][-1]


def test_globals_helpers_and_defaults_of_a_function_count():
    text = "def helper(x, p={p}):\n    return {sign}x * p\ndef f(x):\n    return k * helper(x)"
    texts = {(p, sign): text.format(p=p, sign=sign) for p in (1, 2) for sign in ("", "-")}
    found = [digest(written(t, k=k)) for t in texts.values() for k in (1, 2)]
    assert len(set(found)) == 8
    assert digest(written(texts[1, ""], k=1, unused=5)) == found[0]
