"""What an argument may be: one check per kind of setting, applied to a function or a class by ``checked``.

A refusal is one line that names the parameter, the value and what to give instead, and it comes before anything is
computed.  ``checked`` takes the kind of a parameter from its name (``LIKE``: layers, seed) or its annotation, unless it
is given one:

>>> @checked(share=number(0, 1))
... def part(values: Sequence[int], share: float = 0.5, seed: int = 0) -> float:
...     return share
>>> part([1, 2], share=float("nan"))
Traceback (most recent call last):
    ...
ValueError: share=nan: give a number from 0 to 1
"""

from __future__ import annotations

import ast
import functools
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch

from .kinds import Kind, Refused, like, of, refuse, short

T = TypeVar("T", bound=Callable[..., Any])


def _has(*attributes: str) -> Callable[[Any], bool]:
    return lambda value: all(hasattr(value, name) for name in attributes)


# -- kinds ----------------------------------------------------------------------------------------------------
def _range(low: float | None, high: float | None, above: float | None, below: float | None) -> str:
    if above is not None and below is not None:
        return f" between {above:g} and {below:g}"
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}"
    parts = [("of at least", low), ("above", above), ("of at most", high), ("below", below)]
    return "".join(f" {words} {limit:g}" for words, limit in parts if limit is not None)


def count(low: int = 0, high: int | None = None, also: str = "") -> Kind:
    """A whole number: int or numpy integer, no bool, no float."""

    def take(value: Any) -> int:
        if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
            raise Refused
        if value < low or (high is not None and value > high):
            raise Refused
        return int(value)

    return Kind(f"a whole number{_range(low, high, None, None) if high is None or high < 2**53 else ''}{also}", take)


def number(
    low: float | None = None, high: float | None = None, *, above: float | None = None, below: float | None = None
) -> Kind:
    """A finite number in a range."""
    limits = (low, high, above, below)

    def take(value: Any) -> float:
        if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
            raise Refused
        outside = (low is not None and value < low) or (high is not None and value > high)
        if outside or (above is not None and value <= above) or (below is not None and value >= below):
            raise Refused
        if not np.isfinite(value) if not isinstance(value, int) else abs(value) > 2**1000:
            raise Refused
        return float(value)

    return Kind(f"a {'finite ' if limits == (None,) * 4 else ''}number{_range(*limits)}", take)


def one_of(*known: Any) -> Kind:
    """One of some words (or other fixed values)."""
    said = " or ".join(map(repr, known)) if len(known) < 3 else f"one of {', '.join(map(repr, known))}"

    def take(value: Any) -> Any:
        for one in known:
            if type(value) is type(one) and value == one:
                return one
        close = like(value, [k for k in known if isinstance(k, str)]) if isinstance(value, str) else ""
        raise Refused(f"give {said}{close}" if close else "")

    return Kind(said, take)


def names(*known: str, least: int = 0) -> Kind:
    """Several of some words, as a tuple; one word alone stands for itself."""

    def take(value: Any) -> tuple[str, ...]:
        given = (value,) if isinstance(value, str) else tuple(_items(value, "names"))
        wrong = [v for v in given if v not in known or not isinstance(v, str)]
        if wrong:
            raise Refused(f"{short(wrong[0])} is none of {', '.join(map(repr, known))}{like(wrong[0], known)}")
        if len(set(given)) < max(least, len(given)):
            raise Refused
        return given

    return Kind(f"one or more of {', '.join(map(repr, known))}, each once", take)


def several(kind: Kind, least: int = 0, *, ascending: bool = False, once: bool = False) -> Kind:
    """Several values of a kind, as a list (a tuple stays one); no string, mapping, table or single value."""

    def take(value: Any) -> Any:
        given = _items(value, kind.says)
        if isinstance(value, set | frozenset):
            if any(isinstance(v, str) for v in given):
                raise Refused("a set has no order: give a list")
            given = sorted(given)
        out = [kind.take(v) for v in given]
        if ascending and (out != sorted(set(out)) or not out):
            raise Refused
        if once and len({*out}) < len(out):
            raise Refused("give each once")
        if len(out) < least:
            raise Refused
        return tuple(out) if isinstance(value, tuple) else out

    return Kind(f"{'an ascending' if ascending else 'a'} list, each {kind.says}", take)


def _items(value: Any, what: str) -> list[Any]:
    """Return the entries of a list, tuple, range, set, array or iterator; nothing that only looks like one."""
    if isinstance(value, str | bytes | bytearray | Mapping) or hasattr(value, "data_vars") or hasattr(value, "read"):
        raise Refused
    if hasattr(value, "columns") or isinstance(value, type) or not isinstance(value, Iterable):
        if isinstance(value, int | float | np.number) and not isinstance(value, bool):
            raise Refused(f"write [{value}] for a single one; a list is needed, each {what}")
        raise Refused
    if getattr(value, "ndim", 1) != 1:
        raise Refused
    return value.tolist() if isinstance(value, np.ndarray | torch.Tensor) else list(value)


def pair(*kinds: Kind) -> Kind:
    """A tuple of so many values, each of its own kind."""

    def take(value: Any) -> tuple[Any, ...]:
        given = _items(value, "of its kind")
        if len(given) != len(kinds) or isinstance(value, set | frozenset):
            raise Refused
        return tuple(k.take(v) for k, v in zip(kinds, given, strict=True))

    return Kind(f"({', '.join(k.says for k in kinds)})", take)


def numbered(what: str) -> Kind:
    """Layers, blocks or prompts by their numbers, each once: ``[0, 4]``."""

    def take(value: Any) -> list[int]:
        given = _items(value, f"the number of a {what}")
        if any(isinstance(v, bool | np.bool_) or not isinstance(v, int | np.integer) for v in given):
            raise Refused
        if any(v < 0 for v in given):
            raise Refused(f"{what}s are counted from 0, and negative numbers do not count from the end")
        if not given:
            raise Refused(f"an empty list names no {what}; None means all")
        return [int(v) for v in given]

    return Kind(f"a list of whole numbers of at least 0, such as [0, 4]", take)  # noqa: F541


def mapping(value_kind: Kind | None = None) -> Kind:
    """A dictionary with strings as keys."""

    def take(value: Any) -> Any:
        named = isinstance(value, Mapping) and not hasattr(value, "data_vars") and not hasattr(value, "columns")
        if not named or not all(isinstance(k, str) for k in value):
            raise Refused
        if value_kind is None:
            return value
        return {k: value_kind.take(v) for k, v in value.items()}

    return Kind("a dictionary with strings as keys" + (f", each {value_kind.says}" if value_kind else ""), take)


def instance(*classes: str) -> Kind:
    """An object of a class, or of one of several, known by name (so that nothing is imported for it)."""

    def take(value: Any) -> Any:
        if isinstance(value, type) and classes != ("type",):
            raise Refused(f"that is a class; write {value.__name__}(...)")
        mro: Any = type(value).__mro__
        if not {c.__name__ for c in mro} & {*classes}:
            raise Refused
        return value

    said = (f"{'an' if c[0] in 'AEIO' else 'a'} {c}{f' ({SOURCES[c]})' if c in SOURCES else ''}" for c in classes)
    return Kind(" or ".join(said), take, TypeError)


SOURCES = {
    "Prompts": "ti.Prompts.from_texts(texts, model)", "ContextDecoder": "ti.fit_context_decoder",
    "LinearMaps": "LinearMaps.load(path)", "TunedLens": "ti.fit_tuned_lens or TunedLens.load(path)",
    "TokenProbes": "ti.fit_probes or TokenProbes.load(path)", "Item": "ti.read_mmlu", "Lexicon": "Lexicon.of(prompts)",
    "Cases": "ti.split_cases", "TokenSpans": "spans.align(prompts)", "Removal": "tokinterp.text.remove(text, what)",
    "Target": "Target.make(template, model)",
}  # fmt: skip
"""Where objects of a class come from."""


def _take_result(value: Any) -> Any:
    kinds = {c.__name__ for c in type(value).__mro__}
    if "DataTree" in kinds:
        if not len(value.data_vars):
            inside = ", ".join(map(repr, value.children)) or "nothing"
            raise Refused(f"a whole run holds several results: give one of {inside}, for example run['lens']")
        return value.to_dataset()
    if "Dataset" not in kinds:
        raise Refused
    return value


def _take_texts(value: Any) -> Any:
    """Take a list of texts; what holds texts among other things says how to get at them."""
    kind = type(value).__name__
    if isinstance(value, str | bytes):
        raise Refused("one string is not a list of texts: write [text] for a single one")
    if isinstance(value, Mapping) or hasattr(value, "columns") or hasattr(value, "column_names"):
        columns: Any = value if isinstance(value, Mapping) else getattr(value, "column_names", None)
        named = [str(c) for c in (getattr(value, "columns", ()) if columns is None else columns)]
        field = "text" if "text" in named or not named else named[0]
        name = "df" if kind == "DataFrame" else "texts"
        raise Refused(f"a {kind} is not a list of texts: give one column of it, {name}[{field!r}]")
    if hasattr(value, "data_vars") or isinstance(value, type):
        raise Refused
    if hasattr(value, "read"):
        raise Refused("an open file is not a list of texts: write Prompts.from_file(path, model)")
    if isinstance(value, set | frozenset):
        raise Refused("a set has no order: give a list of texts")
    if kind == "Prompts" or getattr(value, "ndim", 1) != 1 or not isinstance(value, Iterable):
        raise Refused
    return value.tolist() if isinstance(value, np.ndarray) else value


def _take_device(value: Any) -> Any:
    if isinstance(value, torch.device):
        return value
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Refused
    try:
        torch.device(value)
    except RuntimeError:
        raise Refused from None
    return value


def _encodes(name: str) -> bool:
    try:
        return "a".encode(name) is not None
    except (LookupError, ValueError):
        return False


anything = Kind("anything", lambda value: value)
none = of("None", lambda v: v is None)
flag = of("True or False", lambda v: isinstance(v, bool | np.bool_), bool)
string = of("a string", lambda v: isinstance(v, str), str)
path = of("a path", lambda v: isinstance(v, str | os.PathLike) and str(v).strip() and "\0" not in str(v))
function = Kind("a function", of("", callable).take)
integer = count(-(2**63), 2**63 - 1)
ascending = several(count(1), ascending=True)
ranks = Kind(
    "ascending numbers from 1 on, such as (1, 10, 30)",
    lambda v: ascending.take([v] if isinstance(v, int | np.integer) else v),
)
scales = Kind(
    "ascending powers of two from 2 on, such as (2, 4, 8)",
    of("", lambda v: all(n > 1 and not n & (n - 1) for n in ascending.take(v)), ascending.take).take,
)
seed = count(0, 2**63 - 1, " from 0 on")
fraction = number(0, 1)
level = number(above=0, below=1)
positive = number(above=0)
result = Kind("a Dataset: one result, for example run['lens']", _take_result, TypeError)
model = of("a model: ti.load_model(name) or ti.wrap(lm)", _has("info", "run"), None, TypeError)
probes = of("probes from ti.fit_probes or TokenProbes.load", _has("layers", "offsets", "labels"), None, TypeError)
texts = Kind("a list of texts", _take_texts, TypeError)
prompts = instance("Prompts")
device = Kind("a device such as 'cpu', 'cuda' or 'cuda:1'", _take_device)
share = Kind(
    "(i, n): whole numbers, i from 0 to n - 1",
    of("", lambda v: (i := pair(count(), count(1)).take(v))[0] < i[1], pair(count(), count(1)).take).take,
)
dtype = of(
    "'float32', 'bfloat16', 'float16' or 'auto'",
    lambda v: isinstance(getattr(torch, v, None) if isinstance(v, str) else v, torch.dtype) or str(v) == "auto",
)
encoding = of("the name of an encoding, such as 'utf-8' or 'latin-1'", lambda v: isinstance(v, str) and _encodes(v))
layers = numbered("layer")
blocks = numbered("block")
exclude = names("special", "massive")

LIKE: dict[str, Kind] = {
    "layers": layers, "other_layers": layers, "blocks": blocks, "seed": seed, "level": level, "exclude": exclude,
    "batch_tokens": count(1), "max_tokens": count(1), "max_bytes": count(1), "n_boot": count(1),
    "offsets": several(integer, once=True),
    "rule": one_of("norm", "sun2024"), "factor": number(above=1), "small": one_of("error", "nan"),
    "encoding": encoding, "scales": scales, "device": device, "dtype": dtype, "texts": texts,
    "store": path, "path": path, "file": path, "folder": path,
}  # fmt: skip
"""Kinds that go with a name wherever it is used."""
ALIASES: dict[str, Kind] = {
    "Any": anything, "object": anything, "int": count(0), "float": number(), "str": string, "bool": flag, "None": none,
    "Path": path, "Callable": function, "Mapping": mapping(), "dict": mapping(), "Model": model, "HookedLM": model,
    "Dataset": result, "Tensor": instance("Tensor"), "ndarray": instance("ndarray"), "Probes": probes,
    "Axes": instance("Axes", "_AxesBase"), "Positions": anything, "Measurements": anything,
    "Other": result | mapping(result),
    "Prompts": prompts, "Prompts | Sequence[str]": prompts | texts, "Sequence[str] | Prompts": prompts | texts,
    "Edit": instance("SiteEdit", "KnockOut", "KeepOnly"),
}  # fmt: skip
"""Kinds of annotations; every other name is that of a class."""


def kind_of(annotation: str) -> Kind:
    """Return the kind that an annotation stands for."""
    return ALIASES.get(annotation) or _kind(ast.parse(annotation, mode="eval").body)


def _kind(node: ast.expr) -> Kind:
    if isinstance(node, ast.BinOp):
        parts = [_kind(n) for n in _parts(node)]
        if path in parts:  # a path is any string
            parts = [p for p in parts if p is not string]
        if any(p.says == "a DataTree" for p in parts):  # kept as it is
            parts = [instance("Dataset") if p is result else p for p in parts]
        return functools.reduce(lambda x, y: x | y, parts)
    if isinstance(node, ast.Constant):
        return none if node.value is None else _kind(ast.parse(str(node.value), mode="eval").body)
    if isinstance(node, ast.Subscript):
        outer = _name(node.value)
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if outer in ("Sequence", "Iterable", "list", "Collection"):
            return several(_kind(inner[0]))
        if outer == "tuple":
            many = isinstance(inner[-1], ast.Constant) and inner[-1].value is ...
            return several(_kind(inner[0])) if many else pair(*map(_kind, inner))
        return ALIASES.get(outer, instance(outer))
    return ALIASES.get(_name(node), instance(_name(node)))


def _parts(node: ast.expr) -> list[ast.expr]:
    return [*_parts(node.left), *_parts(node.right)] if isinstance(node, ast.BinOp) else [node]


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "object")


# -- functions ------------------------------------------------------------------------------------------------
def checked(**kinds: Kind) -> Callable[[T], T]:
    """Check the arguments of a function or of a class's constructor before its body is reached.

    Parameters
    ----------
    **kinds : Kind
        Of the parameters for which name and annotation do not say enough. None is allowed where it is the default or
        in the annotation.
    """

    def decorate(function: T) -> T:
        if isinstance(function, type):
            function.__init__ = checked(**kinds)(function.__init__)  # pyright: ignore[reportAttributeAccessIssue]
            return function  # pyright: ignore[reportReturnType]
        signature = inspect.signature(function)
        own = {n: p for n, p in signature.parameters.items() if n not in ("self", "cls")}
        if unknown := [n for n in kinds if n not in own]:
            raise TypeError(f"{function.__qualname__} has no parameter {unknown[0]!r}")
        chosen = {n: _of_parameter(n, p, kinds.get(n)) for n, p in own.items()}
        called = function.__qualname__.removesuffix(".__init__")
        free = {n for n, p in own.items() if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError as error:
                wrong = [k for k in kwargs if k not in own]
                has = [n for n in own if n not in free]
                words = f"{called} has no {wrong[0]!r}{like(wrong[0], has)}" if wrong else f"{called}: {error}"
                raise TypeError(f"{words}; it takes {', '.join(has) or 'nothing'}") from None
            given = bound.arguments
            for name in given:
                if name in chosen and name not in free:
                    given[name] = chosen[name](name, given[name])
            return function(*bound.args, **bound.kwargs)

        run.__kinds__ = chosen  # pyright: ignore[reportAttributeAccessIssue]
        return run  # pyright: ignore[reportReturnType]

    return decorate


def check(function: Callable[..., Any], **given: Any) -> None:
    """Check some arguments of a `checked` function, long before it is called.

    Examples
    --------
    >>> from tokinterp import fit_probes
    >>> check(fit_probes, method="lasso")
    Traceback (most recent call last):
    ValueError: method='lasso': give one of 'softmax', ...
    """
    for name, value in given.items():
        function.__kinds__[name](name, value)  # pyright: ignore[reportFunctionMemberAccess]


def _of_parameter(name: str, parameter: inspect.Parameter, kind: Kind | None) -> Kind:
    written = parameter.annotation
    if kind is None:
        kind = LIKE.get(name)
    if kind is None:
        kind = anything if written is parameter.empty else kind_of(written if isinstance(written, str) else "Any")
    optional = parameter.default is None or (isinstance(written, str) and "None" in written)
    if kind.says.endswith("None") or not optional or kind is anything:
        return kind
    return replace(kind | none, error=kind.error)


def choose(name: str, chosen: Iterable[int] | None, last: int, model_id: str) -> list[int]:
    """Return numbers of layers or blocks in order, each once, or all of 0..last.

    Raises
    ------
    ValueError
        If the model has no such layer or block.
    """
    if chosen is None:
        return list(range(last + 1))
    numbers = sorted(set(numbered(name.removesuffix("s"))(name, chosen)))
    if numbers[-1] > last:
        ends = " (before the first block)", " (after the last)"
        first, end = ends if name == "layers" else ("", "")
        refuse(name, chosen, f"{model_id} has {name} 0{first} to {last}{end}")
    return numbers
