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
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar

from .kinds import (
    LARGEST,
    Kind,
    count,
    instance,
    like,
    mapping,
    names,
    number,
    numbered,
    of,
    one_of,
    pair,
    refuse,
    several,
    short,
)
from .known import (
    ALIASES,
    LIKE,
    anything,
    array,
    ascending,
    blocks,
    check_unicode,
    device,
    dtype,
    encoding,
    exclude,
    flag,
    fraction,
    function,
    integer,
    kept_texts,
    layers,
    level,
    measurements,
    model,
    none,
    path,
    places,
    positions,
    positive,
    probes,
    prompts,
    question,
    ranks,
    result,
    scales,
    seed,
    sequences,
    share,
    some_strings,
    source,
    string,
    strings,
    texts,
    tokenizer,
    whole,
    word,
    words,
)
from .said import said_of

T = TypeVar("T", bound=Callable[..., Any])

__all__ = [
    "LARGEST",
    "Kind",
    "anything",
    "array",
    "ascending",
    "blocks",
    "check",
    "check_unicode",
    "checked",
    "choose",
    "count",
    "device",
    "dtype",
    "encoding",
    "exclude",
    "flag",
    "fraction",
    "function",
    "instance",
    "integer",
    "kept_texts",
    "kind_of",
    "layers",
    "level",
    "like",
    "mapping",
    "measurements",
    "model",
    "names",
    "none",
    "number",
    "numbered",
    "of",
    "one_of",
    "options_of",
    "pair",
    "path",
    "places",
    "positions",
    "positive",
    "probes",
    "prompts",
    "question",
    "ranks",
    "refuse",
    "result",
    "scales",
    "seed",
    "sequences",
    "several",
    "share",
    "short",
    "some_strings",
    "source",
    "string",
    "strings",
    "texts",
    "tokenizer",
    "whole",
    "word",
    "words",
]  # fmt: skip


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
        if outer in ("Mapping", "dict") and _name(inner[0]) == "str":
            return mapping(None if (held := _kind(inner[1])) is anything else held)
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
        options = options_of(function)
        if unknown := [n for n in kinds if n not in (*own, *options)]:
            raise TypeError(f"{function.__qualname__} has no parameter {unknown[0]!r}")
        chosen = {n: _of_parameter(n, p, kinds.get(n)) for n, p in {**own, **options}.items()}
        called = function.__qualname__.removesuffix(".__init__")
        free = {n for n, p in own.items() if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        has = [n for n in (*own, *options) if n not in free]
        many = {n for n in free if own[n].kind is inspect.Parameter.VAR_POSITIONAL}
        places = {n for n in chosen if "a path" in chosen[n].says}

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            wrong = [k for k in kwargs if k not in has]
            try:
                bound = signature.bind(*args, **kwargs)
                if wrong and options:
                    raise TypeError(wrong[0])
            except TypeError as error:
                words = f"{called} has no {wrong[0]!r}{like(wrong[0], has)}" if wrong else f"{called}: {error}"
                raise TypeError(f"{words}; it takes {', '.join(has) or 'nothing'}") from None
            given = bound.arguments
            for name in given:
                if name in many:
                    given[name] = tuple(chosen[name](name, one) for one in given[name])
                elif name in free:
                    given[name] = {k: chosen[k](k, v) if k in options else v for k, v in given[name].items()}
                elif name in chosen:
                    given[name] = chosen[name](name, given[name])
            try:
                return function(*bound.args, **bound.kwargs)
            except (KeyError, ValueError, TypeError, OSError) as error:
                inner = {k: v for n in free - many for k, v in given.get(n, {}).items()}
                held = {n: v for n, v in given.items() if n in own and n not in free - many}
                said = said_of(error, {**held, **inner}, places)
                if said is error:
                    raise
                raise said from error

        run.__kinds__ = chosen  # pyright: ignore[reportAttributeAccessIssue]
        return run  # pyright: ignore[reportReturnType]

    return decorate


def options_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return what ``**options: Unpack[Options]`` may be, by the annotations of the dictionary's type."""
    written = [str(p.annotation) for p in inspect.signature(function).parameters.values() if p.kind is p.VAR_KEYWORD]
    if not written or not written[0].startswith("Unpack["):
        return {}
    held = inspect.unwrap(function).__globals__[written[0][7:-1]].__annotations__  # pyright: ignore[reportFunctionMemberAccess]
    return {
        n: inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, annotation=getattr(a, "__forward_arg__", a))
        for n, a in held.items()
    }


def check(function: Callable[..., Any], **given: Any) -> None:
    """Check some arguments of a `checked` function, long before it is called.

    Examples
    --------
    >>> from tokinterp.erasure import fit_probes
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
