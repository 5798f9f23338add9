"""What the functions on the cloud of a corpus share: its layers, its labels, and whether neighbours are of it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from ..kernels.corpus import Apart, Labels

COMPARED = 64  # tokens whose nearest neighbours are measured again, to know the cloud


def check_cloud(cloud: xr.Dataset, near: xr.Dataset | None = None) -> None:
    """Refuse what is no cloud, and neighbours that are not of it.

    Raises
    ------
    ValueError
        Naming what is lacking.
    """
    if "state" not in cloud or set(cloud["state"].dims) != {"token", "layer", "channel"} or "token_id" not in cloud:
        raise ValueError("cloud: it has no state (token, layer, channel): make it with corpus_cloud() or ti.states()")
    if near is None:
        return
    if str(near.attrs.get("measurement")) != "corpus_neighbours":
        raise ValueError("near: it has no neighbours: make it with corpus_neighbours()")
    of = near["place"].values
    same = near.attrs["cloud_tokens"] == cloud.sizes["token"] and np.array_equal(cloud["layer"], near["layer"])
    same = same and all(np.array_equal(cloud[n].values[of], near[n].values) for n in ("prompt", "position"))
    if not same or not _distances_agree(cloud, near):
        raise ValueError("near: these are neighbours in another cloud: give the cloud that corpus_neighbours() had")


def _distances_agree(cloud: xr.Dataset, near: xr.Dataset) -> bool:
    """Whether some tokens have their nearest neighbours at the noted distances: not in the cloud of another model."""
    some = np.unique(np.linspace(0, near.sizes["token"] - 1, min(near.sizes["token"], COMPARED)).round().astype(int))
    nearest = near.isel(token=some, k=0).transpose("token", "layer", ...)
    for i in range(cloud.sizes["layer"]):
        points, to = layer_points(cloud, i), nearest["neighbour"].values[:, i]
        own, other = (points[torch.from_numpy(v)].double() for v in (nearest["place"].values, to.clip(min=0)))
        far = torch.linalg.vector_norm(own - other, dim=1).numpy()
        if not np.allclose(far[to >= 0], nearest["distance"].values[to >= 0, i], rtol=1e-9, atol=0):
            return False
    return True


def layer_points(cloud: xr.Dataset, layer: int) -> torch.Tensor:
    """Return (token, channel) the states of the layer at a place; not copied where they are in memory or in a file."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(cloud["state"].isel(layer=layer).transpose("token", "channel").values)


def finite_tokens(cloud: xr.Dataset, memory: int) -> torch.Tensor:
    """Return (token,) bool, true on the tokens whose states are finite at all layers."""
    out = torch.ones(cloud.sizes["token"], dtype=torch.bool, device="cpu")
    step = max(1, memory // (8 * cloud.sizes["channel"]))
    for i in range(cloud.sizes["layer"]):
        points = layer_points(cloud, i)
        for start in range(0, len(points), step):
            out[start : start + step] &= points[start : start + step].isfinite().all(1)
    return out


def labels_of(cloud: xr.Dataset, on: torch.device) -> Labels:
    """Return what ``apart`` looks at of all tokens of a cloud."""
    document = cloud["token_document"] if "token_document" in cloud.coords else cloud["prompt"]
    of: list[Any] = [cloud["token_id"], cloud["position"], cloud["prompt"], document]
    return Labels(*(torch.from_numpy(v.values.astype(np.int64)).to(on) for v in of))


def rule_of(apart: Sequence[str], window: int) -> Apart:
    """Return which tokens are no neighbours."""
    return Apart("token" in apart, "prompt" in apart, "document" in apart, window)


def first_of_state(same: np.ndarray) -> np.ndarray:
    """Return (token, layer) bool, true where no token before it has the same number.

    Examples
    --------
    >>> first_of_state(np.array([[4], [4], [2]]))[:, 0].tolist()
    [True, False, True]
    """
    out = np.zeros(same.shape, bool)
    for layer, column in enumerate(same.T):
        out[np.unique(column, return_index=True)[1], layer] = True
    return out
