"""What every measurement is: settings, fields, running sums, finished rows, and four verbs."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

import torch

from ...settings import like, short
from ...settings.describe import describe, own_code
from ..sites import resid
from .fields import Field
from .kept import Tensors
from .labelled import Labelled, choose_blocks, choose_layers

if TYPE_CHECKING:
    from ...models.info import ModelInfo
    from ...text.prompts import Prompts
    from ..batch import Batch
    from ..sites import Site

__all__ = ["MEMORY", "Field", "Measurement", "Tensors", "choose_blocks", "choose_layers", "fresh"]

MEMORY = 2**33
"""Bytes that measurements take by default at most: 8 GiB."""


class Measurement(Labelled):
    """One question asked of every batch of a run.

    A subclass says in ``fields`` what its result contains, keeps its settings as attributes named like its
    constructor's arguments, and everything it has seen so far in two dictionaries:

    ``sums``
        tensors of fixed size (float64 sums, int64 counts), on the device of the model: ``add``;
    ``rows``
        lists of tensors that are concatenated along axis 0: one entry per finished prompt or token: ``keep``.  Tables
        of different length (per prompt, per token) live side by side; each carries its own keys (prompt number,
        position), so that the order in which batches arrive never matters.

    From these follow the four verbs: ``update(batch)``, ``merge(other)``, ``state()``/``load(state)`` and
    ``result()``.  A subclass writes ``update``; ``sites`` if it looks at more than the stream at its ``layers``;
    ``derive`` for what follows from sums or from other columns; ``coords`` for the dimensions that are its own. It
    overrides ``begin`` to check its input before the model runs, and ``merge_sums`` where adding the sums is not right.

    A measurement that has to read the prompts more than once sets ``passes`` and looks at ``self.reading``
    (0, 1, ...) in ``update``; ``end_reading()`` is called after each reading.

    Examples
    --------
    >>> import tokinterp as ti
    >>> class Lengths(ti.Measurement):
    ...     fields = {"length": ti.Field(("prompt", "layer"), "mean norm of the rows of the stream")}
    ...     layers = None
    ...     def update(self, batch):
    ...         x = [batch.resid(n).norm(dim=-1) * batch.mask for n in self.at_layers()]
    ...         self.keep(batch, length=torch.stack([n.sum(1) for n in x], 1) / batch.mask.sum(1, keepdim=True))
    >>> run = ti.measure(ti.load_model(), ["The Nile flows north."], {"norms": Lengths()}, progress=False)
    >>> run["norms"]["length"].dims, run["norms"]["length"].attrs["long_name"]
    (('prompt', 'layer'), 'mean norm of the rows of the stream')
    """

    memory: int = MEMORY
    """Bytes that it may take; set by the run (``measure(..., memory=)``), and no setting: it decides no number."""
    passes: int = 1
    tried: bool = True
    """Whether one that is not of this package is tried on a prompt before the run (see `tokinterp.run.trial`)."""
    streams: bool = False
    """Whether its sites are shown to ``look`` one by one during the pass and let go, instead of kept for ``update``."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Keep what the class body says: what is set on the class later (a counter) is no part of its code."""
        super().__init_subclass__(**options)
        if inspect.isfunction(vars(cls).get("start")):
            raise TypeError(f"{cls.__name__}.start() is never called: what prepares a run is begin(info, prompts)")
        for name, field in vars(cls).get("fields", {}).items():
            if not isinstance(field, Field):
                raise TypeError(
                    f"{cls.__name__}.fields[{name!r}]={short(field)}: give a Field, such as "
                    'Field(("prompt", "layer"), "what it is", "1")'
                )
        cls._as_defined = dict(vars(cls))

    _as_defined: dict[str, Any]

    def __init__(self) -> None:
        super().__init__()
        self.reading = 0

    def fresh(self) -> Self:
        """Return a copy that has seen nothing, for a run to fill: what is given to `measure` stays as it is.

        The settings (probes, maps, a decoder) are shared with it, as are networks and what cannot be copied; whatever
        else stands in an attribute is its own.
        """
        out = copy.copy(self)
        shared, own = {*inspect.signature(type(self).__init__).parameters}, {id(self): out}
        for name, value in vars(self).items():
            if name in shared or name in ("sums", "rows") or isinstance(value, torch.nn.Module):
                continue
            with suppress(TypeError, RuntimeError, copy.Error):  # a lock, an open file, a tensor of a graph
                setattr(out, name, copy.deepcopy(value, own))
        out.sums, out.rows, out.reading = {}, {}, 0
        return out

    # -- what a subclass writes -------------------------------------------------------------------------------
    def sites(self, info: ModelInfo) -> list[Site]:
        """Return the sites whose activations ``update`` needs: by default the stream at the layers."""
        if not hasattr(self, "layers"):
            raise NotImplementedError(
                f"{type(self).__name__} does not say which sites it needs: set layers (None for all), or write "
                "sites(info)"
            )
        return resid(self.at_layers(info))

    def requests(self, info: ModelInfo) -> list[Any]:
        """Return what ``update`` will ask for that other measurements may ask for too, so that it is worked out once.

        The run does not look into them: they stand in ``batch.requests`` for whoever does the work (see
        `tokinterp.geometry.clouds.neighbours`).
        """
        return []

    def begin(self, info: ModelInfo, prompts: Prompts) -> None:
        """Check settings against model and prompts before anything expensive, and forget earlier data."""
        self.info = info
        self.sums, self.rows, self.reading = {}, {}, 0
        if hasattr(self, "layers"):
            self.at_layers()
        if hasattr(self, "blocks"):
            self.at_blocks()

    def update(self, batch: Batch) -> None:
        """Take what is needed from one batch of activations."""
        raise NotImplementedError(f"{type(self).__name__} has no update(){self._own('update')}")

    def look(self, batch: Batch, site: Site, value: torch.Tensor) -> torch.Tensor:
        """Return the little, (prompt, ...), that ``update`` needs of a site too large to keep (``streams``).

        ``update`` finds it with ``batch.seen(self, site)``; it must be finite where the value is.
        """
        raise NotImplementedError(f"{type(self).__name__} has no look(){self._own('look')}")

    def _own(self, verb: str) -> str:
        """Return the method that its author may have meant by a verb."""
        return like(verb, [n for n in dir(type(self)) if not hasattr(Measurement, n)]).replace("you mean", "it mean")

    def end_reading(self) -> None:
        """Called after each complete reading of the prompts, before the next one or ``result``."""

    # -- what they all share ----------------------------------------------------------------------------------
    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments with their present values, as plain JSON types."""
        names = [n for n in inspect.signature(type(self).__init__).parameters if n != "self"]
        if lacking := [n for n in names if not hasattr(self, n)]:
            n = lacking[0]
            raise AttributeError(
                f"{type(self).__name__} does not keep its argument {n}: write self.{n} = {n} in __init__"
            )
        return {n: describe(getattr(self, n)) for n in names}

    def __describe__(self) -> dict[str, Any]:
        """Return class and settings: what a measurement is as a setting of another."""
        return {"class": type(self).__qualname__, "code": own_code(type(self), self), **self.settings()}

    def merge(self, other: Measurement) -> None:
        """Add the sums and append the rows of another measurement with the same settings."""
        if self.settings() != other.settings() or type(self) is not type(other):
            raise ValueError(
                f"cannot merge {type(other).__name__} {other.settings()} into {type(self).__name__} "
                f"{self.settings()}: the settings must be equal"
            )
        self.merge_kept(other)

    def __repr__(self) -> str:
        inner = ", ".join(f"{k}={v!r}" for k, v in self.settings().items())
        return f"{type(self).__name__}({inner})"


def fresh(measurements: Mapping[str, Measurement], memory: int = MEMORY) -> dict[str, Measurement]:
    """Return copies that have seen nothing, for a run to fill; each may take so much memory."""
    out = {name: m.fresh() for name, m in measurements.items()}
    for m in out.values():
        m.memory = memory
    return out
