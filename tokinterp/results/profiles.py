"""Per-token values by kind of token, and correlations over tokens, with intervals that respect prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..kernels.state import neutral
from ..settings import checked, count, flag, several, short, string
from ..stats.resample import resample
from ..stats.tests import binomial, ranks
from ..text.classes import TokenClasses
from .dataset import bound_coord, variable
from .stamp import derived

if TYPE_CHECKING:
    from ..text.prompts import Prompts
    from ..text.spans import TokenSpans

NUMBERS = ("token_prompt", "prompt")


@checked(other=string)
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
        n = stream.shape[0] if stream.ndim else 0
        raise ValueError(f"classes={short(classes)}: {n} labels for prompts of {prompts.n_tokens} tokens")
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
        Classes with fewer tokens that have a value are left out.
    level, n_boot, seed
        Of the intervals: whole documents are drawn with replacement, because tokens of one text are not independent.

    Returns
    -------
    xarray.Dataset
        Along ``subset`` (the classes, most tokens first): ``mean``, ``effect`` (mean minus that of all other tokens,
        over the pooled standard deviation of the two: Cohen's d), both with an ``_interval``; ``dominance`` (Cliff's
        delta: chance that a token of the class has a greater value than another token, minus that of a smaller one; -1
        to 1, no scale); ``n_tokens``, ``n_prompts``, ``n_documents``. Intervals are NaN where fewer than 3 documents
        have such a token.

    Examples
    --------
    >>> import tokinterp as ti
    >>> from tokinterp.text import token_classes
    >>> model = ti.load_model()
    >>> prompts = ti.Prompts.from_texts([t.text for t in ti.bundled_texts("story")[:4]], model)
    >>> run = ti.measure(model, prompts, {"lens": ti.lens.LogitLens(layers=[model.info.n_layers])}, progress=False)
    >>> lens = run["lens"].to_dataset().isel(layer=0, variant=0)
    >>> one = ti.results.class_profile(lens, "token_entropy", token_classes(prompts), prompts)
    >>> "stop word" in one.subset.values
    True
    """
    v = _one_value(ds, name)
    labels = labels_at(ds, classes, prompts)
    values, extra = _matrix(v)
    prompt = _prompt_of(ds)
    numbers, document = np.unique(prompts.documents[prompt], return_inverse=True)
    used = ~np.isin(labels, list(leave_out))
    found, counts = np.unique(labels[used & np.isfinite(values).any(1)], return_counts=True)
    found = found[np.lexsort((found, -counts))]
    found = found[np.sort(counts)[::-1] >= least]
    if len(found) < 1:
        raise ValueError(f"no class has {least} tokens with a value of {name}: measure more tokens, or lower least=")
    sums = np.zeros((len(found) + 1, len(numbers), 3, values.shape[1]))  # class (last: all), document, (n, sum, square)
    centre = np.nanmean(np.where(used[:, None], values, np.nan), axis=0)
    ok = np.isfinite(values) & used[:, None]
    shifted = np.where(ok, values - centre, 0.0)
    for c in range(len(found) + 1):
        here = ok if c == len(found) else ok & (labels == found[c])[:, None]
        for k, column in enumerate((here.astype(float), shifted * here, shifted**2 * here)):
            np.add.at(sums[c, :, k], document, column)
    mean, effect = _mean_and_effect(sums.sum(1))
    have = (sums[:-1, :, 0] > 0).sum(1)  # documents with a token of the class

    def both(weights: np.ndarray) -> np.ndarray:
        return np.stack(_mean_and_effect(np.einsum("bp,cpkx->bckx", weights, sums, optimize=True)), 1)

    boot = resample(both, len(numbers), np.stack([have, have]), level=level, n_boot=n_boot, seed=seed).swapaxes(0, 1)
    boot[0] += centre
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
        "n_documents": variable(dims, have.reshape(shape), "documents with such a token", "1"),
    }
    coords["subset"] = variable("subset", found.astype(object), "class of token", "1")
    coords["bound"] = bound_coord()
    attrs = {"profile_of": name, "resampled": f"{len(numbers)} documents, {n_boot} draws", "n_groups": len(numbers)}
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
        Of the intervals; whole documents (coordinate ``token_document``, else prompts) are drawn with replacement.

    Returns
    -------
    xarray.Dataset
        ``pearson``, ``spearman`` (of the ranks over all tokens, which the draws keep), each with ``_interval``; and
        ``n_tokens``, ``n_prompts``, ``n_groups``. NaN where a variable does not vary, intervals also
        for fewer than 3 groups.

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
    documents = [v["token_document"].values[at] for v, at in ((a, i), (b, j)) if "token_document" in v.coords]
    numbers, group = np.unique(documents[0] if documents else common >> 32, return_inverse=True)
    out: dict[str, list[Any]] = {"pearson": [], "spearman": [], "n_tokens": []}
    bands: dict[str, list[Any]] = {"pearson": [], "spearman": []}
    for column in x.T:
        ok = np.isfinite(column) & np.isfinite(y)
        out["n_tokens"].append(int(ok.sum()))
        for name, change in (("pearson", lambda z: z), ("spearman", ranks)):
            sums = _products(change(column[ok]), change(y[ok]), group[ok], len(numbers))
            out[name].append(float(_pearson(sums.sum(0))))
            have, draw = int((sums[:, 0] > 0).sum()), lambda w, s=sums: _pearson(w @ s)
            bands[name].append(resample(draw, len(numbers), have, level=level, n_boot=n_boot, seed=seed))
    dims, shape = tuple(extra), tuple(a.sizes[d] for d in extra)
    what = f"{a.attrs.get('long_name', a.name)} and {b.attrs.get('long_name', b.name)}"
    data: dict[str, Any] = {}
    for name, title in (("pearson", "Pearson correlation"), ("spearman", "Spearman correlation")):
        data[name] = variable(dims, np.reshape(out[name], shape), f"{title} of {what}", "1")
        data[f"{name}_interval"] = variable(
            ("bound", *dims), np.reshape(np.transpose(bands[name]), (2, *shape)), f"{level:.0%} interval", "1"
        )
    data["n_tokens"] = variable(dims, np.reshape(out["n_tokens"], shape), "tokens with both values", "token")
    data["n_prompts"] = variable((), len(np.unique(common >> 32)), "prompts with both values", "1")
    data["n_groups"] = variable((), len(numbers), "documents, or else prompts, drawn for the intervals", "1")
    coords: dict[Any, Any] = {c: v for c, v in a.coords.items() if "token" not in v.dims}
    coords["bound"] = bound_coord()
    return derived(xr.Dataset(data, coords), "token_correlation", [a, b], {"level": level, "n_boot": n_boot}, seed)


@checked(first=several(flag, 1), second=several(flag, 1))
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
        raise ValueError(
            f"first and second have {a.shape} and {b.shape} answers: give one for each item, under both conditions"
        )
    lost, won = int((a & ~b).sum()), int((~a & b).sum())
    p = binomial(lost, won) if lost + won else 1.0
    return {"n": len(a), "only_first": lost, "only_second": won, "difference": (won - lost) / len(a), "p": p}


def _one_value(ds: xr.Dataset, name: str) -> xr.DataArray:
    if name not in ds.data_vars or "token" not in ds[name].dims:
        known = [str(n) for n, x in ds.data_vars.items() if "token" in x.dims]
        raise ValueError(
            f"name={name!r}: no variable {name!r} with one value per token: there are {', '.join(known) or 'none'}"
        )
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
            f"a, b: {v.name} has the dimensions {', '.join(map(str, v.dims))}: choose values of all but token and "
            "one other"
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


def _dominance(values: np.ndarray, labels: np.ndarray, found: np.ndarray, ok: np.ndarray) -> np.ndarray:
    """Return (class, x) Cliff's delta of each class against all other tokens."""
    out = np.full((len(found), values.shape[1]), np.nan)
    for x in range(values.shape[1]):
        use = ok[:, x]
        rank, own = ranks(values[use, x]), labels[use]
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
    """Return (...) Pearson correlations from (..., 6) sums of `_products`: of all draws of a bootstrap at once."""
    n, a, b, aa, bb, ab = np.moveaxis(s, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        va, vb = aa - a * a / n, bb - b * b / n
        r = (ab - a * b / n) / np.sqrt(va * vb)
    return np.where((va > 1e-12 * aa) & (vb > 1e-12 * bb), np.clip(r, -1, 1), np.nan)


__all__ = ["class_profile", "labels_at", "mcnemar", "span_labels", "token_correlation"]
