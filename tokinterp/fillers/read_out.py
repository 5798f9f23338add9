"""Logit lens on filler positions: what is there to read, against another item's answer as chance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
import xarray as xr

from ..kernels.divergence import entropy
from ..models.steady import steady
from ..results.dataset import bound_coord, layer_coords, variable
from ..results.stamp import finish
from ..settings import checked, count, one_of, short
from ..stats.jackknife import jackknife_interval, left_out
from ..text.items import PLACEMENTS, build_items
from .asked import Asked, asked_questions, parted, settings_of
from .residual import slots_of, states
from .results import numbers

if TYPE_CHECKING:
    from ..models.base import Model

TOP_CELL, TOP_ITEM = 30, 50
ROUNDING = 1e-7  # of a difference of float32 probabilities
PAPER = "Brauer et al. 2026, Reading between the dots"


@checked(n_fillers=count(1), placement=one_of(*PLACEMENTS))
@steady
def read_fillers(
    model: Model,
    questions: Iterable[Any] | None = None,
    *,
    n_fillers: int = 10,
    placement: str = "post",
    layers: Sequence[int] | None = None,
    **asked: Unpack[Asked],
) -> xr.Dataset:
    """Decode the stream at every filler with the model's own head (L1 to L4).

    Parameters
    ----------
    layers : sequence of int, optional
        All by default.
    model, questions, n_fillers, placement
        See `build_items`.
    **asked
        ``kind``, ``cue``, ``exact``, ``seed``: see `tokinterp.fillers.asked.Asked`.

    Returns
    -------
    xarray.Dataset
        By layer and ``slot``: ``entropy`` of the prediction, ``own_share`` of items whose most probable token is the
        filler there; ``median_rank``, ``reciprocal_rank`` of the first token of the answer and of another item's
        answer (``target``); ``choice``, share of items whose most probable one *among all answers* is their own,
        with ``choice_chance`` (numbers among numbers if the answers are numbers). By item: ``fingerprint``, whether
        the answer is among the 50 tokens of largest summed residual P(v) - mean over items of P(v), 30 a cell, over all
        cells, for the own and another item's answer (``target``) and without the subtraction (``variant``);
        ``cell_fingerprint`` by layer and slot, the share of items that have it among the 30 of that cell alone;
        ``first_layer`` at which it is among the first ten at some slot, NaN where at none.  Items whose states are not
        finite take no part, and are NaN.

    Raises
    ------
    ValueError
        For no fillers or fewer than two different answers.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model, questions = ti.load_model(), ti.bundled_questions("cloze")[:4]
    >>> ds = ti.fillers.read_fillers(model, questions, n_fillers=4, layers=[4, 8])
    >>> ds["layer"].values.tolist()
    [4, 8]
    """
    how, _ = parted(asked, kind="dots")
    seed = how["seed"]
    questions = asked_questions(questions)
    items = build_items(model, questions, n_fillers=n_fillers, placement=placement, **how)
    answer = np.array([a[0] for a in items.answers])
    _check_answers(answer, questions)
    chosen = list(range(model.info.n_layers + 1) if layers is None else layers)
    h = states(model, items, slots_of(items), chosen)
    known = np.flatnonzero(h.isfinite().flatten(1).all(1))
    h, answer = h[known], answer[known]
    _check_answers(answer, questions)
    n, s = h.shape[:2]
    target = torch.from_numpy(np.stack([answer, deranged(answer, seed)]))
    filler = torch.from_numpy(np.stack([items.ids[i][slice(*items.filler[i])] for i in known]))
    candidates = torch.from_numpy(np.unique(answer))
    place = torch.searchsorted(candidates, target[0])
    cells = {k: np.zeros((len(chosen), s)) for k in ("entropy", "own_share", "choice")}
    ranks = np.zeros((2, n, len(chosen), s))
    held = np.zeros((2, 2, len(chosen), s))
    prints = torch.zeros(2, n, model.info.d_vocab, dtype=torch.float32, device="cpu")
    for i in range(len(chosen)):
        for j in range(s):
            with torch.no_grad():
                logp = torch.log_softmax(model.unembed(h[:, j, i].to(model.device)).float(), -1).cpu()
            p = logp.exp()
            cells["entropy"][i, j] = float(entropy(logp.double()).mean())
            cells["own_share"][i, j] = float((logp.argmax(-1) == filler[:, j]).double().mean())
            cells["choice"][i, j] = float((logp[:, candidates].argmax(-1) == place).double().mean())
            for t in range(2):
                ranks[t, :, i, j] = (logp > logp.gather(1, target[t][:, None])).sum(-1)
            for v, score in enumerate((p - p.mean(0), p)):
                value, token = score.topk(min(TOP_CELL, p.shape[-1]), -1)
                prints[v].scatter_add_(1, token, value)
                for t in range(2):
                    held[v, t, i, j] = float(
                        ((token == target[t][:, None]) & (value > ROUNDING)).any(1).double().mean()
                    )
    within = np.stack(
        [
            (prints[v] > prints[v].gather(1, target[t][:, None])).sum(-1).numpy() < TOP_ITEM
            for v in range(2) for t in range(2)
        ]
    ).reshape(2, 2, n) & (np.stack([prints[v].gather(1, target.T).numpy().T for v in range(2)]) > 0)  # fmt: skip
    ten = (ranks <= 9).any(-1)
    first = np.where(ten.any(-1), np.asarray(chosen)[ten.argmax(-1)], np.nan)

    def of_all(x: np.ndarray) -> np.ndarray:
        out = np.full((*x.shape[:-1], len(items)), np.nan)
        out[..., known] = x
        return out

    grid, each = ("layer", "slot"), ("target", "prompt")
    data = {
        "entropy": variable(grid, cells["entropy"], "entropy of the prediction at a filler", "nat"),
        "own_share": variable(grid, cells["own_share"], "share whose most probable token is the filler", "1"),
        "choice": variable(
            grid, cells["choice"], "share that puts the own answer first among all answers", "1",
            chance="choice_chance",
        ),
        "choice_chance": variable(
            (), float(np.bincount(place.numpy()).max() / n), "share of the commonest", "1", short="the commonest",
        ),
        "median_rank": variable(("target", *grid), np.median(ranks, 1), "median rank of the answer at a filler", "1"),
        "reciprocal_rank": variable(
            ("target", *grid), (1 / (1 + ranks)).mean(1), "mean reciprocal rank", "1", range=(0, 1),
        ),
        "first_layer": variable(
            each, of_all(first), "first layer with the answer among the first ten at a filler", "1"
        ),
        "cell_fingerprint": variable(
            ("variant", "target", *grid), held, "share of items whose answer is among the 30 first of the cell", "1",
            PAPER,
        ),
        "fingerprint": variable(("variant", *each), of_all(within), "whether it holds the answer", "1"),
    }  # fmt: skip
    coords = {
        "slot": variable("slot", np.arange(s), "place among the fillers", "1"),
        "target": variable("target", np.array(["answer", "answer of another item"]), "what is looked for", "1"),
        "variant": variable("variant", np.array(["residual", "as it is"]), "mean over items taken away or not", "1"),
        "prompt": numbers(len(items)),
        **layer_coords(chosen, model.info),
    }
    settings = settings_of(questions, how, n_fillers=n_fillers, placement=placement, layers=chosen)
    return finish(xr.Dataset(data, coords), model, "read_fillers", settings, seed)


def _check_answers(answer: np.ndarray, questions: Sequence[Any]) -> None:
    if len(set(answer.tolist())) < 2:
        raise ValueError(
            f"questions={short(questions)}: all have one answer, and answers are compared: give others too"
        )


@checked(
    n_fillers=count(1), placement=one_of(*PLACEMENTS), n_clusters=count(2), groups=count(2), seed=count(0, 2**32 - 1)
)
@steady
def cell_clusters(
    model: Model,
    questions: Iterable[Any] | None = None,
    *,
    n_fillers: int = 4,
    placement: str = "post",
    layers: Sequence[int] | None = None,
    n_clusters: int = 3,
    groups: int = 10,
    **asked: Unpack[Asked],
) -> xr.Dataset:
    """Cluster the cells (layer, filler) whose decoded tokens go together over items.

    The label of an item at a cell is the token whose probability exceeds its mean over items most. Cells that share a
    hidden variable sort the items alike, whichever tokens stand for it: adjusted mutual information (chance is 0, equal
    sortings 1), and spectral clusters of it.

    Parameters
    ----------
    model, questions, n_fillers, placement
        See `build_items`. The number of pairs of cells grows with the square of layers times fillers.
    layers : sequence of int, optional
        All from 1 on by default.
    n_clusters : int
        Clusters, fewer than cells that can be compared.
    groups : int
        Groups of items that are left out in turn for the interval, clusters kept; 0 for none. Drawing items with
        replacement would make cells look alike, as copies fall together in both.
    **asked
        ``kind``, ``cue``, ``exact``, ``seed``: see `tokinterp.fillers.asked.Asked`.

    Returns
    -------
    xarray.Dataset
        ``ami`` by ``cell`` and ``other_cell``, NaN for cells that give all items one label or each its own, which
        compare with nothing; ``cluster`` of a cell, -1 for those; ``n_labels``; ``cell_layer`` and ``cell_slot``;
        ``within`` and ``between``, mean information of two cells of one cluster and of two; ``contrast``, their
        difference, with ``contrast_interval``, a 95 % jackknife interval over items; ``contrast_shuffled``, the same
        after the labels of every cell are shuffled over items and clustered anew: what clustering finds in noise.
        Items whose states are not finite take no part.

    Raises
    ------
    ValueError
        Without fillers, for fewer than 10 items, or too few cells that can be compared.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model, questions = ti.load_model(), ti.bundled_questions("cloze")[:12]
    >>> ds = ti.fillers.cell_clusters(model, questions, n_fillers=2, n_clusters=2, groups=3)
    >>> "contrast_shuffled" in ds
    True
    """
    how, _ = parted(asked, kind="dots")
    seed = how["seed"]
    questions = asked_questions(questions)
    _check_number(len(questions), questions)
    items = build_items(model, questions, n_fillers=n_fillers, placement=placement, **how)
    chosen = list(range(1, model.info.n_layers + 1) if layers is None else layers)
    h = states(model, items, slots_of(items), chosen)
    h = h[h.isfinite().flatten(1).all(1)]
    _check_number(len(h), questions)
    where = [(layer, slot) for layer in chosen for slot in range(h.shape[1])]
    labels = np.zeros((len(where), len(h)), dtype=np.int64)
    for row, (layer, slot) in zip(labels, where, strict=True):
        with torch.no_grad():
            p = model.unembed(h[:, slot, chosen.index(layer)].to(model.device)).float().softmax(-1)
        row[:] = (p - p.mean(0)).argmax(-1).cpu().numpy()
    ami, cluster = cluster_cells(labels, n_clusters, seed)
    within, between = likeness(ami, cluster)
    rng = np.random.default_rng(seed)
    noise = likeness(*cluster_cells(rng.permuted(labels, axis=1), n_clusters, seed))
    bounds = np.full(2, np.nan)
    if groups:
        removed = left_out(len(h), groups, seed)
        parts = [likeness(information(np.delete(labels, out, axis=1)), cluster) for out in removed]
        contrast = np.array([a - b for a, b in parts])
        bounds = jackknife_interval(within - between, contrast, removed.shape[1], len(h))
    data = {
        "ami": variable(
            ("cell", "other_cell"), ami, "adjusted mutual information of decoded tokens over items", "1", range=(0, 1),
            short="mutual information", by="cluster",
        ),
        "cluster": variable("cell", cluster, "cluster of the cell, -1 for none", "1"),
        "n_labels": variable("cell", [len(set(x)) for x in labels.tolist()], "different decoded tokens", "1"),
        "within": variable((), within, "mean information of two cells of one cluster", "1"),
        "between": variable((), between, "mean information of two cells of two clusters", "1"),
        "contrast": variable((), within - between, "within less between", "1"),
        "contrast_interval": variable("bound", bounds, "95 % jackknife interval over items", "1"),
        "contrast_shuffled": variable((), noise[0] - noise[1], "within less between, labels shuffled over items", "1"),
    }  # fmt: skip
    coords = {
        "bound": bound_coord(),
        "cell_layer": variable("cell", [x for x, _ in where], "blocks applied", "1"),
        "cell_slot": variable("cell", [x for _, x in where], "place among the fillers", "1"),
    }
    own = {"n_fillers": n_fillers, "placement": placement, "layers": chosen, "n_clusters": n_clusters, "groups": groups}
    settings = settings_of(questions, how, **own)
    return finish(xr.Dataset(data, coords), model, "cell_clusters", settings, seed)


def _check_number(n: int, questions: Sequence[Any]) -> None:
    if n < 10:
        raise ValueError(f"questions={short(questions)}: {n} finite items: at least 10 are needed")


def cluster_cells(labels: np.ndarray, n_clusters: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return (cell, cell) adjusted mutual information of (cell, item) labels, and (cell,) spectral clusters.

    A cell with one label for all items, or another for each, is NaN and in cluster -1: its value would be 0 / 0.
    """
    from sklearn.cluster import SpectralClustering

    ami = information(labels)
    valid = np.flatnonzero(np.isfinite(ami.diagonal()))
    if not 2 <= n_clusters < len(valid):
        raise ValueError(
            f"n_clusters={n_clusters} with {len(valid)} cells that can be compared (more than one decoded token and "
            "fewer than items): give 2 or more clusters, and more layers, fillers or items"
        )
    affinity = ami[np.ix_(valid, valid)].clip(1e-6)  # below chance is no likeness; not 0, so that nothing falls apart
    found = SpectralClustering(n_clusters, affinity="precomputed", random_state=seed).fit_predict(affinity)
    cluster = np.full(len(labels), -1)
    cluster[valid] = found
    return ami, cluster


def information(labels: np.ndarray) -> np.ndarray:
    """Return (cell, cell) adjusted mutual information of (cell, item) labels, NaN where it would be 0 / 0."""
    from sklearn.metrics import adjusted_mutual_info_score

    number = np.array([len(set(row)) for row in labels.tolist()])
    valid = np.flatnonzero((number > 1) & (number < labels.shape[1]))
    ami = np.full((len(labels), len(labels)), np.nan)
    for n, i in enumerate(valid):
        ami[i, i] = 1.0
        for j in valid[n + 1 :]:
            ami[i, j] = ami[j, i] = adjusted_mutual_info_score(labels[i], labels[j])
    return ami


def likeness(ami: np.ndarray, cluster: np.ndarray) -> tuple[float, float]:
    """Return the mean information of two cells of one cluster, and of two; NaN without any."""
    pairs = (cluster >= 0)[:, None] & (cluster >= 0) & ~np.eye(len(cluster), dtype=bool) & np.isfinite(ami)
    same = cluster[:, None] == cluster
    one, two = (float(ami[x].mean()) if x.any() else np.nan for x in (pairs & same, pairs & ~same))
    return one, two


def deranged(answer: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return the answers in an order in which no item has its own (where others than its own are left)."""
    rng = np.random.default_rng(seed)
    out = answer[rng.permutation(len(answer))]
    for i in range(len(out)):
        if out[i] == answer[i]:
            fits = np.flatnonzero((out != answer[i]) & (answer != out[i]))
            if len(fits):
                j = rng.choice(fits)
                out[i], out[j] = out[j], out[i]
    return out
