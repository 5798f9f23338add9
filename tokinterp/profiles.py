"""Per-token values by kind of token, and correlations over tokens, with intervals that respect prompts."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from .dataset import variable
from .kernels.state import neutral
from .settings import anything, checked, count, several, string
from .stamp import derived
from .text.classes import TokenClasses

if TYPE_CHECKING:
    from .text.prompts import Prompts
    from .text.spans import TokenSpans

NUMBERS = ("token_prompt", "prompt")


@checked()
def span_labels(spans: TokenSpans, prompts: Prompts, kind: str | None = None, other: str = "") -> np.ndarray:
    """Return (token,) str of the stream of all prompts: the type of the span that each token belongs to.

    Part-of-speech tags of words so reach all tokens of a word. Where spans overlap, the longest counts.

    Parameters
    ----------
    spans : TokenSpans
        Of ``Spans.align(prompts)``; for example from a CoNLL-U file, or tagged by spaCy.
    prompts : Prompts
        The prompts they were aligned with.
    kind : str, optional
        Only spans of this kind (``"pos"``).
    other : str
        Label of the tokens in none; `class_profile` leaves out ``""``.

    Examples
    --------
    >>> import tokinterp as ti
    >>> texts = ["Paris is old."]
    >>> prompts = ti.Prompts.from_texts(texts, ti.load_model())
    >>> spans = ti.Spans.from_records([{"document": 0, "start": 0, "stop": 5, "kind": "pos", "type": "NNP"}], texts)
    >>> set(span_labels(spans.align(prompts), prompts, other="?").tolist()) == {"NNP", "?"}
    True
    """
    out = np.full(prompts.n_tokens, other, dtype=object)
    rows = np.arange(len(spans)) if kind is None else np.flatnonzero(spans.kind == kind)
    if not len(rows):
        raise ValueError(f"no aligned spans{'' if kind is None else f' of kind {kind!r}'}: {spans!r}")
    for r in rows[np.argsort(spans.n_tokens[rows], kind="stable")]:
        begin = prompts.starts[spans.prompt[r]]
        out[begin + spans.start[r] : begin + spans.stop[r]] = str(spans.type[r])
    return out.astype(str)


def labels_at(
    ds: xr.Dataset | xr.DataArray, classes: TokenClasses | Sequence[str] | np.ndarray, prompts: Prompts
) -> np.ndarray:
    """Return (token,) str labels of the tokens of a result, from labels of the stream of all prompts.

    Raises
    ------
    ValueError
        If there is not one label for each token of the prompts.
    """
    if isinstance(classes, TokenClasses):
        stream = np.asarray(classes.names)[classes.codes]
    else:
        stream = np.asarray(classes).astype(str)
    if stream.shape != (prompts.n_tokens,):
        raise ValueError(f"{stream.shape[0] if stream.ndim else 0} labels for prompts of {prompts.n_tokens} tokens")
    return stream[prompts.starts[_prompt_of(ds)] + ds["position"].values]


@checked(leave_out=several(string) | string, least=count(1))
@neutral()
def class_profile(
    ds: xr.Dataset,
    name: str,
    classes: TokenClasses | Sequence[str] | np.ndarray,
    prompts: Prompts,
    *,
    leave_out: Sequence[str] = ("", "special"),
    least: int = 10,
    level: float = 0.95,
    n_boot: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """Describe a per-token variable by class of token.

    Parameters
    ----------
    ds : xarray.Dataset
        Result with the dimension ``token`` (coordinates token_prompt and position); ``name`` may have one further
        dimension (layer, block).
    name : str
        Variable.
    classes : TokenClasses or (token,) str
        Of the stream of all prompts: `tokinterp.text.token_classes`, or `span_labels` for parts of speech.
    prompts : Prompts
        That were measured.
    leave_out : sequence of str
        Classes whose tokens take no part, not even among "all other tokens". BOS, an attention sink, is so far from
        every other token that with it no other difference can be seen.
    least : int
        Classes with fewer values are left out.
    level, n_boot, seed
        Of the intervals: whole prompts are drawn with replacement, because tokens of one prompt are not independent.

    Returns
    -------
    xarray.Dataset
        Along ``subset`` (the classes, most tokens first): ``mean``, ``effect`` (mean minus that of all other tokens,
        over the pooled standard deviation of the two: Cohen's d), both with an ``_interval``; ``dominance`` (Cliff's
        delta: chance that a token of the class has a greater value than another token, minus that of a smaller one; -1
        to 1, no scale); ``n_tokens``, ``n_prompts``. Intervals are NaN with fewer than 2 prompts.

    Examples
    --------
    >>> import tokinterp as ti
    >>> from tokinterp.text import token_classes
    >>> model = ti.load_model()
    >>> prompts = ti.Prompts.from_texts([t.text for t in ti.bundled_texts("story")[:4]], model)
    >>> run = ti.measure(model, prompts, {"lens": ti.LogitLens(layers=[model.info.n_layers])}, progress=False)
    >>> lens = run["lens"].to_dataset().isel(layer=0, variant=0)
    >>> one = ti.class_profile(lens, "token_entropy", token_classes(prompts), prompts)
    >>> "stop word" in one.subset.values
    True
    """
    v = _one_value(ds, name)
    labels = labels_at(ds, classes, prompts)
    values, extra = _matrix(v)
    numbers, prompt = np.unique(_prompt_of(ds), return_inverse=True)
    used = ~np.isin(labels, list(leave_out))
    found, counts = np.unique(labels[used & np.isfinite(values).any(1)], return_counts=True)
    found = found[np.lexsort((found, -counts))]
    found = found[[int((labels == c).sum()) >= least for c in found]] if len(found) else found
    if len(found) < 1:
        raise ValueError(f"no class has {least} tokens with a value of {name}: measure more tokens, or lower least=")
    sums = np.zeros((len(found) + 1, len(numbers), 3, values.shape[1]))  # class (last: all), prompt, (n, sum, squares)
    centre = np.nanmean(np.where(used[:, None], values, np.nan), axis=0)
    ok = np.isfinite(values) & used[:, None]
    shifted = np.where(ok, values - centre, 0.0)
    for c in range(len(found) + 1):
        here = ok if c == len(found) else ok & (labels == found[c])[:, None]
        for k, column in enumerate((here.astype(float), shifted * here, shifted**2 * here)):
            np.add.at(sums[c, :, k], prompt, column)
    mean, effect = _mean_and_effect(sums.sum(1))
    weights = _draws(len(numbers), n_boot, seed)
    boot = [np.full((2, *mean.shape), np.nan)] * 2
    if len(numbers) > 1:
        means, effects = _mean_and_effect(np.einsum("bp,cpkx->bckx", weights, sums))
        tails = [(1 - level) / 2, (1 + level) / 2]
        boot = [_quantiles(b, tails) for b in (means + centre, effects)]
    dims, coords = ("subset", *extra), {c: x for c, x in v.coords.items() if "token" not in x.dims}
    text, units = str(v.attrs.get("long_name", name)), str(v.attrs.get("units", "1"))
    shape = (len(found), *(v.sizes[d] for d in extra))
    prompts_of = [len(np.unique(prompt[(labels == c) & np.isfinite(values).any(1)])) for c in found]
    data = {
        "mean": variable(dims, (mean + centre).reshape(shape), f"mean {text}", units),
        "mean_interval": variable(
            ("bound", *dims), boot[0].reshape(2, *shape), f"{level:.0%} interval of the mean {text}", units
        ),
        "effect": variable(dims, effect.reshape(shape), "difference from all other tokens, Cohen's d", "1"),
        "effect_interval": variable(
            ("bound", *dims), boot[1].reshape(2, *shape), f"{level:.0%} interval of Cohen's d", "1"
        ),
        "dominance": variable(
            dims, _dominance(values, labels, found, ok).reshape(shape), "Cliff's delta against all other tokens", "1"
        ),
        "n_tokens": variable(dims, sums[:-1, :, 0].sum(1).astype(int).reshape(shape), "tokens", "token"),
        "n_prompts": variable("subset", prompts_of, "prompts with such a token", "1"),
    }
    coords["subset"] = variable("subset", found.astype(object), "class of token", "1")
    coords["bound"] = variable("bound", np.array(["lower", "upper"]), "bound of the interval", "1")
    attrs = {"profile_of": name, "resampled": f"{len(numbers)} prompts, {n_boot} draws"}
    settings = {"name": name, "classes": labels, "leave_out": list(leave_out), "least": least, "level": level,
                "n_boot": n_boot, "prompts": prompts}  # fmt: skip
    return derived(xr.Dataset(data, coords, attrs), "class_profile", [ds], settings, seed, same_kind=True)


@checked()
@neutral()
def token_correlation(
    a: xr.DataArray, b: xr.DataArray, *, level: float = 0.95, n_boot: int = 1000, seed: int = 0
) -> xr.Dataset:
    """Correlate two per-token variables over the tokens that have both.

    Parameters
    ----------
    a, b : xarray.DataArray
        With the dimension ``token`` and the coordinates token_prompt and position, by which they are matched, in any
        order; ``a`` may have one further dimension (layer, block), ``b`` none.
    level, n_boot, seed
        Of the intervals; whole prompts are drawn with replacement.

    Returns
    -------
    xarray.Dataset
        ``pearson``, ``spearman`` (of the ranks over all tokens, which the draws keep), each with ``_interval``; and
        ``n_tokens``, ``n_prompts``. NaN where a variable does not vary.

    Raises
    ------
    ValueError
        If a place occurs twice, or no token has both values.

    Examples
    --------
    >>> place = {"token_prompt": ("token", [0, 0, 1]), "position": ("token", [1, 2, 1])}
    >>> x = xr.DataArray([1.0, 2.0, 4.0], dims="token", coords=place)
    >>> float(token_correlation(x, 2 * x)["pearson"])
    1.0
    """
    x, extra = _matrix(a)
    y, none = _matrix(b)
    if none:
        raise ValueError(f"{b.name} has the dimensions {', '.join(map(str, b.dims))}: choose one value of {none[0]}")
    keys = [_prompt_of(v).astype(np.int64) << 32 | v["position"].values.astype(np.int64) for v in (a, b)]
    for v, k in zip((a, b), keys, strict=True):
        if len(np.unique(k)) < len(k):
            raise ValueError(f"{v.name} has two values at one place of a prompt")
    common, i, j = np.intersect1d(keys[0], keys[1], return_indices=True)
    if not len(common):
        raise ValueError(f"no token has both {a.name} and {b.name}: were they measured on the same prompts?")
    x, y = x[i], y[j, 0]
    numbers, prompt = np.unique(common >> 32, return_inverse=True)
    weights = _draws(len(numbers), n_boot, seed)
    tails = [(1 - level) / 2, (1 + level) / 2]
    out: dict[str, list[Any]] = {"pearson": [], "spearman": [], "n_tokens": []}
    bands: dict[str, list[Any]] = {"pearson": [], "spearman": []}
    for column in x.T:
        ok = np.isfinite(column) & np.isfinite(y)
        out["n_tokens"].append(int(ok.sum()))
        for name, change in (("pearson", lambda z: z), ("spearman", _ranks)):
            sums = _products(change(column[ok]), change(y[ok]), prompt[ok], len(numbers))
            out[name].append(float(_pearson(sums.sum(0))))
            band = _quantiles(_pearson(weights @ sums)[:, None], tails)[:, 0] if len(numbers) > 1 else [np.nan] * 2
            bands[name].append(band)
    dims, shape = tuple(extra), tuple(a.sizes[d] for d in extra)
    what = f"{a.attrs.get('long_name', a.name)} and {b.attrs.get('long_name', b.name)}"
    data: dict[str, Any] = {}
    for name, title in (("pearson", "Pearson correlation"), ("spearman", "Spearman correlation")):
        data[name] = variable(dims, np.reshape(out[name], shape), f"{title} of {what}", "1")
        data[f"{name}_interval"] = variable(
            ("bound", *dims), np.reshape(np.transpose(bands[name]), (2, *shape)), f"{level:.0%} interval", "1"
        )
    data["n_tokens"] = variable(dims, np.reshape(out["n_tokens"], shape), "tokens with both values", "token")
    data["n_prompts"] = variable((), len(numbers), "prompts drawn for the intervals", "1")
    coords: dict[Any, Any] = {c: v for c, v in a.coords.items() if "token" not in v.dims}
    coords["bound"] = variable("bound", np.array(["lower", "upper"]), "bound of the interval", "1")
    return derived(xr.Dataset(data, coords), "token_correlation", [a, b], {"level": level, "n_boot": n_boot}, seed)


@checked(first=anything, second=anything)
@neutral()
def mcnemar(first: Sequence[bool] | np.ndarray, second: Sequence[bool] | np.ndarray) -> dict[str, float]:
    """Test whether two conditions answer the same items equally often (exact McNemar test).

    Parameters
    ----------
    first, second : sequence of bool
        Whether each item was right under each condition.

    Returns
    -------
    dict
        ``n``, ``only_first``, ``only_second`` (items right under one condition alone), ``difference`` (accuracy of the
        second minus the first), ``p`` (two-sided; 1 where no item differs).

    Examples
    --------
    >>> mcnemar([True] * 6, [False] * 6)["p"]
    0.03125
    """
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"{a.shape} and {b.shape} answers: give one for each item, under both conditions")
    lost, won = int((a & ~b).sum()), int((~a & b).sum())
    n, few = lost + won, min(lost, won)
    p = min(1.0, 2 * sum(comb(n, k) for k in range(few + 1)) / 2**n) if n else 1.0
    return {"n": len(a), "only_first": lost, "only_second": won, "difference": (won - lost) / len(a), "p": p}


def _one_value(ds: xr.Dataset, name: str) -> xr.DataArray:
    if name not in ds.data_vars or "token" not in ds[name].dims:
        known = [str(n) for n, x in ds.data_vars.items() if "token" in x.dims]
        raise ValueError(f"no variable {name!r} with one value per token: there are {', '.join(known) or 'none'}")
    return ds[name]


def _prompt_of(ds: xr.Dataset | xr.DataArray) -> np.ndarray:
    for name in NUMBERS:
        if name in ds.coords and ds[name].dims == ("token",):
            return ds[name].values
    raise ValueError("the tokens of this result do not say which prompt they belong to (coordinate token_prompt)")


def _matrix(v: xr.DataArray) -> tuple[np.ndarray, list[str]]:
    """Return (token, further) float64 and the name of the further dimension, if any."""
    extra = [str(d) for d in v.dims if d != "token"]
    if "token" not in v.dims or len(extra) > 1:
        raise ValueError(
            f"{v.name} has the dimensions {', '.join(map(str, v.dims))}: choose values of all but token and one other"
        )
    values = v.transpose("token", ...).values.astype(np.float64)
    return values.reshape(v.sizes["token"], -1), extra


def _mean_and_effect(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (..., class, x) mean and Cohen's d from (..., class and all, (n, sum, squares), x)."""
    own, rest = sums[..., :-1, :, :], sums[..., -1:, :, :] - sums[..., :-1, :, :]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean, other = (s[..., 1, :] / s[..., 0, :] for s in (own, rest))
        inner = sum(s[..., 2, :] - s[..., 1, :] ** 2 / s[..., 0, :] for s in (own, rest))
        pooled = np.sqrt(np.maximum(inner, 0) / (own[..., 0, :] + rest[..., 0, :] - 2))
        effect = (mean - other) / pooled
    return mean, np.where(np.isfinite(effect), effect, np.nan)


def _draws(n: int, n_boot: int, seed: int) -> np.ndarray:
    """Return (draw, prompt) how often each prompt was drawn."""
    if n_boot < 1:
        raise ValueError(f"n_boot={n_boot}: at least one draw is needed")
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_boot).astype(float)


def _quantiles(values: np.ndarray, tails: Sequence[float]) -> np.ndarray:
    """Return (2, ...) quantiles over the first axis; NaN where no draw has a value."""
    flat = values.reshape(len(values), -1)
    out = np.full((2, flat.shape[1]), np.nan)
    some = np.isfinite(flat).any(0)
    out[:, some] = np.nanquantile(flat[:, some], tails, axis=0)
    return out.reshape(2, *values.shape[1:])


def _ranks(x: np.ndarray) -> np.ndarray:
    """Return ranks from 1, ties at their mean."""
    _, place, count = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2)[place]


def _dominance(values: np.ndarray, labels: np.ndarray, found: np.ndarray, ok: np.ndarray) -> np.ndarray:
    """Return (class, x) Cliff's delta of each class against all other tokens."""
    out = np.full((len(found), values.shape[1]), np.nan)
    for x in range(values.shape[1]):
        use = ok[:, x]
        rank, own = _ranks(values[use, x]), labels[use]
        for c, label in enumerate(found):
            here = own == label
            n, m = int(here.sum()), int((~here).sum())
            if n and m:
                out[c, x] = 2 * (rank[here].sum() - n * (n + 1) / 2) / (n * m) - 1
    return out


def _products(x: np.ndarray, y: np.ndarray, prompt: np.ndarray, n: int) -> np.ndarray:
    """Return (prompt, 6) count, sums, squares and products about the means."""
    if not len(x):
        return np.zeros((n, 6))
    u, v = x - x.mean(), y - y.mean()
    columns = (np.ones_like(u), u, v, u * u, v * v, u * v)
    return np.stack([np.bincount(prompt, c, n) for c in columns], 1)


def _pearson(s: np.ndarray) -> np.ndarray:
    n, a, b, aa, bb, ab = np.moveaxis(s, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        va, vb = aa - a * a / n, bb - b * b / n
        r = (ab - a * b / n) / np.sqrt(va * vb)
    return np.where((va > 1e-12 * aa) & (vb > 1e-12 * bb), np.clip(r, -1, 1), np.nan)


__all__ = ["class_profile", "labels_at", "mcnemar", "span_labels", "token_correlation"]
