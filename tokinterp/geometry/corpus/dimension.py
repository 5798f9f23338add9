"""In how many directions the tokens of a corpus spread at each layer: by scale, and around each token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from ...results.dataset import bound_coord, check, variable
from ...results.documents import groups_of
from ...results.stamp import derived
from ...run.measurement import Field
from ...settings import LARGEST, checked, count, device, none, one_of, refuse
from ...stats.jackknife import jackknife_interval, left_out
from ..dimension import FACCO, LEVINA, gride_columns, gride_fields
from ..kernels import gride as estimators
from ..kernels.corpus import local_twonn
from .shared import check_cloud, first_of_state, layer_points

RUPPIK = "Ruppik et al. 2025, arXiv 2506.01034"
FIELDS = {
    **{n: f for n, f in gride_fields().items() if n in ("dimension", "dimension_error", "distance", "n_tied", "n_cut")},
    "dimension_mle": Field(("layer",), "intrinsic dimension by maximum likelihood", "1", LEVINA,
                           short="intrinsic dimension (MLE)", range=(0, None)),
    "dimension_twonn": Field(("layer",), "intrinsic dimension from the two nearest neighbours", "1", FACCO,
                             short="intrinsic dimension (TwoNN)", range=(0, None)),
    "local_dimension": Field(("token", "layer"), "intrinsic dimension around the token", "1", LEVINA,
                             short="local dimension", range=(0, None)),
    "local_twonn": Field(("token", "layer"), "dimension of the neighbourhood of the token by TwoNN", "1", RUPPIK,
                         short="local dimension (TwoNN)", range=(0, None)),
    "local_twonn_mean": Field(("layer",), "mean over tokens of the dimension of their neighbourhoods", "1", RUPPIK,
                              short="mean local dimension", range=(0, None)),
}  # fmt: skip
WITH_INTERVALS = ("dimension", "dimension_mle", "dimension_twonn", "local_twonn_mean")


@checked(k=count(2), twonn=one_of(*estimators.TWONN), local=count(8), groups=one_of(0) | count(2),
         memory=count(2**20, LARGEST), device=device | none)  # fmt: skip
def corpus_dimension(
    near: xr.Dataset,
    scales: Sequence[int] = (2, 4, 8, 16, 32, 64),
    *,
    k: int = 20,
    twonn: str = "gride",
    cloud: xr.Dataset | None = None,
    local: int = 128,
    groups: int = 20,
    level: float = 0.95,
    memory: int = 2**30,
    device: str | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Estimate the intrinsic dimension of the cloud of a corpus at each layer, and around each of its tokens.

    Parameters
    ----------
    near : xarray.Dataset
        From `corpus_neighbours`.
    scales : sequence of int
        Neighbour ranks ``n2`` of GRIDE, as in `IntrinsicDimension`; at most the neighbours at hand.
    k : int
        Neighbours of the maximum likelihood estimate and of ``local_dimension``.
    twonn : str
        Fit of ``dimension_twonn``, as in `IntrinsicDimension`.
    cloud : xarray.Dataset, optional
        The cloud in which the neighbours are: adds ``local_twonn``, TwoNN among the ``local`` nearest neighbours of
        each token (Ruppik et al. 2025), for which ``corpus_neighbours`` needs as many.
    local : int
        Neighbours of ``local_twonn``, 128 as published.
    groups : int
        Least number of groups of prompts (of documents, where prompts are windows) that are left out in turn for the
        intervals; 0 for none.
    level : float
        Of the intervals.
    memory : int
        Bytes of working memory of ``local_twonn``.
    device : str, optional
        Of ``local_twonn``; ``"cuda"`` by default where there is one.
    seed : int
        Of the groups.

    Returns
    -------
    xarray.Dataset
        ``dimension``, ``dimension_error``, ``distance``, ``n_tied``, ``n_cut`` (layer, scale), ``dimension_mle`` and
        ``dimension_twonn`` (layer), ``local_dimension`` (token, layer), with a cloud ``local_twonn`` (token, layer) and
        ``local_twonn_mean`` (layer); with an ``_interval`` (bound, ...) each of those that are no values of tokens.

    Raises
    ------
    ValueError
        If more neighbours are asked for than ``near`` has.

    Notes
    -----
    For one prompt, with all its tokens, the numbers are those of `IntrinsicDimension`.  ``dimension_error`` takes
    tokens as independent.  The intervals are jackknife ones over prompts, of which tokens are left out with all that
    they see; the cloud in which they look stays the same.  Each distinct state counts once.  A token without so many
    neighbours (kept ``apart`` from most) is left out, and counted in ``n_tied``.

    In the cloud of a corpus the tokens of one word are a cluster: at small scales the dimension is that of the
    clusters, at large ones that of how they lie.  With ``apart=["token"]`` the nearest others are several tokens of
    one other word at nearly one distance, which makes small scales large: read scales beyond the size of a cluster.
    ``apart`` says who is in the neighbourhood of a token; ``local_twonn`` takes the neighbours' own distances from
    each other as they are.

    Memory: 8 bytes x tokens searched x layers x (k of ``near``) a few times over, and ``memory``.

    References
    ----------
    Denti et al. 2022 (GRIDE), Facco et al. 2017 (TwoNN), Levina and Bickel 2005; Ruppik et al. 2025, arXiv 2506.01034.

    Examples
    --------
    >>> import tokinterp as ti
    >>> texts = [t.text[:200] for t in ti.bundled_texts("story")[:4]]
    >>> cloud = ti.geometry.corpus_cloud(ti.load_model(), texts, [0, 4], progress=False)
    >>> near = ti.geometry.corpus_neighbours(cloud, k=8, n_tokens=None, progress=False)
    >>> ti.geometry.corpus_dimension(near, (2, 4, 8), k=8)["dimension"].dims
    ('layer', 'scale')
    """
    if str(near.attrs.get("measurement")) != "corpus_neighbours":
        raise ValueError("near: it has no neighbours: make it with corpus_neighbours()")
    there, scales = near.sizes["k"], tuple(scales)
    asked = {"scales": max(scales), "k": k, **({} if cloud is None else {"local": local})}
    for name, number in asked.items():
        if number > there:
            refuse(name, number, f"near has {there} neighbours of each token: search more with corpus_neighbours(k=)")
    distances = torch.from_numpy(near["distance"].transpose("layer", "token", "k").values)
    same = near["same_state"].transpose("token", "layer").values
    around = None
    if cloud is not None:
        check_cloud(cloud, near)
        on = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        to = near["neighbour"].transpose("layer", "token", "k").values[..., :local].copy()
        around = torch.stack([
            local_twonn(layer_points(cloud, i), torch.from_numpy(to[i]), memory, on) for i in range(len(to))
        ])  # fmt: skip

    def estimate(keep: np.ndarray) -> dict[str, np.ndarray]:
        distinct = np.zeros(same.shape, bool)
        distinct[keep] = first_of_state(same[keep])
        use = torch.from_numpy(distinct.T.copy())
        found = gride_columns(estimators.gride(distances, use, scales))
        found["dimension_mle"] = estimators.mle(distances, use, k)
        found["dimension_twonn"] = estimators.twonn(distances, use, twonn)
        if around is not None:
            kept = use & ~around.isnan()
            found["local_twonn_mean"] = torch.where(kept, around, 0.0).sum(1) / kept.sum(1)
        return {n: v.numpy() for n, v in found.items()}

    whole = estimate(np.ones(len(same), bool))
    data: dict[str, Any] = {}
    for name, value in whole.items():
        field = FIELDS[name]
        dims = ("layer", "scale") if value.ndim == 2 else ("layer",)
        data[name] = Field(**{**vars(field), "dims": dims}).variable(value)
    data["local_dimension"] = FIELDS["local_dimension"].variable(estimators.local_dimension(distances, k).T.numpy())
    if around is not None:
        data["local_twonn"] = FIELDS["local_twonn"].variable(around.T.numpy())
    whole = {n: v for n, v in whole.items() if n in WITH_INTERVALS}
    bounds, said = intervals(near, estimate, whole, groups, level, seed)
    for name, value in bounds.items():
        text = f"{level:.0%} jackknife interval of the {data[name].attrs['long_name']}"
        data[f"{name}_interval"] = variable(["bound", *map(str, data[name].dims)], value, text, "1")
    coords = {n: v.variable for n, v in near.coords.items() if "k" not in v.dims}
    coords["scale"] = variable("scale", np.array(scales), "farther neighbour rank n2 = 2 n1 of GRIDE", "1")
    if bounds:
        coords["bound"] = bound_coord()
    parameters = {
        "scales": scales, "k": k, "twonn": twonn, "local": local if cloud is not None else None, "groups": groups,
        "level": level,
    }  # fmt: skip
    first = ("dimension", "dimension_twonn", "dimension_mle", *(("local_twonn_mean",) if cloud is not None else ()))
    attrs = {**{n: near.attrs[n] for n in ("apart", "window", "method", "n_points")}, **said, "first": ", ".join(first)}
    of = [near] if cloud is None else [near, cloud]
    ds = derived(xr.Dataset(data, coords, attrs), "corpus_dimension", of, parameters, seed)
    check(ds)
    return ds


def intervals(
    near: xr.Dataset, estimate: Callable[[np.ndarray], dict[str, np.ndarray]], whole: dict[str, np.ndarray],
    groups: int, level: float, seed: int,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:  # fmt: skip
    """Return jackknife intervals over the groups of the tokens that look, and attributes that say of what.

    Parameters
    ----------
    near : xarray.Dataset
        Whose tokens look.
    estimate : callable
        Given (token,) bool, returns the values from these tokens.
    whole : dict of str to array
        The values from all of them.
    groups, level, seed
        Of the jackknife; none for 0 groups.
    """
    if not groups:
        return {}, {}
    names, kind = groups_of(near, "token")
    known, which = np.unique(names, return_inverse=True)
    said = {"groups": kind, "n_groups": len(known)}
    if len(known) < 2:
        return {n: np.full((2, *np.shape(v)), np.nan) for n, v in whole.items()}, said
    out = left_out(len(known), groups, seed)
    parts = [estimate(~np.isin(which, some)) for some in out]
    return {
        n: jackknife_interval(v, np.stack([p[n] for p in parts]), out.shape[1], len(known), level)
        for n, v in whole.items()
    }, said
