"""The same erasure scores from probes trained again: what of them is the model's, and what the training's."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import combinations

import numpy as np
import xarray as xr

from ..kernels.state import neutral
from ..results.dataset import bound_coord, variable
from ..results.documents import groups_of, interval_name
from ..results.stamp import derived
from ..settings import checked, result, several
from ..stats.resample import ratio, resample
from .vocabulary_tally import SCORING

Segment = tuple[int, int, int]
"""Prompt, start and stop."""


@checked(results=several(result, 2))
@neutral()
def seed_agreement(results: Sequence[xr.Dataset]) -> xr.Dataset:
    """Compare erasure scores of probes that differ in nothing but the seed of their training.

    Parameters
    ----------
    results : sequence of Dataset
        Results of `ErasureScores` over the same prompts with the same settings, one for each fit, with ``delta`` kept
        (``tokens=``).

    Returns
    -------
    xarray.Dataset
        ``shared_segments``: share of the segments of two or more tokens that two fits have in common (intersection
        over union), mean over pairs of fits, with ``shared_segments_interval`` over documents (of these very fits: it
        does not know of others). ``psi_sd``: standard deviation over fits of psi of the segments that all
        have, mean over these, and ``n_shared`` how many there are. By offset ``delta_sd``, the standard deviation of
        delta over fits (root mean square over tokens), ``delta_spread``, that of its mean over tokens, and
        ``delta_correlation``, mean over pairs. By ``replicate`` ``mean_psi`` of the segments of two or more tokens.

    Raises
    ------
    ValueError
        For fewer than two results, other prompts or other settings, or results without delta per token.

    Examples
    --------
    >>> coords = {"token_prompt": ("token", [0, 0]), "position": ("token", [1, 2]), "offset": [0],
    ...           "span_prompt": ("span", [0]), "start": ("span", [1]), "stop": ("span", [3])}
    >>> one = xr.Dataset({"psi": ("span", [0.5]), "delta": (("token", "offset"), [[0.1], [0.9]])}, coords)
    >>> seed_agreement([one, one + 0.1])["shared_segments"].item()
    1.0
    """
    first = results[0]
    for ds in results:
        if "delta" not in ds:
            raise ValueError("a result keeps no delta per token: measure ErasureScores(..., tokens=None)")
        for name in ("prompts", "weights", "identity", *SCORING):
            if ds.attrs.get(name) != first.attrs.get(name):
                raise ValueError(
                    f"the results differ in more than the seed: {name} is {first.attrs.get(name)} and "
                    f"{ds.attrs.get(name)}"
                )
        if ds["delta"].shape != first["delta"].shape:
            raise ValueError("the results keep delta for other tokens: give all the same tokens=")
    scores = [_segments(ds) for ds in results]
    pairs = list(combinations(range(len(results)), 2))
    shared, bounds, n_groups, groups = _shared([(scores[a].keys(), scores[b].keys()) for a, b in pairs], results)
    common = sorted(set.intersection(*(set(s) for s in scores)))
    psi = np.array([[s[k] for k in common] for s in scores])
    delta = np.stack([ds["delta"].transpose("offset", "token").values.astype(np.float64) for ds in results])
    offsets = first["offset"].values
    sd, spread, alike = (np.full(len(offsets), np.nan) for _ in range(3))
    for n in range(len(offsets)):
        x = delta[:, n, np.isfinite(delta[:, n]).all(0)]
        if x.shape[1] > 1:
            sd[n] = np.sqrt(x.var(0, ddof=1).mean())
            spread[n] = x.mean(0).std()
            if (x.std(1) > 0).all():
                r = np.atleast_2d(np.corrcoef(x))
                alike[n] = np.mean([r[a, b] for a, b in pairs])
    units = str(first["psi"].attrs.get("units", "1"))
    v, what = variable, "share of the segments that two fits have in common"
    data = {
        "shared_segments": v((), shared, what, "1"),
        "shared_segments_interval": v("bound", bounds, interval_name(what, 0.95, groups, n_groups), "1"),
        "n_shared": v((), len(common), "segments of two or more tokens that all fits have", "1"),
        "psi_sd": v((), psi.std(0, ddof=1).mean() if common else np.nan, "mean sd over fits of their psi", units),
        "delta_sd": v("offset", sd, "sd of delta over fits, root mean square over tokens", units),
        "delta_spread": v("offset", spread, "sd over tokens of the mean delta over fits", units),
        "delta_correlation": v("offset", alike, "correlation of delta between two fits, mean over pairs", "1"),
        "mean_psi": v(
            "replicate", [np.mean([*s.values()]) if s else np.nan for s in scores],
            "mean psi of segments of two or more tokens", units,
        ),
    }  # fmt: skip
    coords = {
        "offset": v("offset", offsets, "place decoded minus place probed", "1"),
        "replicate": v("replicate", np.arange(len(results)), "fit of the probes", "1"),
        "bound": bound_coord(),
    }
    return derived(xr.Dataset(data, coords), "seed agreement", results, {})


def _shared(
    pairs: Sequence[tuple[Collection[Segment], Collection[Segment]]], results: Sequence[xr.Dataset]
) -> tuple[float, np.ndarray, int, str]:
    """Return the shared part of the segments (mean over pairs), its interval, and how many of what were drawn."""
    _, kind = groups_of(results[0], "span")
    of_prompt: dict[int, int] = {}
    for ds in results:
        of_prompt |= dict(zip(ds["span_prompt"].values.tolist(), groups_of(ds, "span")[0].tolist(), strict=True))
    number = {g: i for i, g in enumerate(sorted(set(of_prompt.values())))}
    counts = np.zeros((2, len(number), len(pairs)))  # in both, in any
    for column, (one, other) in enumerate(pairs):
        for row, found in enumerate(({*one} & {*other}, {*one} | {*other})):
            np.add.at(counts[row, :, column], [number[of_prompt[prompt]] for prompt, _, _ in found], 1)

    def share(w: np.ndarray) -> np.ndarray:
        return ratio(w @ counts[0], w @ counts[1]).mean(1)

    some = int((counts[1] > 0).any(1).sum())
    whole = float(share(np.ones((1, len(number))))[0])
    return (whole if some else 0.0), resample(share, len(number), some), some, kind


def _segments(ds: xr.Dataset) -> dict[Segment, float]:
    """Return (prompt, start, stop) -> psi of the segments of two or more tokens."""
    number, start, stop = (ds[n].values.tolist() for n in ("span_prompt", "start", "stop"))
    keys = zip(number, start, stop, strict=True)
    return {k: p for k, p in zip(keys, ds["psi"].values.tolist(), strict=True) if k[2] - k[1] > 1}
