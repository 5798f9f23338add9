"""What a measurement says of each variable of its result, and the keys of the tables they are kept in."""

from __future__ import annotations

from dataclasses import dataclass

from ..settings import checked

KEYS = {
    "prompt": ("prompt",),
    "token": ("token_prompt", "token_position"),
    "span": ("span_prompt", "start", "stop"),
}
"""The columns that tell the rows of a table apart, by the first dimension of its fields."""


@checked()
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

    Examples
    --------
    >>> Field(("prompt", "layer"), "mean cosine of pairs of tokens").units
    '1'
    """

    dims: tuple[str, ...]
    long_name: str
    units: str = "1"
    references: str | None = None

    @property
    def table(self) -> str:
        """``prompt``, ``token`` or ``span``: where its rows are kept; empty for what is summed or derived."""
        return self.dims[0] if self.dims and self.dims[0] in KEYS else ""
