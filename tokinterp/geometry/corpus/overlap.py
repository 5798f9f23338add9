"""Whether tokens keep their neighbours from layer to layer in the cloud of a corpus, and what their neighbours are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from ...kernels.duplicates import first_of_kind
from ...kernels.state import neutral
from ...results.dataset import bound_coord, check, variable
from ...results.stamp import derived
from ...settings import LARGEST, checked, count, device, none, one_of, ranks, refuse
from ..imbalance import GLIELMO
from ..kernels import corpus as kernels
from ..overlap import DOIMO
from .dimension import intervals
from .shared import check_cloud, finite_tokens, labels_of, layer_points, rule_of

SHARED = ("token_id", "prompt", "position")
PAIR = ("token", "k", "layer", "other_layer")
ENTRY = 24  # bytes of working memory for each row, token and layer


class Looking:
    """Tokens that look, some at a time, at all tokens of a cloud: who may be their neighbour, and who is."""

    def __init__(self, cloud: xr.Dataset, near: xr.Dataset, k: Sequence[int], memory: int, device: str | None) -> None:
        check_cloud(cloud, near)
        self.ks, self.memory = list(k), memory
        if max(self.ks) > near.sizes["k"]:
            refuse("k", tuple(k), f"near has {near.sizes['k']} neighbours: search more with corpus_neighbours(k=)")
        if near.attrs["method"] != "exact":
            raise ValueError(f"near: it was searched with {near.attrs['method']!r}: overlaps need method='exact'")
        self.on = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.cloud, self.labels = cloud, labels_of(cloud, self.on)
        self.finite = finite_tokens(cloud, memory)
        self.rows = torch.from_numpy(near["place"].values.copy()).to(self.on)
        self.rule = rule_of([n for n in str(near.attrs["apart"]).split(", ") if n], int(near.attrs["window"]))
        self.to = torch.from_numpy(
            near["neighbour"].transpose("layer", "token", "k").values[..., : max(self.ks)].copy()
        )
        self.first = [
            first_of_kind(layer_points(cloud, i)[None], self.finite[None], memory=memory)[0].to(self.on)
            for i in range(cloud.sizes["layer"])
        ]

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Yield places of rows, (row, point) which tokens may be neighbours, and who is near (see `members`)."""
        n, layers = self.cloud.sizes["token"], len(self.first)
        each = ENTRY * (layers + 2) * (len(self.ks) + 1)
        for part in kernels.row_blocks(len(self.rows), n, each, self.memory):
            rows = self.rows[part]
            allowed = self.finite.to(self.on) & ~self.rule.tokens(self.labels, rows, slice(None))
            allowed[torch.arange(len(rows), device=self.on, dtype=torch.int64), rows] = False
            at = [kernels.Layer(f, t[part].to(self.on)) for f, t in zip(self.first, self.to, strict=True)]
            with neutral():
                yield rows, allowed, kernels.members(at, rows, allowed, self.ks)


@checked(k=ranks, groups=one_of(0) | count(2), memory=count(2**20, LARGEST), device=device | none)
def corpus_overlap(
    cloud: xr.Dataset,
    near: xr.Dataset,
    k: Sequence[int] = (1, 10, 30),
    *,
    groups: int = 20,
    level: float = 0.95,
    memory: int = 2**30,
    device: str | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Compare the nearest neighbours of tokens among all tokens of a corpus between layers, and say what they share.

    Parameters
    ----------
    cloud, near : xarray.Dataset
        From `corpus_cloud` and `corpus_neighbours`.
    k : sequence of int
        Numbers of neighbours, at most those that ``near`` has.
    groups, level, seed
        Of the jackknife intervals over prompts, as in `corpus_dimension`.
    memory : int
        Bytes of working memory: some rows at a time are compared with all tokens.
    device : str, optional
        ``"cuda"`` by default where there is one, else ``"cpu"``.

    Returns
    -------
    xarray.Dataset
        ``overlap_pair`` (k, layer, other_layer): share of the k nearest neighbours that are the same in two layers,
        ``chance`` (k) that of unrelated clouds; ``label_overlap`` (layer, k, label): share of the neighbours with the
        token's own ``token_id``, of its ``prompt``, at its ``position``, ``label_chance`` (k, label) that of any tokens
        that may be neighbours; each that is no chance level with an ``_interval``.

    Raises
    ------
    ValueError
        For neighbours of another cloud, found by an index, or fewer than k.

    Notes
    -----
    Exact copies share their places as in `NeighbourOverlap`, whose numbers these are for one prompt with all its
    tokens.  Tokens that were kept ``apart`` are no neighbours here either.  A token without k neighbours takes no part,
    in chance levels neither.
    Memory: ``memory``, and 16 bytes for each token of the cloud and layer.

    References
    ----------
    Doimo et al. 2020, arXiv 2007.03506; Viswanathan et al. 2025, arXiv 2501.10573.

    Examples
    --------
    >>> import tokinterp as ti
    >>> texts = [t.text[:200] for t in ti.bundled_texts("story")[:4]]
    >>> cloud = ti.geometry.corpus_cloud(ti.load_model(), texts, [0, 4], progress=False)
    >>> near = ti.geometry.corpus_neighbours(cloud, k=8, n_tokens=50, progress=False)
    >>> ti.geometry.corpus_overlap(cloud, near, (1, 8))["overlap_pair"].dims
    ('k', 'layer', 'other_layer')
    """
    looking = Looking(cloud, near, k, memory, device)
    pairs, same, chance, luck = [], [], [], []
    codes = [getattr(looking.labels, n) for n in SHARED]
    ks = torch.tensor(looking.ks, dtype=torch.float64, device=looking.on)
    for rows, allowed, table in looking:
        number = allowed.sum(1).double()
        flat = table.permute(2, 1, 0, 3)  # (row, k, layer, point)
        pairs.append((torch.matmul(flat, flat.mT).double() / ks[:, None, None]).cpu())
        alike = torch.stack([(c[rows, None] == c) & allowed for c in codes])
        found = [torch.einsum("lkrp,rp->rlk", table, a.float()).double() / ks for a in alike]
        same.append(torch.stack(found, -1).cpu())
        part = torch.where(number[:, None] >= ks, number[:, None], torch.nan)  # others have no k neighbours
        chance.append((ks / part).cpu())
        luck.append((alike.double().sum(-1).T[:, None] / part[..., None]).cpu())
    pair, shared = torch.cat(pairs).numpy(), torch.cat(same).numpy()
    by_chance, by_luck = torch.cat(chance).numpy(), torch.cat(luck).numpy()

    def estimate(keep: np.ndarray) -> dict[str, Any]:
        return {"overlap_pair": _mean(pair[keep]), "label_overlap": _mean(shared[keep])}

    whole = estimate(np.ones(len(pair), bool))
    bounds, said = intervals(near, estimate, whole, groups, level, seed)
    data = {
        "overlap_pair": variable(
            PAIR[1:], whole["overlap_pair"], "overlap of neighbours between two layers", "1", DOIMO,
            short="overlap of neighbours", range=(0, 1), chance="chance",
        ),
        "label_overlap": variable(
            ("layer", "k", "label"), whole["label_overlap"], "neighbours that share something with the token", "1",
            DOIMO, short="neighbours that share it", range=(0, 1), chance="label_chance",
        ),
        "chance": variable("k", _mean(by_chance), "overlap of unrelated clouds, k / possible neighbours", "1"),
        "label_chance": variable(
            ("k", "label"), _mean(by_luck), "tokens that may be neighbours and share something with the token", "1"
        ),
    }  # fmt: skip
    coords = {
        **{n: near[n].variable for n in near.coords if near[n].dims == ("layer",)},
        "other_layer": variable("other_layer", near["layer"].values, "blocks applied", "1"),
        "k": variable("k", np.array(looking.ks), "neighbours", "1"),
        "label": variable("label", np.array(SHARED, dtype=object), "what neighbours are compared by", "1"),
    }
    parameters = {"k": tuple(looking.ks), "groups": groups, "level": level}
    return _labelled(data, bounds, coords, said, near, cloud, "corpus_overlap", parameters, level, seed)


@checked(k=ranks, groups=one_of(0) | count(2), memory=count(2**20, LARGEST), device=device | none)
def corpus_imbalance(
    cloud: xr.Dataset,
    near: xr.Dataset,
    k: Sequence[int] = (1,),
    *,
    groups: int = 20,
    level: float = 0.95,
    memory: int = 2**30,
    device: str | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Measure the information imbalance between the clouds of a corpus at all pairs of layers, in both directions.

    Parameters
    ----------
    cloud, near, k, groups, level, memory, device, seed
        As in `corpus_overlap`.

    Returns
    -------
    xarray.Dataset
        ``imbalance_pair`` (k, layer, other_layer): 2 / N times the mean rank, by distance at ``other_layer`` among the
        N - 1 tokens that may be neighbours, of the k nearest at ``layer``; ``least`` (k), that of a cloud with itself,
        about 1 is that of unrelated ones.  ``imbalance_pair_interval``.

    Raises
    ------
    ValueError
        For one layer; as `corpus_overlap`.

    Notes
    -----
    For one prompt with all its tokens these are the numbers of `InformationImbalance`.  Ranks are exact: the distances
    of some rows to all tokens are sorted at each layer, in float64.  Cost: the products of `corpus_neighbours`, and
    reading the cloud once for every so many rows as fit into the memory (27 of a million tokens in 1 GiB).

    References
    ----------
    Glielmo et al. 2022, PNAS Nexus 1, pgac039, equation 1.

    Examples
    --------
    >>> import tokinterp as ti
    >>> texts = [t.text[:200] for t in ti.bundled_texts("story")[:4]]
    >>> cloud = ti.geometry.corpus_cloud(ti.load_model(), texts, [0, 4], progress=False)
    >>> near = ti.geometry.corpus_neighbours(cloud, k=2, n_tokens=50, progress=False)
    >>> ti.geometry.corpus_imbalance(cloud, near)["imbalance_pair"].dims
    ('k', 'layer', 'other_layer')
    """
    if cloud.sizes.get("layer", 0) < 2:
        raise ValueError("cloud: an imbalance is between two layers at least")
    looking = Looking(cloud, near, k, memory, device)
    ks = torch.tensor(looking.ks, dtype=torch.float64, device=looking.on)
    block = max(1, memory // 8 // (24 * cloud.sizes["channel"]))
    finite = looking.finite.to(looking.on)
    parts, least = [], []
    for rows, allowed, table in looking:
        number = allowed.sum(1).double() + 1
        to = torch.empty(len(rows), len(ks), *(2 * [len(looking.first)]), dtype=torch.float64, device=looking.on)
        for i, first in enumerate(looking.first):
            with neutral():
                far = kernels.squared_distances(layer_points(cloud, i), rows, first, finite, block)
                rank = kernels.ranks(far, allowed)
                to[..., i] = torch.einsum("lkrp,rp->rkl", table.double(), rank)
        parts.append((2 * to / number[:, None, None, None] / ks[:, None, None]).cpu())
        least.append(torch.where(number[:, None] > ks, (ks + 1) / number[:, None], torch.nan).cpu())
    pair = torch.cat(parts).numpy()

    def estimate(keep: np.ndarray) -> dict[str, Any]:
        return {"imbalance_pair": _mean(pair[keep])}

    whole = estimate(np.ones(len(pair), bool))
    bounds, said = intervals(near, estimate, whole, groups, level, seed)
    data = {
        "imbalance_pair": variable(
            PAIR[1:],
            whole["imbalance_pair"],
            "information imbalance from a layer to another",
            "1",
            GLIELMO,
            short="imbalance from layer to other layer",
            range=(0, None),
        ),
        "least": variable("k", _mean(torch.cat(least).numpy()), "information imbalance of a cloud with itself", "1"),
    }
    coords = {
        **{n: near[n].variable for n in near.coords if near[n].dims == ("layer",)},
        "other_layer": variable("other_layer", near["layer"].values, "blocks applied", "1"),
        "k": variable("k", np.array(looking.ks), "neighbours", "1"),
    }
    parameters = {"k": tuple(looking.ks), "groups": groups, "level": level}
    return _labelled(data, bounds, coords, said, near, cloud, "corpus_imbalance", parameters, level, seed)


def _mean(rows: np.ndarray) -> np.ndarray:
    """Return the mean over axis 0 of what is not NaN; NaN where nothing is."""
    kept = ~np.isnan(rows)
    number = kept.sum(0)
    return np.where(kept, rows, 0.0).sum(0) / np.where(number, number, np.nan)


def _labelled(
    data: dict[str, xr.Variable], bounds: dict[str, np.ndarray], coords: dict[str, Any], said: dict[str, Any],
    near: xr.Dataset, cloud: xr.Dataset, name: str, parameters: dict[str, Any], level: float, seed: int,
) -> xr.Dataset:  # fmt: skip
    """Return the result with its intervals and provenance."""
    for what, value in bounds.items():
        text = f"{level:.0%} jackknife interval of the {data[what].attrs['long_name']}"
        data[f"{what}_interval"] = variable(["bound", *map(str, data[what].dims)], value, text, "1")
        coords["bound"] = bound_coord()
    first = ", ".join(n for n in data if f"{n}_interval" in data)
    attrs = {**{n: near.attrs[n] for n in ("apart", "window", "n_points")}, **said, "first": first}
    ds = derived(xr.Dataset(data, coords, attrs), name, [near, cloud], parameters, seed)
    check(ds)
    return ds
