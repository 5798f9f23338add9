"""The route of single predictions as a graph: which stream, head and MLP brought about which, edge by edge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
import xarray as xr

from ..models.steady import steady
from ..results.dataset import layer_coords, variable
from ..run.sites import Site
from ..run.walk import Walk, Walker, walked
from ..settings import checked, count, number, one_of, several
from .contributions import PARTS, Rule, block_shares

if TYPE_CHECKING:
    from ..models.base import Model
    from ..models.info import ModelInfo
    from ..run.batch import Batch
    from ..text.prompts import Prompts

FERRANDO = "Ferrando and Voita 2024, arXiv 2403.00824"
COLUMNS = {
    "edge_prompt": "number of the prompt in the input", "block": "block, 0 first",
    "from_position": "position that gives, BOS counted", "to_position": "position that takes, BOS counted",
    "head": "head that gives most, -1 where none does",
}  # fmt: skip


@checked(targets=several(count()), threshold=number(0, below=1), norm=one_of(1, 2))
@steady
def route_graph(
    model: Model, prompts: Prompts, targets: Sequence[int] | None = None, *, threshold: float = 0.04, norm: int = 1,
    renormalise: bool = False, bias: bool = True, **walk: Unpack[Walk],
) -> xr.Dataset:  # fmt: skip
    """Return the route of one prediction of each prompt, as a table of edges.

    Parameters
    ----------
    model, prompts
        What is run, and on what.
    targets : sequence of int, optional
        Position of each prompt whose prediction is followed back; the last one by default.
    threshold, norm, renormalise, bias
        See `InformationRoutes`.
    **walk
        ``batch_tokens``, ``store``, ``checkpoint_every``, ``progress``: see `tokinterp.run.walk.Walk`.

    Returns
    -------
    xarray.Dataset
        On ``edge``, from the prediction downwards: ``weight``, ``from_site`` and ``to_site`` (names of sites, see
        `tokinterp.Site`), ``from_position``, ``to_position``, ``block``, ``edge_prompt``; ``head``, the one that gives
        most to an edge of attention, and ``head_weight``, what it gives.  An edge of attention is the sum of all heads,
        and of the residual connection where both ends are one position; an MLP is two edges of one weight.  On
        ``token`` and ``layer``: ``on_route``, whether the token is on the route there.  ``target`` by prompt.

    Raises
    ------
    ValueError
        If a target lies beyond its prompt, or what attention adds is not the sum of its parts.

    References
    ----------
    Ferrando and Voita 2024, arXiv 2403.00824.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> prompts = ti.Prompts.from_texts(["The Nile flows north."], model)
    >>> ds = route_graph(model, prompts, threshold=0.1)
    >>> str(ds["to_site"].values[0]), int(ds["to_position"][0]) == prompts.lengths[0] - 1
    ('resid.8', True)
    """
    lengths = np.asarray(prompts.lengths)
    ends = lengths - 1 if targets is None else np.asarray(targets, np.int64)
    if len(ends) != len(prompts):
        raise ValueError(f"targets: {len(ends)} for {len(prompts)} prompts: give one position for each")
    if (ends >= lengths).any():
        i = int(np.flatnonzero(ends >= lengths)[0])
        raise ValueError(f"targets: position {ends[i]} of prompt {i}, which has positions 0 to {lengths[i] - 1}")
    rule = Rule(norm, threshold, renormalise, bias)
    blocks, width = range(model.info.n_layers), int(lengths.max(initial=1))
    sites = [Site(name, b) for b in blocks for name in PARTS]

    def of_batch(batch: Batch) -> dict[str, torch.Tensor]:
        return {k: torch.stack(v, 1) for k, v in _weights(batch, rule, width).items()}

    def make(walker: Walker) -> xr.Dataset:
        found = walker.rows(prompts, sites, of_batch)
        return _labelled(found, prompts, ends, rule.least, model.info)

    settings = {"targets": ends.tolist(), **rule._asdict()}
    return walked("route_graph", model, prompts, settings, make, **walk)


def _weights(batch: Batch, rule: Rule, width: int) -> dict[str, list[torch.Tensor]]:
    """Return, block by block: weights between tokens, the head that gives most, and those of the MLP; as wide as asked.

    ``through`` is negative in parallel blocks.
    """
    out: dict[str, list[torch.Tensor]] = {n: [] for n in ("between", "head", "head_weight", "mlp", "through")}
    more = width - batch.ids.shape[1]

    def padded(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(x, (0, more) * (x.ndim - 1))

    for b in range(batch.model.info.n_layers):
        s = block_shares(batch, b, {n: batch.activations[Site(n, b)] for n in PARTS}, rule)
        between = s.heads.sum(1)
        between.diagonal(dim1=1, dim2=2).add_(s.resid)
        most, head = s.heads.max(1)
        through = torch.full_like(s.mlp, -1) if s.through is None else s.through
        found = {"between": between, "head": head, "head_weight": most, "mlp": s.mlp, "through": through}
        for name, value in found.items():
            out[name].append(padded(value))
    return out


def _labelled(
    found: dict[str, np.ndarray], prompts: Prompts, ends: np.ndarray, least: float, info: ModelInfo
) -> xr.Dataset:
    """Return the edges of all routes, and what tokens they are about."""
    rows: list[tuple[Any, ...]] = []
    on = np.zeros((prompts.n_tokens, info.n_layers + 1), np.int64)
    for i, end in enumerate(ends.tolist()):
        edges, layers = _follow({k: v[i] for k, v in found.items()}, end, least)
        rows += [(i, *edge) for edge in edges]
        for n, nodes in enumerate(reversed(layers)):
            on[prompts.starts[i] + nodes, n] = 1
    names = ("edge_prompt", "block", "from_site", "to_site", "from_position", "to_position", "weight", "head",
             "head_weight")  # fmt: skip
    columns: dict[str, Any] = dict.fromkeys(names, ())
    columns |= zip(names, zip(*rows, strict=True), strict=True) if rows else ()
    v, lengths = variable, np.asarray(prompts.lengths)
    strings = [s for i in range(len(prompts)) for s in prompts.strings(i)] if prompts.vocabulary is not None else None
    table = prompts.token_table()
    data = {
        "weight": v("edge", np.array(columns["weight"], float), "share of what gives in what takes", "1", FERRANDO),
        "head_weight": v("edge", np.array(columns["head_weight"], float), "share of the head that gives most", "1",
                         FERRANDO),
        "on_route": v(("token", "layer"), on, "whether the token is on the route", "1", FERRANDO, range=(0, 1)),
        "target": v("prompt", ends, "position whose prediction is followed back", "1"),
    }  # fmt: skip
    coords = {
        **layer_coords(range(info.n_layers + 1), info),
        **{n: v("edge", np.array(columns[n], np.int64), text, "1") for n, text in COLUMNS.items()},
        "from_site": v("edge", np.array(columns["from_site"], object), "site that gives", "1"),
        "to_site": v("edge", np.array(columns["to_site"], object), "site that takes", "1"),
        "edge": v("edge", np.arange(len(rows)), "number of the edge", "1"),
        "prompt": v("prompt", np.arange(len(prompts)), "number of the prompt in the input", "1"),
        "token_prompt": v("token", np.repeat(np.arange(len(prompts)), lengths), "number of the prompt in the input",
                          "1"),
        "position": v("token", table["position"], "place in the sequence, BOS counted", "1"),
        "token_id": v("token", prompts.token_ids, "token id", "1"),
    }  # fmt: skip
    if strings is not None:
        coords["text"] = v("token", np.array(strings, object), "token", "1")
    return xr.Dataset(data, coords, {"dimensions": "edge", "first": "on_route"})


def _follow(found: dict[str, np.ndarray], end: int, least: float) -> tuple[list[tuple[Any, ...]], list[np.ndarray]]:
    """Return the edges of one prediction from the last layer downwards, and the positions on it at each layer."""
    nodes, edges = np.array([end]), []
    layers = [nodes]
    for b in reversed(range(len(found["mlp"]))):
        mlp, through, between = (found[n][b] for n in ("mlp", "through", "between"))
        above, below, middle, via = f"resid.{b + 1}", f"resid.{b}", f"resid_mid.{b}", f"mlp_out.{b}"
        parallel = bool((through[nodes] < 0).all())
        middle = above if parallel else middle
        source = below if parallel else middle
        reached = []
        for t in nodes.tolist():
            if mlp[t] > least:
                edges += [(b, via, above, t, t, mlp[t], -1, 0.0), (b, source, via, t, t, mlp[t], -1, 0.0)]
            if not parallel and through[t] > least:
                edges.append((b, middle, above, t, t, through[t], -1, 0.0))
            if parallel or mlp[t] > least or through[t] > least:
                reached.append(t)
        into: set[int] = {t for t in reached if parallel and mlp[t] > least}
        for t in reached:
            for j in np.flatnonzero(between[t] > least).tolist():
                by = found["head_weight"][b, t, j]
                head = int(found["head"][b, t, j]) if by > 0 else -1
                edges.append((b, below, middle, j, t, between[t, j], head, by))
                into.add(j)
        nodes = np.array(sorted(into), np.int64)
        layers.append(nodes)
    return edges, layers
