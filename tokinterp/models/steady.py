"""One model from the beginning of a computation to its end: numbers of several models are refused."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from ..kernels.state import neutral
from .fingerprint import module_facts

if TYPE_CHECKING:
    from .base import Model
    from .info import ModelInfo

T = TypeVar("T", bound=Callable[..., Any])
_IN_USE: ContextVar[dict[int, tuple[Any, Any]]] = ContextVar("models in use, as they were found", default={})  # noqa: B039


class ModelChangedError(RuntimeError):
    """The model computes something else than when the computation began."""


def current(model: Model) -> ModelInfo:
    """Return what a model is now, its hooks, adapters and weights of this moment included; called by every run.

    Raises
    ------
    ModelChangedError
        Inside a `steady` function that was given the model, if it is not what it was at the beginning.
    """
    if id(model) in _IN_USE.get():
        check_steady()
        return model.info
    return model.identify() if hasattr(model, "identify") else model.info


def check_steady() -> None:
    """Refuse to go on, or to keep anything, if a model in use is not what it was when the computation began.

    Raises
    ------
    ModelChangedError
        Names what changed.
    """
    for model, found in _IN_USE.get().values():
        if isinstance(model, nn.Module):
            now = module_facts(model)
            changed, name = [k for k, v in now.items() if found.get(k) != v], type(model).__name__
        else:
            changed, name = model.changed(found), found.id
        if changed:
            raise ModelChangedError(
                f"the {' and '.join(changed)} of {name} changed while it was measured (a hook, an adapter, a thread "
                "that trains?), so that the numbers are of several models: nothing of it is kept, measure it again"
            )


def steady(function: T) -> T:
    """Let a function that runs models compute in a `neutral` process, with each model the same until it returns.

    Models, networks, and lists and mappings of them are looked at among the arguments when the function begins, and
    again before it keeps or returns anything: their weights, config, state and hooks of others.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with neutral(), _in_use(_models([*args, *kwargs.values()])):
            return function(*args, **kwargs)

    run.__steady__ = True  # pyright: ignore[reportAttributeAccessIssue]
    return run  # pyright: ignore[reportReturnType]


@contextmanager
def _in_use(models: Iterable[Any]) -> Iterator[None]:
    before = _IN_USE.get()
    new = {id(m): m for m in models if id(m) not in before}
    token = _IN_USE.set(before | {k: (m, _found(m)) for k, m in new.items()})
    try:
        yield
        if new:
            check_steady()
    finally:
        _IN_USE.reset(token)


def _found(model: Any) -> Any:
    return module_facts(model) if isinstance(model, nn.Module) else model.identify()


def _models(values: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if isinstance(value, nn.Module) or (hasattr(value, "identify") and hasattr(value, "changed")):
            found.append(value)
        elif isinstance(value, Mapping):
            found += _models(value.values())
        elif isinstance(value, list | tuple):
            found += _models(v for v in value if not isinstance(v, str | int | float))
    return found
