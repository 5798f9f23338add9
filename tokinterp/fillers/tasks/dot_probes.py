"""What fillers hold of the parallel chain of thought, read by linear probes: digits and sums of the slot's own pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
import xarray as xr

from ...kernels.probes import shrunk_lda
from ...models.steady import steady
from ...results.dataset import bound_coord, layer_coords, variable
from ...results.documents import interval_name
from ...settings import checked, choose, count, names, number, several
from ...stats.resample import n_draws, percentiles, weights
from . import match3
from .linear_probes import states_at
from .network import as_model, network_info, parameters_hash
from .probe import _untrained_like, check_trunks, finish
from .task import Samples, Task

REFERENCE = "Pfau, Merrill and Bowman 2024, arXiv 2404.15758 (parallel chain of thought); linear probes of its words"
TARGETS = ("first row", "second row", "pair sum", "other pair sum", "match")
MOST_CLASSES = 64
SEED = 300


@checked(
    slots=several(count(), 1), targets=names(*TARGETS, least=1), examples=count(1), shrinkage=number(above=0, high=1)
)
@steady
def probe_contents(
    trunks: Mapping[str, Any],
    task: Task,
    *,
    slots: Sequence[int] | None = None,
    targets: Sequence[str] = TARGETS,
    layers: Sequence[int] | None = None,
    examples: int = 2000,
    shrinkage: float = 0.1,
    random_trunk: bool = True,
    level: float = 0.95,
    n_boot: int = 500,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> xr.Dataset:
    """Read what the chain of thought would say at each filler from the filler's stream, layer by layer.

    Filler t stands where word t of the parallel chain of thought would, which is about pair t // 2 of the rows.  For
    each trunk, layer and filler a linear discriminant (`shrunk_lda`, equal priors) is fitted to the state and
    judged on examples whose rows occur nowhere in the fit.

    Parameters
    ----------
    trunks : mapping of str -> LlamaForCausalLM
        Networks from `tokinterp.fillers.tasks.train`, of equal depth.
    task : Task
        Match3; its filler format is run.
    slots : sequence of int, optional
        Fillers that are read, counted from 0; by default all that stand for a word about a pair.
    targets : sequence of str
        ``"first row"``, ``"second row"``: digits of the slot's pair i < j; ``"pair sum"``: digits of (x_i + x_j) mod m;
        ``"other pair sum"``: the same of another pair, one that shares no row with the slot's own where there is one;
        ``"match"``: whether some row k > j completes the pair to zero.  Digits are read coordinate by coordinate,
        scores are means over the d coordinates.
    layers : sequence of int, optional
        All by default.
    examples : int
        Drawn; different ones among them are kept once, half of them for the fit, half for the test.
    shrinkage : float
        Of the covariance within classes, above 0.
    random_trunk : bool
        Whether an untrained network of the same shape is read as well, named ``"random"``.
    level, n_boot : float, int
        Of the bootstrap over test examples, see `tokinterp.stats.resample`: the same draws for every cell, so that
        means over slots have intervals too.
    seed : int
        Of examples, permutation and bootstrap.
    device : torch.device or str, optional
        A GPU if there is one.

    Returns
    -------
    Dataset
        ``accuracy`` (trunk, target, layer, slot), balanced over the classes, so that chance is exactly 1 / classes
        (``chance``, by target), with ``accuracy_interval``; NaN where a class never occurs in the fit or in the test
        (pairs with the last row have no match); ``shuffled``, the same with labels permuted before the fit;
        ``accuracy_mean``, ``shuffled_mean`` over slots, with intervals; ``advantage`` (trunk, target, layer), the mean
        of the first trunk less that of each, of the same test examples, with ``advantage_interval``; ``n_fit``,
        ``n_test`` (different inputs).

    Raises
    ------
    ValueError
        For Match2, unknown targets or slots, networks of another task, or too few different inputs.

    Notes
    -----
    ``shuffled`` is one permutation for each slot: where the states form a few clusters, each of them gets one label,
    and single cells lie far above and below chance; read its mean.

    That something can be read does not say that it is used: compare the random trunk, in which attention mixes the rows
    as well, and `tokinterp.fillers.tasks.dot_ablation.ablate_dots`.

    Examples
    --------
    >>> from tokinterp.fillers.tasks.network import Network, build
    >>> task = Task(n=4, d=2, m=5)
    >>> net = build(task, Network(2, 32, 2, 64))
    >>> ds = probe_contents({"net": net}, task, slots=[0, 1], examples=300, n_boot=20, random_trunk=False)
    >>> ds["accuracy"].dims, float(ds["chance"].sel(target="pair sum"))
    (('trunk', 'target', 'layer', 'slot'), 0.2)
    """
    n_slots = min(task.n_fillers, task.n * (task.n - 1))
    where = list(range(n_slots) if slots is None else slots)
    _check(trunks, task, where, n_slots)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    fit, test = different_halves(task, examples, seed)
    trunks = dict(trunks)
    if random_trunk:
        trunks["random"] = _untrained_like(next(iter(trunks.values())), task, seed)
    n_layers = next(iter(trunks.values())).config.num_hidden_layers
    chosen = choose("layers", layers, n_layers, "the network")
    labels = [_labels(s.rows.to(place), task, where, targets) for s in (fit, test)]
    draw = torch.Generator().manual_seed(seed)
    # Another permutation for each slot: labels of neighbouring slots are the same digits, and would err together.
    order = torch.stack(
        [torch.randperm(len(fit.rows), generator=draw, dtype=torch.int64, device="cpu") for _ in where], 1
    ).to(place)[..., None]
    shape = (2, len(trunks), len(targets), len(chosen), len(where))
    score, spread = np.full(shape, np.nan), np.full((2, *shape), np.nan)
    mean, mean_spread = np.full(shape[:-1], np.nan), np.full((2, *shape[:-1]), np.nan)
    less_spread, of_first = np.full((2, *shape[1:-1]), np.nan), {}
    n_drawn = n_draws(len(test.rows), level, n_boot)
    positions = [task.n + 1 + s for s in where]
    for t, lm in enumerate(trunks.values()):
        model = as_model(lm, task, device=place)
        read = zip(*(states_at(model, s.sequences.ids, positions) for s in (fit, test)), strict=True)
        for layer, (x, z) in enumerate(read):
            if layer not in chosen:
                continue
            row = chosen.index(layer)
            for g, name in enumerate(targets):
                (y, k), (wanted, _) = labels[0][name], labels[1][name]
                absent = (torch.nn.functional.one_hot(y, k).sum(0) == 0).flatten(1).any(1)  # (slot,) nothing to fit
                for permuted in (0, 1):
                    right = _right(
                        x, y.gather(0, order.expand_as(y)) if permuted else y, z, wanted, k, shrinkage
                    )  # (test, slot, coordinate)
                    one = _balanced(right, wanted, k, right.new_zeros(0, len(right)))[0].masked_fill(absent, torch.nan)
                    score[permuted, t, g, row], mean[permuted, t, g, row] = one.cpu().numpy(), float(one.nanmean())

                    def drawn(w: np.ndarray, right=right, wanted=wanted, k=k, absent=absent) -> np.ndarray:
                        boot = _balanced(right, wanted, k, torch.from_numpy(w).to(right))[1:]
                        boot = boot.masked_fill(absent, torch.nan)
                        return torch.cat([boot, boot.nanmean(1, keepdim=True)], 1).cpu().numpy()

                    # The same seed draws the same examples for every trunk: draws are paired.
                    draws = np.concatenate([drawn(w) for w in weights(len(test.rows), n_drawn, seed)])
                    bounds = percentiles(draws, len(test.rows), level)
                    spread[:, permuted, t, g, row], mean_spread[:, permuted, t, g, row] = bounds[:, :-1], bounds[:, -1]
                    if not permuted:
                        first = of_first.setdefault((g, row), draws[:, -1])
                        less_spread[:, t, g, row] = percentiles(first - draws[:, -1], len(test.rows), level)
    v, full, chance = variable, ("trunk", "target", "layer", "slot"), "accuracy balanced over the classes"

    def said(what: str) -> str:
        return interval_name(what, level, "test examples", len(test.rows))

    data = {}
    for i, (name, text) in enumerate((("accuracy", chance), ("shuffled", "the same, labels permuted before the fit"))):
        data[name] = v(full, score[i], text, "1", REFERENCE if i == 0 else None)
        data[f"{name}_interval"] = v(("bound", *full), spread[:, i], said(name), "1")
        data[f"{name}_mean"] = v(full[:-1], mean[i], f"mean {name} over fillers", "1")
        data[f"{name}_mean_interval"] = v(("bound", *full[:-1]), mean_spread[:, i], said(f"mean {name}"), "1")
    what = "mean accuracy over fillers of the first network less that of this one"
    data["advantage"] = v(full[:-1], mean[0][:1] - mean[0], what, "1")
    data["advantage_interval"] = v(("bound", *full[:-1]), less_spread, said(what), "1")
    classes = [labels[0][name][1] for name in targets]
    data["chance"] = v("target", [1 / k for k in classes], "one over the number of classes", "1")  # fmt: skip
    data["n_fit"] = v((), len(fit.rows), "different inputs of the fit", "1")
    data["n_test"] = v((), len(test.rows), "different inputs of the test, none of them in the fit", "1")
    pairs = match3.pairs(task.n).T.tolist()
    coords = {
        **layer_coords(chosen, network_info(next(iter(trunks.values())), task, "")),
        "trunk": v("trunk", np.array(list(trunks)), "network that is probed", "1"),
        "target": v("target", np.array(list(targets)), "what is read", "1"),
        "slot": v("slot", where, "filler, counted from the first", "1"),
        "pair": v("slot", np.array(["{}, {}".format(*pairs[s // 2]) for s in where]), "rows that the slot is for", "1"),
        "bound": bound_coord(),
    }
    parameters = {
        "task": asdict(task), "examples": examples, "shrinkage": shrinkage, "level": level, "n_boot": n_boot,
        "seed": seed, "trunks": {name: parameters_hash(lm) for name, lm in trunks.items()},
    }  # fmt: skip
    attrs = {"n_groups": len(test.rows), "groups": "test examples"}
    return finish(xr.Dataset(data, coords, attrs), next(iter(trunks.values())), task, parameters, "DotProbes", seed)


def different_halves(task: Task, examples: int, seed: int = 0) -> tuple[Samples, Samples]:
    """Return filler examples for fit and test: every input once, and none in both.

    Raises
    ------
    ValueError
        If fewer than 20 different inputs are left on a side.
    """
    s = task.test_set("filler", examples, SEED + seed)
    code = np.unique(s.rows.flatten(1).numpy(), axis=0, return_index=True)[1]
    code.sort()
    kept = torch.from_numpy(code)
    # The order in which inputs were drawn is random: every other one goes to the test.
    halves = kept[::2], kept[1::2]
    if min(map(len, halves)) < 20:
        raise ValueError(
            f"{examples} examples of {task.name} have {len(kept)} different inputs, too few for a fit and a test: "
            "draw more, or take a larger task"
        )
    fit, test = (
        Samples(type(s.sequences)(*(t[h] for t in s.sequences)), s.answer[h], s.rows[h], s.stratum[h]) for h in halves
    )
    return fit, test


def _labels(
    rows: torch.Tensor, task: Task, slots: Sequence[int], targets: Sequence[str]
) -> dict[str, tuple[torch.Tensor, int]]:
    """Return target -> ((example, slot, coordinate) class, number of classes)."""
    pairs = match3.pairs(task.n, rows.device)
    own = torch.tensor(slots, device=rows.device, dtype=torch.int64) // 2
    i, j = pairs[:, own]
    a, b = pairs[:, _other_pairs(task.n, rows.device)[own]]
    found = {
        "first row": lambda: (rows[:, i], task.m),
        "second row": lambda: (rows[:, j], task.m),
        "pair sum": lambda: ((rows[:, i] + rows[:, j]) % task.m, task.m),
        "other pair sum": lambda: ((rows[:, a] + rows[:, b]) % task.m, task.m),
        "match": lambda: ((match3.partner(rows, task.m)[:, own] >= 0).long()[..., None], 2),
    }
    return {name: found[name]() for name in targets}


def _other_pairs(n: int, device: torch.device) -> torch.Tensor:
    """Return (pair,) another pair for each: the first, going round from the own one, that shares fewest rows."""
    p = match3.pairs(n, device).T
    shared = (p[:, None, :, None] == p[None, :, None, :]).sum((2, 3))
    step = (
        torch.arange(len(p), device=device, dtype=torch.int64)[None]
        - torch.arange(len(p), device=device, dtype=torch.int64)[:, None]
    ) % len(p)
    cost = shared * 1000 + step
    cost.fill_diagonal_(10**6)
    return cost.argmin(1)


def _right(
    x: torch.Tensor, y: torch.Tensor, z: torch.Tensor, wanted: torch.Tensor, k: int, shrinkage: float
) -> torch.Tensor:
    """Return (test, slot, coordinate) float32, 1 where a discriminant fitted to (x, y) finds the class of z."""
    out = torch.zeros(wanted.shape, device=x.device, dtype=torch.float32)
    for s in range(x.shape[1]):
        centre = x[:, s].double().mean(0)
        a, b = x[:, s].double() - centre, z[:, s].double() - centre
        gram = a.T @ a / len(a)
        if float(gram.diagonal().mean()) < 1e-12:
            out[:, s] = (wanted[:, s] == 0).float()  # every state is the same (the embedding of the dot)
            continue
        for c in range(y.shape[2]):
            hot = torch.nn.functional.one_hot(y[:, s, c], k).double()
            counts = hot.sum(0)
            weight, bias = shrunk_lda(gram, hot.T @ a, counts, shrinkage)
            prior = (counts / len(a)).log()
            logits = b @ weight.T + torch.where(counts > 0, bias - prior, -torch.inf)
            out[:, s, c] = (logits.argmax(1) == wanted[:, s, c]).float()
    return out


def _balanced(right: torch.Tensor, wanted: torch.Tensor, k: int, weights: torch.Tensor) -> torch.Tensor:
    """Return (1 + draw, slot) mean over classes of the share found, of all examples first, then of each draw.

    A slot that lacks a class has no balanced accuracy: NaN (in a draw, the class is left out).  The mean over
    coordinates is taken last.
    """
    all_once = weights.new_ones(1, weights.shape[1])
    w = torch.cat([all_once, weights])
    hot = torch.nn.functional.one_hot(wanted, k).float()  # (test, slot, coordinate, class)
    have = w @ hot.flatten(1)
    got = w @ (hot * right[..., None]).flatten(1)
    share = (got / have).unflatten(1, hot.shape[1:]).double()
    lacking = share[:1].isnan().any(-1)
    return share.nanmean(-1).masked_fill(lacking, torch.nan).mean(-1)


def _check(trunks: Mapping[str, Any], task: Task, where: list[int], n_slots: int) -> None:
    if task.family != "match3":
        raise ValueError(
            f"task={task.name}: the chain of thought that is looked for is that of match3, not {task.family}"
        )
    if task.m > MOST_CLASSES:
        raise ValueError(f"m={task.m}: a probe has one class per digit, at most {MOST_CLASSES}")
    check_trunks(trunks, task)
    bad = [s for s in where if not 0 <= s < n_slots]
    if bad or not where:
        raise ValueError(f"slots={bad}: fillers that stand for a word are numbered 0 to {n_slots - 1}")
