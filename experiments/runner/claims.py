"""What is claimed, how it is computed from the results, and whether it is so."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from tokinterp.results.documents import groups_of
from tokinterp.results.summary import summary
from tokinterp.stats.resample import LEAST, ratio, resample
from tokinterp.stats.simultaneous import simultaneous_interval
from tokinterp.stats.tests import wilson

Results = Mapping[str, xr.Dataset]


class Number(NamedTuple):
    """A number with its 95 % interval, NaN where there is none, and then why."""

    value: float
    low: float = math.nan
    high: float = math.nan
    why: str = ""


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
    value, low, high, _ = number
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
            label: {"value": x.value, "interval": [x.low, x.high], **({"why": x.why} if x.why else {})}
            if isinstance(x, Number) else {"curve": [*x]}
            for label, x in found.items()
        },
    }  # fmt: skip


# -- numbers --------------------------------------------------------------------------------------------------
def mean(v: xr.DataArray, over: str = "prompt", *, share: bool = False, **at: Any) -> Number:
    """Return the mean over prompts (or spans) with its bootstrap interval over documents, see `tokinterp.summary`.

    Other dimensions that ``at`` does not select are averaged first.  Where every value is the same, draws of them say
    nothing of others: a ``share`` of yes and no has Wilson's interval then, anything else none.
    """
    v = v.sel(at, drop=True).astype(float)
    v = v.mean([d for d in v.dims if d != over])
    ds = summary(v.rename("x").to_dataset().drop_attrs(), over)
    n, value = int(ds.get("x_groups", ds["x_count"])), float(ds["x"])
    low, high = map(float, ds["x_interval"].values)
    if low == high:
        return all_the_same(value, n, ds.attrs["groups"], share)
    return Number(value, low, high, f"{n} {ds.attrs['groups']}: an interval takes {LEAST}" if n < LEAST else "")


def all_the_same(value: float, n: int, groups: str, share: bool, tries: int = 1) -> Number:
    """Return what is known of a mean over n groups of one value, the best of some tries (Bonferroni)."""
    if share and value in (0, 1):
        low, high = map(float, wilson(np.array(n * value), np.array(n), 1 - 0.05 / tries))
        return Number(value, low, high)
    return plain(value, f"all {n} {groups} have the same value")


def drawn(statistic: Callable[[np.ndarray], np.ndarray], n: int, what: str, have: int | None = None) -> Number:
    """Return a statistic of n independent groups (``what`` they are) with its interval.

    Parameters
    ----------
    statistic : callable
        Of (draw, group) weights; returns (draw,) values, see `tokinterp.stats.resample`.
    n, what
        How many groups of what.
    have : int, optional
        Groups that have a part in it; all by default.
    """
    have = n if have is None else have
    bounds = resample(statistic, n, np.asarray(have))
    why = "" if have >= LEAST else f"{have} {what}: an interval takes {LEAST}"
    low, high = map(float, bounds)
    return Number(float(statistic(np.ones((1, n)))[0]), low, high, why)


def mean_difference(one: xr.DataArray, other: xr.DataArray, over: str) -> Number:
    """Return the mean of one variable less that of another, where only their prompts or documents are the same.

    As of segments of a text and of the shuffled text: whole documents are drawn, each with what both have of it.
    """
    groups, kinds = zip(*(groups_of(v, over) for v in (one, other)), strict=True)
    number = np.unique(np.concatenate(groups), return_inverse=True)[1]
    parts = number[: len(groups[0])], number[len(groups[0]) :]
    n = int(number.max(initial=-1)) + 1
    sums = []
    for v, at in zip((one, other), parts, strict=True):
        ok = np.isfinite(v.values)
        sums.append((np.bincount(at[ok], v.values[ok], n), np.bincount(at[ok], minlength=n)))
    have = min(int((below > 0).sum()) for _, below in sums)
    if not have:
        return Number(math.nan)
    return drawn(lambda w: np.subtract(*(ratio(w @ a, w @ b) for a, b in sums)), n, kinds[0], have)


def best(numbers: Mapping[str, xr.DataArray], over: str = "prompt") -> dict[str, Number]:
    """Return several shares of yes and no, largest first, with intervals that hold together: the best was chosen.

    Each is (over,); see `tokinterp.stats.simultaneous`.
    """
    values = np.stack([v.values.astype(float) for v in numbers.values()], 1)
    groups, kind = groups_of(next(iter(numbers.values())), over)
    low, high = simultaneous_interval(values, groups)
    n = len(np.unique(groups))
    few = f"{n} {kind}: an interval takes {LEAST}"
    rows = {
        name: Number(m, float(a), float(b)) if np.isfinite(a)
        else plain(m, few) if n < LEAST else all_the_same(m, n, kind, True, len(numbers))
        for name, m, a, b in zip(numbers, map(float, np.nanmean(values, 0)), low, high, strict=True)
    }  # fmt: skip
    return dict(sorted(rows.items(), key=lambda row: -row[1].value))


def given(ds: xr.Dataset, name: str, interval: str = "", **at: Any) -> Number:
    """Return a variable that has its interval with it (``NAME_interval`` or the one named)."""
    one = ds.sel(at, drop=True)
    bounds = one[interval or f"{name}_interval"]
    low, high = (float(bounds.sel(bound=b)) for b in ("lower", "upper"))
    n, groups = ds.attrs.get("n_groups", LEAST), ds.attrs.get("groups", "groups")
    why = f"{n} {groups}: an interval takes {LEAST}" if not math.isfinite(low) and n < LEAST else ""
    return Number(float(one[name]), low, high, why)


def less(one: Number, other: Number) -> Number:
    """Return the difference of two numbers with the interval that theirs give it (Newcombe's; Zou and Donner's MOVER).

    For what is independent; of what goes up and down together, as with the same words, it is wider than it need be.

    Examples
    --------
    >>> less(Number(3, 2, 5), Number(1, 0, 2)).low
    1.5857864376269049
    """
    low = math.hypot(one.value - one.low, other.high - other.value)
    high = math.hypot(one.high - one.value, other.value - other.low)
    value = one.value - other.value
    return Number(value, value - low, value + high, one.why or other.why)


def curve(v: xr.DataArray, **at: Any) -> list[float]:
    """Return the mean over everything but layers (or blocks), one number per layer, in order."""
    v = v.sel(at, drop=True).astype(float)
    (kept,) = [d for d in v.dims if d in ("layer", "block")]
    return v.mean([d for d in v.dims if d != kept]).values.tolist()


def plain(value: Any, why: str = "") -> Number:
    """Return a number without an interval, perhaps with why it has none."""
    return Number(float(value), why=why)
