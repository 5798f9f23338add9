"""How soon a context makes up for a change: the excess of one condition over another along the prompt."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from ..kernels.state import neutral
from ..results.contrasts import contrast
from ..results.dataset import bound_coord, variable
from ..results.documents import groups_of, interval_name
from ..results.stamp import derived
from ..settings import checked
from ..stats.resample import mean_sums, ratio, resample, weights


@checked()
@neutral()
def half_life(
    ds: xr.Dataset | xr.DataTree, condition: str = "cipher", minus: str = "plain", name: str = "loss", *,
    level: float = 0.95, n_boot: int = 1000, seed: int = 0,
) -> xr.Dataset:  # fmt: skip
    """Return where in the prompt the excess of one condition over another has fallen to half of what it begins with.

    Parameters
    ----------
    ds : Dataset or node
        One measurement of `measure_conditions` with a variable (condition, prompt, place), such as `Decipherment`.
    condition, minus : str
        The excess is the first less the second, of each prompt.
    name : str
        The variable.
    level, n_boot, seed
        Of the bootstrap over prompts or documents, see `tokinterp.summary`.

    Returns
    -------
    xarray.Dataset
        ``excess`` (place) with ``excess_interval``, and ``half_life`` with ``half_life_interval``: where, between
        the first ones of two classes by the logarithm, at which the mean excess is half of that of its first class.
        NaN where the excess begins at zero or less, or never falls so far; ``reached`` is the share of bootstrap draws
        that have a half-life, and the interval is NaN where not all have.

    Raises
    ------
    ValueError
        If the result has no such variable or condition.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> prompts = ti.Prompts.from_texts(["The Nile flows north.", "Paris is in France.", "Go on, then."], model)
    >>> conditions = ti.behaviour.cipher_conditions(prompts)
    >>> asked = {"d": ti.behaviour.Decipherment(prompts, layers=[8])}
    >>> run = ti.measure_conditions(model, conditions, asked, progress=False)
    >>> ti.behaviour.half_life(run["d"])["excess"].dims
    ('place',)
    """
    given = ds.to_dataset(inherit=False) if isinstance(ds, xr.DataTree) else ds
    if name not in given or not {"condition", "prompt", "place"} <= {*given[name].dims}:
        raise ValueError(f"name={name!r}: the result has no such variable by condition, prompt and place")
    one = given[[name]].assign_attrs(given.attrs)
    change = contrast(one, condition, minus=minus, level=level, n_boot=n_boot, seed=seed)
    pair = [one[name].sel(condition=c).transpose("prompt", "place") for c in (condition, minus)]
    group = groups_of(one, "prompt")[0]
    above, below = mean_sums((pair[0] - pair[1]).values, group)
    start = given["place"].values

    def drawn(w: np.ndarray) -> np.ndarray:
        return np.array([half(row, start) for row in ratio(w @ above, w @ below)])

    whole = float(drawn(np.ones((1, len(above))))[0])
    known = np.isfinite(np.concatenate([drawn(w) for w in weights(len(above), n_boot, seed)]))
    ends = resample(drawn, len(above), level=level, n_boot=n_boot, seed=seed)
    what = f"first position at which the excess of {name} is half of that at the beginning"
    v = variable
    data: dict[str, Any] = {
        "excess": v("place", change[name].values, f"{name} under {condition!r} less that under {minus!r}",
                    given[name].attrs["units"], along=("place",)),
        "excess_interval": change[f"{name}_interval"].transpose("bound", "place").variable,
        "half_life": v((), whole, what, "token"),
        "half_life_interval": v("bound", ends if known.all() else np.full(2, np.nan),
                                interval_name(what, level, change.attrs["groups"], change.attrs["n_groups"]), "token"),
        "reached": v((), known.mean(), "share of bootstrap draws with a half-life", "1"),
    }  # fmt: skip
    said = {k: change.attrs[k] for k in ("n_groups", "groups")}
    out = xr.Dataset(data, {"place": given["place"].variable, "bound": bound_coord()}, {**said, "dimensions": "place"})
    settings = {"condition": condition, "minus": minus, "name": name, "level": level, "n_boot": n_boot}
    return derived(out, "half_life", [given], settings, seed)


def half(curve: np.ndarray, start: np.ndarray) -> float:
    """Return where a curve over positions falls to half of its first value; NaN where it does not.

    Examples
    --------
    >>> half(np.array([np.nan, 4.0, 3.0, 1.0]), np.array([0, 1, 3, 7]))
    4.656854249492381
    >>> half(np.array([4.0, 3.0]), np.array([1, 2]))
    nan
    """
    known = np.isfinite(curve)
    y, x = curve[known], np.log2(start[known] + 1)
    low = np.flatnonzero(y <= y[0] / 2) if len(y) else []
    if not len(low) or y[0] <= 0:
        return float("nan")
    k = int(low[0])
    share = (y[k - 1] - y[0] / 2) / (y[k - 1] - y[k])
    return float(2 ** (x[k - 1] + share * (x[k] - x[k - 1])) - 1)
