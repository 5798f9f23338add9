"""Correlation of a dimension with the loss across prompts: Pearson, Spearman, partial, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..kernels.state import neutral
from ..results.dataset import bound_coord, check, variable
from ..results.documents import groups_of
from ..results.stamp import derived
from ..settings import checked, several, string
from ..stats.jackknife import jackknife_error, jackknife_interval, left_out
from ..stats.resample import LEAST as LEAST_GROUPS
from ..stats.tests import false_discovery, fisher, pearson, spearman

if TYPE_CHECKING:
    from ..text.prompts import Prompts

LEAST = 8  # prompts


@checked(controls=several(string))
@neutral()
def dimension_loss_correlation(
    dimension: xr.Dataset,
    lens: xr.Dataset,
    covariates: xr.Dataset | None = None,
    *,
    name: str = "dimension",
    loss: str = "cross_entropy",
    controls: Sequence[str] = ("n_tokens", "n_types", "type_token_ratio", "unigram_surprisal"),
    level: float = 0.95,
) -> xr.Dataset:
    """Correlate the logarithm of the dimension of token clouds with the next-token loss, over prompts.

    Parameters
    ----------
    dimension : xarray.Dataset
        Result of `IntrinsicDimension` (or of `LogitDimension`), or any with a positive variable per prompt.
    lens : xarray.Dataset
        Result of `LogitLens` on the same prompts; its last layer, where all variants are the model's own prediction,
        gives the loss of each prompt.
    covariates : xarray.Dataset, optional
        From `prompt_covariates` of the same prompts; without it no partial correlation is given.
    name : str
        Variable of ``dimension``; its logarithm is taken.
    loss : str
        Variable of ``lens``: ``"cross_entropy"`` or ``"entropy"``.
    controls : sequence of str
        Variables of ``covariates`` that are held fixed; the ones that do not differ between prompts, or follow from
        the others, take no degree of freedom.
    level : float
        Of the intervals.

    Returns
    -------
    xarray.Dataset
        With the dims of the variable less ``prompt``: ``pearson``, ``spearman`` and ``partial`` (Pearson of what is
        left of both after a linear fit to the controls), each with ``_interval`` (Fisher's z; Spearman with the
        variance 1.06 / (n - 3) of Fieller et al. 1957), ``_p`` (two-sided, from z), ``_q`` (Benjamini-Hochberg over
        layers, at each scale by itself), and ``n``, the prompts with a value.  NaN for fewer than 8 prompts.  Where
        prompts are windows of documents (``n_groups``, attribute ``groups``), intervals and p are over documents, by
        the jackknife of z (some 20 groups of documents left out in turn), and NaN for fewer than 3.

    Raises
    ------
    ValueError
        If the results are of different models or prompts, lack the last layer, or a value is not positive.

    Notes
    -----
    The shared position matters: layer l of the dimension and the last layer of the lens belong to one pass; the
    notebook of the paper pairs the dimension of layer l + 1 with the lens of layer l.

    References
    ----------
    Viswanathan et al. 2025, arXiv 2501.10573 (log dimension against mean cross-entropy); Benjamini and Hochberg 1995.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> texts = [t.text for t in ti.bundled_texts()][:9]
    >>> prompts = ti.Prompts.from_texts(texts, model, max_tokens=48)
    >>> asked = {"dimension": ti.geometry.IntrinsicDimension((2, 4), k=4), "lens": ti.lens.LogitLens(top=0, tokens=0)}
    >>> run = ti.measure(model, prompts, asked, progress=False)
    >>> found = ti.geometry.dimension_loss_correlation(run["dimension"].to_dataset(), run["lens"].to_dataset())
    >>> found["pearson"].dims
    ('layer', 'scale')
    """
    value, losses = _aligned(dimension, lens, name, loss)
    rest = tuple(map(str, value.dims[1:]))
    x = value.values.reshape(len(losses), -1).astype(np.float64)
    if (x[np.isfinite(x)] <= 0).any():
        raise ValueError(f"{name} has values that are not positive: they have no logarithm")
    x, y = np.log(x), losses.astype(np.float64)
    fixed = None if covariates is None else _controls(covariates, controls, dimension)
    group, groups = groups_of(dimension if "document" in dimension.coords else lens, "prompt")
    columns = [_correlate(x[:, c], y, fixed, group, level) for c in range(x.shape[1])]
    n_groups = len(np.unique(group))
    shape = value.shape[1:]
    data: dict[str, Any] = {}
    for kind, text in KINDS.items():
        if kind == "partial" and fixed is None:
            continue
        r, low, high, p = np.array([c[kind] for c in columns]).T.reshape(4, *shape)
        what = f"{text} of log {name} with {loss}"
        data[kind] = variable(rest, r, what, "1", VISWANATHAN)
        data[f"{kind}_interval"] = variable(
            (*rest, "bound"),
            np.stack([low, high], -1),
            f"{level:.0%} interval of the {what} over {n_groups} {groups}",
            "1",
        )
        data[f"{kind}_p"] = variable(rest, p, f"p of the {what}, two-sided", "1")
        axis = rest.index("layer") if "layer" in rest else None
        q = p if axis is None else np.apply_along_axis(false_discovery, axis, p)
        over = "over layers" if axis is not None else "of one test"
        data[f"{kind}_q"] = variable(rest, q, f"false discovery rate {over} of the {what}", "1")
    n = np.array([c["n"] for c in columns]).reshape(shape)
    data["n"] = variable(rest, n, "prompts with a value", "1")
    have = np.array([c["n_groups"] for c in columns]).reshape(shape)
    data["n_groups"] = variable(rest, have, f"{groups} with a value", "1")
    coords = {k: c for k, c in dimension.coords.items() if "prompt" not in c.dims and {*c.dims} <= {*rest}}
    coords["bound"] = bound_coord()
    used = [] if fixed is None else list(controls)
    parameters = {"name": name, "loss": loss, "controls": used, "level": level}
    of = [dimension, lens, *([] if covariates is None else [covariates])]
    attrs = {"n_groups": n_groups, "groups": groups}
    out = derived(xr.Dataset(data, coords, attrs), "DimensionLossCorrelation", of, parameters)
    out["n"].attrs["missing"] = f"NaN for fewer than {LEAST} prompts"
    check(out)
    return out


@checked()
@neutral()
def prompt_covariates(prompts: Prompts) -> xr.Dataset:
    """Return what a prompt's dimension and loss may both hang on: length, repetition, frequency of its tokens.

    Parameters
    ----------
    prompts : Prompts
        Of the run; special tokens are left out.

    Returns
    -------
    xarray.Dataset
        Per prompt ``n_tokens``, ``n_types`` (different ids), ``type_token_ratio`` and ``unigram_surprisal`` (nat per
        token: minus the log frequency of its tokens in the *other* prompts, one added to the count of every type that
        occurs in the prompts).

    Examples
    --------
    >>> import tokinterp as ti
    >>> found = prompt_covariates(ti.Prompts.from_ids([[1, 2, 2], [2, 3]]))
    >>> found["type_token_ratio"].values.round(2).tolist()
    [0.67, 1.0]
    """
    bounds = zip(prompts.starts[:-1], prompts.starts[1:], strict=True)
    ids = [prompts.token_ids[a:b][~prompts.special_mask[a:b]] for a, b in bounds]
    size = 1 + max((int(part.max()) for part in ids if len(part)), default=0)
    total = np.bincount(np.concatenate(ids), minlength=size)
    known = int((total > 0).sum())
    rows = []
    for part in ids:
        types, count = np.unique(part, return_counts=True)
        others = total[types] - count
        chance = (others + 1) / (total.sum() - len(part) + known)
        n = len(part)
        surprisal = -(count * np.log(chance)).sum() / n if n else np.nan
        rows.append((n, len(types), len(types) / n if n else np.nan, surprisal))
    columns = list(zip(*rows, strict=True))
    v = variable
    data = {
        "n_tokens": v("prompt", np.array(columns[0]), "tokens, special ones not counted", "token"),
        "n_types": v("prompt", np.array(columns[1]), "different tokens", "1"),
        "type_token_ratio": v("prompt", np.array(columns[2]), "different tokens by tokens", "1"),
        "unigram_surprisal": v("prompt", np.array(columns[3]), "mean surprisal of the tokens by their frequency in the "
                               "other prompts", "nat"),
    }  # fmt: skip
    number = v("prompt", np.arange(len(ids)), "number of the prompt in the input", "1")
    return xr.Dataset(data, {"prompt": number}, {"prompts": prompts.hash})


VISWANATHAN = "Viswanathan et al. 2025, arXiv 2501.10573"
KINDS = {
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "partial": "partial correlation, controls held fixed,",
}


def _aligned(dimension: xr.Dataset, lens: xr.Dataset, name: str, loss: str) -> tuple[xr.DataArray, np.ndarray]:
    for ds, wanted in ((dimension, name), (lens, loss)):
        if wanted not in ds.data_vars or "prompt" not in ds[wanted].dims:
            raise ValueError(f"no variable {wanted!r} per prompt: there are {', '.join(map(str, ds.data_vars))}")
    for key in ("prompts", "weights", "identity"):
        if dimension.attrs.get(key) != lens.attrs.get(key):
            raise ValueError(f"the dimension and the loss are of different {key}: measure both in one run")
    last = lens.attrs.get("n_layers")
    if "layer" in lens[loss].dims and last not in lens["layer"].values:
        raise ValueError(f"the lens has no layer {last}, the last: its loss is the model's own; measure it too")
    value = dimension[name].transpose("prompt", ...)
    losses = lens[loss].sel(layer=last) if "layer" in lens[loss].dims else lens[loss]
    losses = losses.isel({d: 0 for d in losses.dims if d != "prompt"})
    if not np.array_equal(value["prompt"].values, losses["prompt"].values):
        raise ValueError("the dimension and the loss are of different prompts: measure both in one run")
    return value, losses.values


def _controls(covariates: xr.Dataset, names: Sequence[str], dimension: xr.Dataset) -> np.ndarray:
    missing = [n for n in names if n not in covariates.data_vars]
    if missing:
        raise ValueError(f"no control {missing[0]!r}: there are {', '.join(map(str, covariates.data_vars))}")
    if covariates.attrs.get("prompts", dimension.attrs.get("prompts")) != dimension.attrs.get("prompts"):
        raise ValueError("the covariates are of other prompts: make them with prompt_covariates(prompts) of the run")
    some = covariates.sel(prompt=dimension["prompt"].values)
    return np.stack([some[n].values.astype(np.float64) for n in names], axis=1)


def _correlate(
    x: np.ndarray, y: np.ndarray, fixed: np.ndarray | None, group: np.ndarray, level: float
) -> dict[str, Any]:
    """Return each kind of correlation with bounds and p, and the numbers of prompts and groups with a value."""
    ok = np.isfinite(x) & np.isfinite(y)
    if fixed is not None:
        ok &= np.isfinite(fixed).all(1)
    x, y, found = x[ok], y[ok], np.unique(group[ok], return_inverse=True)[1]
    fixed = None if fixed is None else fixed[ok]
    n_groups = int(found.max(initial=-1)) + 1
    whole, rank = _three(x, y, fixed)
    out: dict[str, Any] = {"n": len(x), "n_groups": n_groups}
    if n_groups == len(x):  # independent prompts
        less = {"spearman": (0, 1.06), "partial": (rank, 1.0)}
        for kind, r in whole.items():
            gone, variance = less.get(kind, (0, 1.0))
            out[kind] = r, *fisher(r, len(x) - gone, level, variance)
        return out
    parts: list[dict[str, float]] = []
    removed = left_out(n_groups) if n_groups >= LEAST_GROUPS else np.zeros((0, 1), dtype=int)
    for some in removed:
        stays = ~np.isin(found, some)
        parts.append(_three(x[stays], y[stays], None if fixed is None else fixed[stays])[0])
    for kind, r in whole.items():
        out[kind] = r, *_jackknifed(r, np.array([p[kind] for p in parts]), removed.shape[1], n_groups, level)
    return out


def _three(x: np.ndarray, y: np.ndarray, fixed: np.ndarray | None) -> tuple[dict[str, float], int]:
    """Return the correlations, and how many independent controls the partial one has."""
    out = {"pearson": pearson(x, y, LEAST), "spearman": spearman(x, y, LEAST)}
    if fixed is None:
        return out, 0
    rank, a, b = _residuals(fixed, x, y)
    return {**out, "partial": pearson(a, b, LEAST)}, rank


def _jackknifed(r: float, parts: np.ndarray, removed: int, n: int, level: float) -> tuple[float, float, float]:
    """Return bounds and p of a correlation from those without each of some groups, by Fisher's z."""
    from scipy import special

    if not np.isfinite([r, *parts]).all() or len(parts) < LEAST_GROUPS:
        return np.nan, np.nan, np.nan
    z, each = (np.arctanh(np.clip(v, -1 + 1e-15, 1 - 1e-15)) for v in (r, parts))
    low, high = np.tanh(jackknife_interval(z, each, removed, n, level))
    error = float(jackknife_error(each, removed, n))
    p = 2 * special.stdtr(len(parts) - 1, -abs(z) / error) if error > 0 else np.nan
    return float(low), float(high), float(p)


def _residuals(fixed: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """Return how many controls are independent (of each other and of the mean), and what they leave of x and y."""
    if not len(x):
        return 0, x, y
    centred = fixed - fixed.mean(0)
    spread = np.sqrt((centred**2).sum(0))
    centred = centred[:, spread > 1e-12 * np.abs(fixed).max(0).clip(1e-300) * len(x)]
    if not centred.shape[1]:
        return 0, x, y
    left, size, _ = np.linalg.svd(centred / np.sqrt((centred**2).sum(0)), full_matrices=False)
    basis = left[:, size > 1e-8 * size[0]]
    a, b = (v - v.mean() for v in (x, y))
    return basis.shape[1], a - basis @ (basis.T @ a), b - basis @ (basis.T @ b)
