"""Values as JSON types that are the same in every process, for the record of what decides the numbers of a run."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Iterable
from functools import partial
from types import CodeType
from typing import Any

import numpy as np
import torch

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_DEPTH = 6


def describe(value: Any, depth: int = _DEPTH) -> Any:
    """Return a value as JSON types: small things as they are, arrays and functions as a hash of what they hold.

    A function is described by its code, defaults and captured values, objects by their attributes, six levels deep.

    Examples
    --------
    >>> describe([1, slice(2, None)])
    [1, 'slice(2, None, None)']
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, slice):
        return f"slice({value.start}, {value.stop}, {value.step})"
    if isinstance(value, torch.Tensor):
        data = value.detach().cpu().to(torch.float64).contiguous().numpy().tobytes()
        return f"tensor {tuple(value.shape)} {_digest(data)}"
    if isinstance(value, np.ndarray):
        return f"array {value.shape} {value.dtype} {_digest(np.ascontiguousarray(value).tobytes())}"
    if depth == 0:
        return type(value).__qualname__
    if isinstance(value, dict):
        return {str(k): describe(v, depth - 1) for k, v in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((describe(v, depth - 1) for v in value), key=repr)
    if isinstance(value, list | tuple | range):
        return [describe(v, depth - 1) for v in value]
    if callable(value):
        return _function(value, depth - 1)
    own = describe(vars(value), depth - 1) if hasattr(value, "__dict__") else _ADDRESS.sub("", repr(value))
    return f"{type(value).__qualname__} {_digest(repr(own).encode())}"


def _function(function: Callable[..., Any], depth: int) -> str:
    if isinstance(function, partial):
        inner = [describe(part, depth) for part in (function.func, function.args, function.keywords)]
        return f"partial {_digest(repr(inner).encode())}"
    code = getattr(function, "__code__", None)
    if code is None:  # an object with __call__
        own = describe(vars(function), depth) if hasattr(function, "__dict__") else None
        called = getattr(type(function).__call__, "__code__", None)
        return f"{type(function).__qualname__} {_digest(repr([own, _code(called)]).encode())}"
    owner = getattr(function, "__self__", None)
    inside = inspect.getclosurevars(function).nonlocals if inspect.isfunction(function) else {}
    parts = [_code(code)]
    parts += [describe(getattr(function, name, None), depth) for name in ("__defaults__", "__kwdefaults__")]
    parts += [describe(inside, depth), describe(owner, depth)]
    return f"function {getattr(function, '__qualname__', '')} {_digest(repr(parts).encode())}"


def _code(code: CodeType | None) -> Any:
    if code is None:
        return None
    consts = [_code(c) if isinstance(c, CodeType) else describe(c) for c in code.co_consts]
    return [code.co_code.hex(), code.co_names, consts]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def numbered(values: Iterable[int]) -> str:
    """Return ascending numbers in words, runs joined.

    Examples
    --------
    >>> numbered([0, 1, 2, 5, 7, 8])
    '0 to 2, 5, 7, 8'
    """
    runs: list[list[int]] = []
    for v in values:
        if runs and v == runs[-1][-1] + 1:
            runs[-1].append(v)
        else:
            runs.append([v])
    return ", ".join(f"{r[0]} to {r[-1]}" if len(r) > 2 else ", ".join(map(str, r)) for r in runs)
