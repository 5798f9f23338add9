"""What is claimed, how it is computed from the results, and whether it is so."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import xarray as xr

from tokinterp.results.summary import summary

Results = Mapping[str, xr.Dataset]


class Number(NamedTuple):
    """A number with its 95 % interval, NaN where there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class Claim:
    """A sentence, and the numbers that decide it.

    Attributes
    ----------
    says : str
        The sentence.
    source : str
        Who says it.
    how : str
        What the first number is, with its unit.
    numbers : callable
        Results (Datasets by name) to numbers by label: the first is judged, the others stand beside it.  A list of
        numbers is a curve, over layers for example.
    needs : tuple of str
        Results without which there is nothing to say.
    above, below : float, optional
        What the first number has to lie above or below, with its whole interval.
    near : (float, float), optional
        Target and tolerance.
    model : str
        Name of the only model that it is about; empty for all.
    """

    says: str
    source: str
    how: str
    numbers: Callable[[Results], Mapping[str, Number | Sequence[float]]]
    needs: tuple[str, ...] = ()
    above: float | None = None
    below: float | None = None
    near: tuple[float, float] | None = None
    model: str = ""

    @property
    def target(self) -> str:
        """What the first number is compared with, in words."""
        if self.near is not None:
            return f"{self.near[0]:g} within {self.near[1]:g}"
        if self.above is not None:
            return f"above {self.above:g}"
        return "" if self.below is None else f"below {self.below:g}"


def judge(claim: Claim, number: Number) -> str:
    """Return the verdict: yes, no, or not shown where the interval holds the target; none without an interval.

    Examples
    --------
    >>> claim = Claim("more than none", "we", "", dict, above=0)
    >>> judge(claim, Number(1, 0.5, 2)), judge(claim, Number(1, -1, 2)), judge(claim, Number(1))
    ('yes', 'not shown', 'no interval')
    """
    value, low, high = number
    if not claim.target:
        return "no target"
    if not math.isfinite(value):
        return "not measured"
    if claim.near is not None:
        return "yes" if abs(value - claim.near[0]) <= claim.near[1] else "no"
    if claim.below is not None:
        value, low, high, target = -value, -high, -low, -claim.below
    else:
        target = claim.above if claim.above is not None else math.nan
    if not (math.isfinite(low) and math.isfinite(high)):
        return "no interval"
    return "yes" if low > target else "no" if high <= target else "not shown"


def evaluate(claims: Sequence[Claim], results: Results, model: str = "") -> list[dict[str, Any]]:
    """Return every claim that the results speak of, with its numbers and the verdict, as JSON types.

    What the settings left out (a control, a scale) makes a claim "not measured", with the reason in place of a number.
    """
    out = []
    for claim in claims:
        if not {*claim.needs} <= results.keys() or claim.model not in ("", model):
            continue
        try:
            found = claim.numbers(results)
        except KeyError as error:  # a condition, scale or class that the settings left out
            found = {f"not in the results: {error.__cause__ or error}": Number(math.nan)}
        out.append(row(claim, found))
    return out


def row(claim: Claim, found: Mapping[str, Number | Sequence[float]]) -> dict[str, Any]:
    """Return a claim with its numbers, the first of which is judged."""
    first = next(iter(found.values()))
    if not isinstance(first, Number):
        raise TypeError(f"{claim.says}: the first number is a curve, which cannot be judged")
    return {
        "claim": claim.says, "source": claim.source, "how": claim.how, "target": claim.target,
        "verdict": judge(claim, first),
        "numbers": {
            label: {"value": x.value, "interval": [x.low, x.high]} if isinstance(x, Number) else {"curve": [*x]}
            for label, x in found.items()
        },
    }  # fmt: skip


# -- numbers --------------------------------------------------------------------------------------------------
def mean(v: xr.DataArray, over: str = "prompt", **at: Any) -> Number:
    """Return the mean over prompts (or spans) with its bootstrap interval over documents, see `tokinterp.summary`.

    Other dimensions that ``at`` does not select are averaged first.
    """
    v = v.sel(at, drop=True).astype(float)
    v = v.mean([d for d in v.dims if d != over])
    ds = summary(v.rename("x").to_dataset().drop_attrs(), over)
    return Number(float(ds["x"]), *(float(b) for b in ds["x_interval"].values))


def given(ds: xr.Dataset, name: str, interval: str = "", **at: Any) -> Number:
    """Return a variable that has its interval with it (``NAME_interval`` or the one named)."""
    one = ds.sel(at, drop=True)
    bounds = one[interval or f"{name}_interval"]
    return Number(float(one[name]), *(float(bounds.sel(bound=b)) for b in ("lower", "upper")))


def curve(v: xr.DataArray, **at: Any) -> list[float]:
    """Return the mean over everything but layers (or blocks), one number per layer, in order."""
    v = v.sel(at, drop=True).astype(float)
    (kept,) = [d for d in v.dims if d in ("layer", "block")]
    return v.mean([d for d in v.dims if d != kept]).values.tolist()


def plain(value: Any) -> Number:
    """Return a number without an interval."""
    return Number(float(value))
