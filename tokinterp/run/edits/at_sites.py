"""What is changed at a site: activations replaced, added to, scaled, set to a mean, or patched from a donor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as changed
from numbers import Integral
from typing import Any

import numpy as np
import torch

from ...settings import checked, count, instance, none, of, one_of, refuse, several, short
from ...settings import positions as some_positions
from ...settings.describe import describe
from ..sites import Site
from .positions import Positions, fitting, in_words, select_positions

donors = count() | several(count()) | of(
    "a dictionary of prompt to donor",
    lambda v: type(v) is dict and all(isinstance(n, Integral) for pair in v.items() for n in pair),
)  # fmt: skip

OPS = ("replace", "add", "zero", "mean", "scale", "fill", "apply", "patch")


@checked(op=one_of(*OPS), value=instance("Tensor"))
@dataclass(frozen=True, eq=False)
class SiteEdit:
    """Change the activations of a site at some positions.

    Use the functions :func:`replace`, :func:`add`, :func:`zero`, :func:`mean_ablate`, :func:`scale`, :func:`fill`,
    :func:`apply` and :func:`patch` to make one.

    Attributes
    ----------
    site : Site
        Any site but ``pattern``.
    op : str
        ``replace``, ``add``, ``zero``, ``mean``, ``scale``, ``fill``, ``apply`` or ``patch``.
    positions : Positions
        Where; padding is never changed.
    value : torch.Tensor or None
        One number, (d_model,), (position, d_model) or (prompt, position, d_model): anything that broadcasts to the
        activations; of ``scale`` one number; of ``fill`` (chosen position, d_model).
    function : callable or None
        Of ``apply``.
    """

    site: Site
    op: str
    positions: Positions = None
    value: torch.Tensor | None = None
    function: Callable[[torch.Tensor], torch.Tensor] | None = None

    def __post_init__(self) -> None:
        if self.site.name == "pattern":
            refuse("site", self.site, "pattern cannot be edited as a site: use knock_out(queries, keys, blocks, heads)")
        if self.op in ("replace", "add", "fill") and self.value is None:
            raise ValueError(f"value=None: {self.op} at {self.site.name} {self.site.at} needs a value")
        if self.op == "scale" and (self.value is None or self.value.ndim):
            refuse("value", self.value, "scale needs one number: use scale(site, factor)")
        if (self.op == "apply") != (self.function is not None):
            refuse("function", self.function, "apply needs a function, and no other edit: use apply(site, function)")
        if self.op == "patch" and not isinstance(self, Patch):
            refuse("op", self.op, "use patch(site, donor=...)")

    def check(self, width: int, d_site: int | None, prompts: int | None = None) -> None:
        """Raise ValueError if the value does not fit prompts of so many positions, or a site of known width."""
        if self.value is None or not self.value.ndim:
            return
        shape = tuple(self.value.shape)
        d_site = shape[-1] if d_site is None and shape else d_site
        if self.op == "fill":
            if len(shape) != 2 or shape[-1] != d_site or not shape[0]:
                raise ValueError(f"value of shape {shape} in {self}: (chosen position, {d_site}) is needed")
            return
        fits = 1 <= len(shape) <= 3 and shape[-1] == d_site
        fits &= len(shape) < 2 or shape[-2] in (1, width)
        fits &= len(shape) < 3 or shape[0] in (1, prompts)
        if not fits:
            raise ValueError(
                f"{self.op} at {self.site.name} {self.site.at}: the value has shape {shape}, but the site has width "
                f"{d_site} and the prompts up to {width} positions: give ({d_site},) or (position, {d_site})"
            )

    def check_slots(self, where: torch.Tensor) -> None:
        """Raise ValueError if a prompt has more chosen positions (prompt, position) than there are values."""
        assert self.value is not None
        if int(most := where.sum(1).max()) > len(self.value):
            raise ValueError(f"value of {len(self.value)} positions in {self}: a prompt has {int(most)} of them")

    def fit(self, width: int, longest: int) -> SiteEdit:
        """Return the edit for a batch that is ``width`` wide, of prompts of which the longest is ``longest``."""
        value = self.value
        if self.op != "fill" and value is not None and value.ndim > 1 and value.shape[-2] == longest:
            value = value[..., :width, :]
        return changed(self, positions=fitting(self.positions, width, longest), value=value)

    def settle(self, ids: torch.Tensor, mask: torch.Tensor) -> SiteEdit:
        """Return the edit with its positions worked out for a batch, as a bool tensor."""
        return changed(self, positions=select_positions(self.positions, ids, mask))

    def apply(self, activations: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the changed activations (prompt, position, d_model)."""
        where = select_positions(self.positions, ids, mask).to(activations.device)[..., None]
        if self.op == "zero":
            return activations.masked_fill(where, 0)
        if self.op == "mean" and self.value is None:
            real = mask.to(activations.device)[..., None]
            total = activations.double().masked_fill(~real, 0).sum(1, keepdim=True)
            new = (total / real.sum(1, keepdim=True)).to(activations.dtype)
        elif self.op == "fill":
            assert self.value is not None
            self.check_slots(where[..., 0])
            slot = (where[..., 0].cumsum(1) - 1).clamp(0)
            new = self.value.to(device=activations.device, dtype=activations.dtype)[slot.clamp_max(len(self.value) - 1)]
        elif self.op == "apply":
            new = self._applied(activations, int(mask[0].sum()))
        elif self.op == "scale":
            assert self.value is not None
            new = activations * float(self.value)
        else:
            assert self.value is not None
            new = self.value.to(device=activations.device, dtype=activations.dtype)
            if self.op == "add":
                new = activations + new
        return torch.where(where, new, activations)

    def _applied(self, activations: torch.Tensor, length: int) -> torch.Tensor:
        """Return what the function makes of the activations; the first prompt alone must give the same."""
        assert self.function is not None
        new, alone = (self.function(a.clone()) for a in (activations, activations[:1, :length]))
        if not isinstance(new, torch.Tensor) or new.shape != activations.shape:
            refuse(
                "function", self.function, f"it makes {short(new)} of {short(activations)}: give back the same shape"
            )
        apart = torch.linalg.vector_norm((alone - new[:1, :length]).double())
        if bool(apart > 1e-2 * torch.linalg.vector_norm(alone.double())):
            why = (
                "it gives other values for a prompt alone than in a batch: look at each prompt by itself, draw nothing"
            )
            refuse("function", self.function, why)
        return new.to(device=activations.device, dtype=activations.dtype)

    def __str__(self) -> str:
        where = "" if self.positions is None else f", positions {in_words(self.positions)}"
        made = "" if self.value is None or self.op != "scale" else f", by {float(self.value):g}"
        made = made if self.function is None else f", {getattr(self.function, '__name__', 'a function')}"
        return f"{self.op}({self.site.name} {self.site.at}{made}{where})"

    def describe(self) -> dict[str, Any]:
        """Return what decides the numbers, as JSON types."""
        return {
            "op": self.op, "site": self.site.name, "at": self.site.at,
            "positions": describe(self.positions), "value": describe(self.value),
            **({"function": describe(self.function)} if self.function is not None else {}),
        }  # fmt: skip


@checked(donor=donors, source=some_positions, prompts=instance("Prompts") | none)
@dataclass(frozen=True, eq=False)
class Patch(SiteEdit):
    """Put what a site has in other prompts of the run in the place of its activations; made by :func:`patch`.

    Attributes
    ----------
    donor : int, mapping or sequence of int
        The prompt that gives, by number: the same for all, of some prompts (the others are left alone), or of each.
    source : Positions
        Where in the donor; None means the same places.
    prompts : Prompts or None
        Those of which the donors are; None for the prompts of the run.
    """

    donor: int | Mapping[int, int] | Sequence[int] = 0
    source: Positions = None
    prompts: Any = None

    def donors(self, n: int, givers: int | None = None) -> np.ndarray:
        """Return (prompt,) the donor of each of ``n`` prompts, one of ``givers`` (as many by default), -1 where none.

        Raises
        ------
        ValueError
            If there is no such prompt, or not one for each.
        """
        givers, has = n if givers is None else givers, "the run has" if self.prompts is None else "the donors are"
        if isinstance(self.donor, Mapping):
            out = np.full(n, -1)
            pairs = np.array([*self.donor.items()], dtype=np.int64).reshape(-1, 2)
            _check_numbers(self.donor, pairs[:, 0], n, "the run has")
            _check_numbers(self.donor, pairs[:, 1], givers, has)
            out[pairs[:, 0]] = pairs[:, 1]
            return out
        out = np.array(self.donor, dtype=np.int64)
        out = np.full(n, out) if out.ndim == 0 else out
        if out.shape != (n,):
            refuse("donor", self.donor, f"{len(out)} donors for {n} prompts: give one for each, or a mapping")
        _check_numbers(self.donor, out, givers, has)
        return out

    def settle(self, ids: torch.Tensor, mask: torch.Tensor) -> SiteEdit:
        """Refuse a pass that knows no other prompts."""
        raise ValueError(f"{self}: one pass knows no prompts to take from: use measure, capture or stream, or replace")

    def __str__(self) -> str:
        taken = "" if self.source is None else f", there {in_words(self.source)}"
        who = f"prompt {self.donor}" if isinstance(self.donor, Integral) else "other prompts"
        who += "" if self.prompts is None else f" of {len(self.prompts)} others"
        return f"{super().__str__()[:-1]}, from {who}{taken})"

    def describe(self) -> dict[str, Any]:
        """Return what decides the numbers, as JSON types."""
        donor = sorted(self.donor.items()) if isinstance(self.donor, Mapping) else self.donor
        of = {} if self.prompts is None else {"prompts": describe(self.prompts)}
        return {**super().describe(), "donor": describe(donor), "source": describe(self.source), **of}


def _check_numbers(donor: Any, numbers: np.ndarray, n: int, has: str) -> None:
    if len(bad := numbers[(numbers < 0) | (numbers >= n)]):
        refuse("donor", donor, f"there is no prompt {bad[0]}: {has} prompts 0 to {n - 1}")
