"""What a measurement says of each variable of its result, and the keys of the tables they are kept in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...results.dataset import variable
from ...settings import checked, none, number, pair, string

if TYPE_CHECKING:
    import xarray as xr

KEYS = {
    "prompt": ("prompt",),
    "token": ("token_prompt", "token_position"),
    "span": ("span_prompt", "start", "stop"),
}
"""The columns that tell the rows of a table apart, by the first dimension of its fields."""


@checked(range=pair(none | number(), none | number()) | none, chance=number() | string | none)
@dataclass(frozen=True)
class Field:
    """What a variable of a result is, said once.

    Attributes
    ----------
    dims : tuple of str
        Its dimensions. The first says where it is kept: ``prompt``, ``token`` and ``span`` in tables with a row for
        each, all others in sums, or made from both in ``derive``.
    long_name, units : str
        What the numbers are, and in which unit.
    references : str, optional
        Paper and equation that define it.
    short : str, optional
        Name on the axis of a picture; by default the long name.
    range : (float or None, float or None), optional
        Between what the numbers lie; of what begins with "share" or "accuracy" 0 and 1 by default.
    chance : float or str, optional
        The level by chance, or the variable of the result that holds it; by default NAME_null, where there is one.
    log : bool
        Whether pictures have a logarithmic axis.
    beside : sequence of str
        Variables that are drawn with it, in one panel: a control, another estimate.
    along : sequence of str
        Dimensions over which it is drawn; by default depth, or else what has numbers in order.

    Notes
    -----
    All of it stands in the attributes of the variable, so that a result that was read from a file is drawn alike.

    Examples
    --------
    >>> field = Field(("prompt", "layer"), "mean cosine of pairs of tokens", short="cosine", range=(-1, 1))
    >>> field.variable([[0.5, 0.75]]).attrs["range"]
    '-1..1'
    """

    dims: tuple[str, ...]
    long_name: str
    units: str = "1"
    references: str | None = None
    short: str = ""
    range: tuple[float | None, float | None] | None = None
    chance: float | str | None = None
    log: bool = False
    beside: Sequence[str] = ()
    along: Sequence[str] = ()

    @property
    def table(self) -> str:
        """``prompt``, ``token`` or ``span``: where its rows are kept; empty for what is summed or derived."""
        return self.dims[0] if self.dims and self.dims[0] in KEYS else ""

    def variable(self, values: Any) -> xr.Variable:
        """Return the variable of a result that has these values."""
        return variable(
            self.dims, values, self.long_name, self.units, self.references, short=self.short, range=self.range,
            chance=self.chance, log=self.log, beside=self.beside, along=self.along,
        )  # fmt: skip
