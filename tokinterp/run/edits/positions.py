"""Which positions of each prompt are meant: numbers, slices, masks, functions, or flags of all tokens of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch

from ...settings import checked, instance, refuse, short
from ...settings.describe import numbered

Positions = (
    int | slice | Sequence[int] | torch.Tensor | np.ndarray | str
    | Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None
)  # fmt: skip
"""Which positions: a number or a list of numbers (the same in every prompt; a shorter prompt goes without), a slice (of
each prompt's own tokens: ``slice(-1, None)`` is its last), a bool tensor (prompt, position), a bool array with a value
for each token of all prompts of a run (``items.mark("filler")``), the name of a mark of the prompts
(`tokinterp.text.mark`), a function of (ids, mask) that returns a bool tensor (prompt, position), or None for all."""


def in_words(positions: Positions) -> str:
    """Return positions in a few words."""
    if isinstance(positions, slice):
        return ":".join("" if v is None else str(v) for v in (positions.start, positions.stop, positions.step))
    if is_flags(positions):
        return f"on {int(positions.sum())} tokens"  # type: ignore[union-attr]
    if isinstance(positions, str):
        return positions
    if positions is None or callable(positions):
        return "all" if positions is None else f"by {getattr(positions, '__name__', 'a function')}"
    if isinstance(positions, torch.Tensor):
        if positions.dtype == torch.bool:
            return f"by a mask {tuple(positions.shape)}"
        positions = positions.reshape(-1).tolist()
    numbers = [positions] if isinstance(positions, Integral) else list(positions)  # type: ignore[arg-type]
    return numbered(map(int, numbers)) if len(numbers) <= 20 else f"{len(numbers)} places"


@checked(ids=instance("Tensor"), mask=instance("Tensor"))
def select_positions(positions: Positions, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return (prompt, position) bool, true at the chosen real positions.

    Parameters
    ----------
    positions : Positions
        Numbers, slices, masks, marks or functions; None means all.
    ids : torch.Tensor
        (prompt, position) token ids.
    mask : torch.Tensor
        (prompt, position) bool, true at real positions.

    Raises
    ------
    ValueError
        If a position lies outside the batch or a mask has another shape than the ids.

    Examples
    --------
    >>> import torch
    >>> ids = torch.tensor([[5, 6, 7]])
    >>> select_positions([0], ids, torch.ones(1, 3).bool()).tolist()
    [[True, False, False]]
    """
    if positions is None:
        return mask
    n = ids.shape[1]
    if of_run(positions):
        refuse(
            "positions", positions, "one pass does not know which tokens of the run these are: use measure or capture"
        )
    if callable(positions):
        chosen = positions(ids, mask)
        if not isinstance(chosen, torch.Tensor):
            refuse("positions", positions, f"it returns {short(chosen)}, not a bool tensor (prompt, position)")
    elif isinstance(positions, torch.Tensor) and positions.dtype == torch.bool:
        chosen = positions
    elif isinstance(positions, slice):
        chosen = _own_slice(positions, mask)
    else:
        places = fitting(positions, n, n)
        chosen = torch.zeros_like(mask)
        chosen[:, places] = True
    if chosen.shape != mask.shape or chosen.dtype != torch.bool:
        raise ValueError(
            f"positions={short(positions)}: positions to edit are {chosen.dtype} {tuple(chosen.shape)}: "
            f"a bool tensor {tuple(mask.shape)} (prompt, position) is needed"
        )
    return chosen.to(mask.device) & mask


def _own_slice(positions: slice, mask: torch.Tensor) -> torch.Tensor:
    """Return (prompt, position) bool, true on the slice of each prompt's own tokens, whatever the padding."""
    step = 1 if positions.step is None else int(positions.step)
    if step < 1:
        refuse("positions", positions, "the step must be at least 1")
    lengths = mask.sum(1)

    def bound(value: int | None, default: torch.Tensor) -> torch.Tensor:
        if value is None:
            return default
        return (lengths + value).clamp_min(0) if value < 0 else torch.full_like(lengths, value)

    start, stop = bound(positions.start, torch.zeros_like(lengths))[:, None], bound(positions.stop, lengths)[:, None]
    place = torch.arange(mask.shape[1], device=mask.device, dtype=torch.int64)
    return (place >= start) & (place < stop) & ((place - start) % step == 0)


def is_flags(positions: Any) -> bool:
    """Whether positions are given as one bool for each token of all prompts of a run."""
    return (
        isinstance(positions, torch.Tensor | np.ndarray) and positions.ndim == 1 and str(positions.dtype)[-4:] == "bool"
    )


def of_run(positions: Any) -> bool:
    """Whether positions are of all prompts of a run: flags, or the name of a mark."""
    return isinstance(positions, str) or is_flags(positions)


def flags_of(positions: Any, prompts: Any, name: str = "positions") -> Any:
    """Return (token,) bool of positions of a run, which an argument of this name gives.

    Raises
    ------
    ValueError
        For a mark that the prompts do not have, or flags of another number of tokens.
    """
    if isinstance(positions, str):
        if positions not in prompts.marks:
            has = ", ".join(prompts.marks) or "none"
            refuse(name, positions, f"the prompts have no mark of this name ({has}): give them one with text.mark")
        return prompts.marks[positions]
    if len(positions) != prompts.n_tokens:
        raise ValueError(f"{len(positions)} flags for {prompts.n_tokens} tokens of all prompts")
    return positions


def fitting(positions: Any, width: int, longest: int) -> Any:
    """Return numbered positions without those beyond the batch; other kinds are returned as they are.

    Raises
    ------
    ValueError
        If a number lies beyond the longest of all prompts, or below 0.
    """
    if positions is None or isinstance(positions, slice) or callable(positions) or of_run(positions):
        return positions
    if isinstance(positions, torch.Tensor):
        if positions.dtype == torch.bool:
            return positions
        positions = positions.reshape(-1).tolist()
    places = [int(positions)] if isinstance(positions, Integral) else [int(p) for p in positions]
    bad = [p for p in places if not 0 <= p < longest]
    if bad:
        way = "; the last token of each prompt is slice(-1, None)" if min(bad) < 0 else ""
        raise ValueError(f"positions={bad} to edit: the longest prompt has positions 0 to {longest - 1}{way}")
    return [p for p in places if p < width]


def placed(positions: Any, prompts: Any, numbers: Sequence[int], mask: torch.Tensor) -> Any:
    """Return flags and marks as a bool tensor (prompt, position) of a batch; other kinds as they are."""
    if not of_run(positions):
        return positions
    given = flags_of(positions, prompts)
    flags = torch.as_tensor(
        given.copy() if isinstance(given, np.ndarray) else given, dtype=torch.bool, device=mask.device
    )
    start = torch.from_numpy(prompts.starts[list(numbers)]).to(mask.device)[:, None]
    place = torch.arange(mask.shape[1], dtype=torch.int64, device=mask.device)
    return flags[(start + place).clamp_max(len(flags) - 1)] & mask


def as_tensor(value: torch.Tensor | float) -> torch.Tensor:
    """Return a value as a tensor: one number as it is, in the precision of Python's."""
    return value if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=torch.float64, device="cpu")
