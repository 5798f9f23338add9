"""Train the probes of some layers and all offsets together, from states that are kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from .kernels.softmax import Scratch, factored_gradient, read_targets, softmax_gradient
from .probe_settings import ProbeSettings

State = tuple[dict[str, Any], Mapping[str, torch.Tensor]]


@dataclass
class Job:
    """What all probes of a fit share.

    Attributes
    ----------
    targets, validation : torch.Tensor
        (offset, token) int64 class of every token of the training and the validation prompts, -1 without one.
    starts : numpy.ndarray
        (prompt + 1,) first token of every training prompt.
    usable : numpy.ndarray
        Tokens that may be sources.
    n_classes, offsets, settings, seed
        What is trained, how, and the seed of start and order.
    products : torch.dtype
        Of the matrix products.
    head : torch.Tensor or None
        (class, m) frozen factor of the weights.
    """

    targets: torch.Tensor
    validation: torch.Tensor | None
    starts: np.ndarray
    usable: np.ndarray
    n_classes: int
    offsets: list[int]
    settings: ProbeSettings
    seed: int
    products: torch.dtype
    head: torch.Tensor | None = None


@dataclass
class _Probe:
    layer: int
    row: int
    weight: torch.Tensor
    optimizer: torch.optim.Optimizer
    best: torch.Tensor | None = None
    best_loss: float = math.inf
    stale: int = 0
    drop: float = 1.0
    done: bool = False
    pending: bool = False
    epoch_loss: torch.Tensor | None = None
    history: list[list[float]] = field(default_factory=list)


def train(
    states: dict[int, torch.Tensor], held_out: dict[int, torch.Tensor], job: Job,
    step: Callable[[int, Callable[[], State] | None], object], begin: State | None = None,
) -> dict[tuple[int, int], dict[str, torch.Tensor]]:  # fmt: skip
    """Train one probe per layer and offset; each sees the same batches in the same order, whoever trains beside it.

    Parameters
    ----------
    states, held_out : dict
        Layer -> (token, d) states for training and for validation.
    job : Job
        Everything else.
    step : callable
        Told the number of finished batches, and given a function that returns a state from which training goes on
        to the same bits (None once all probes have stopped).
    begin : state, optional
        Go on from there.

    Returns
    -------
    dict
        (layer, offset) -> ``weight`` (class, d) on the CPU and ``history`` (epoch, 2): training and validation loss.
    """
    s, device = job.settings, next(iter(states.values())).device
    width = next(iter(states.values())).shape[1]
    lr = s.lr / math.sqrt(width / s.width) if s.width else s.lr
    probes = [_start(layer, o, job, width, device) for layer in states for o in range(len(job.offsets))]
    shape = probes[0].weight.shape
    shared = torch.empty(
        shape, device=device, dtype=torch.float32
    )  # one gradient for all, unless gradients wait for their step
    for p in probes:
        p.weight.grad = torch.zeros(shape, device=device, dtype=torch.float32) if s.accumulate else shared
    n_batches = len(list(_places(job, 0)))
    scratch = Scratch(job.n_classes, _largest(job), device, job.products)
    reader = Scratch(job.n_classes, 4096, device) if job.validation is not None else None
    notes = {"epoch": 0, "batch": 0, "number": 0}
    if begin is not None:
        notes = _take_up(probes, begin)
    number = notes["number"]
    for epoch in range(notes["epoch"], s.epochs):
        live = [p for p in probes if not p.done]
        if not live:
            step((s.epochs - epoch) * n_batches, None)
            break
        finished = notes["batch"] if epoch == notes["epoch"] else 0
        for p in live:
            if not finished:
                p.epoch_loss = torch.zeros((), device=device, dtype=torch.float32)
        for b, places in enumerate(_places(job, epoch)):
            if b < finished:
                continue
            index = torch.from_numpy(places).to(device)
            goals = job.targets.index_select(1, index)
            rate = lr * _factor(s, number, n_batches)
            last = None
            for p in live:
                if p.layer != last:  # the offsets of a layer share its states
                    x, last = states[p.layer].index_select(0, index).to(job.products), p.layer
                _one_batch(p, x, goals[p.row], job, scratch, b, rate)
            number += 1
            step(1, partial(_state, probes, {"epoch": epoch, "batch": b + 1, "number": number}))
        for p in live:
            _end_epoch(p, held_out.get(p.layer), job, reader, n_batches)
    return {(p.layer, job.offsets[p.row]): _outcome(p, job) for p in probes}


KEPT = ("best_loss", "stale", "drop", "done", "pending", "history")
"""Numbers of a probe that are kept with its tensors."""


def _state(probes: list[_Probe], at: dict[str, int]) -> State:
    """Return all that training needs to go on."""
    tensors: dict[str, torch.Tensor] = {}
    for p in probes:
        found = {"weight": p.weight, "best": p.best, "epoch_loss": p.epoch_loss, **p.optimizer.state[p.weight]}
        if p.pending:
            found["grad"] = p.weight.grad
        tensors |= {f"{p.layer}/{p.row}/{k}": v.detach() for k, v in found.items() if v is not None}
    notes = [{"layer": p.layer, "row": p.row, **{k: getattr(p, k) for k in KEPT}} for p in probes]
    return {**at, "probes": notes}, tensors


def _take_up(probes: list[_Probe], begin: State) -> dict[str, int]:
    """Give probes what `_state` returned; return the epoch and batch to go on with."""
    notes, tensors = begin
    kept = {(n["layer"], n["row"]): n for n in notes["probes"]}
    for p in probes:
        for k in KEPT:
            setattr(p, k, kept[p.layer, p.row][k])
        mine = f"{p.layer}/{p.row}/"
        own = {k.removeprefix(mine): v for k, v in tensors.items() if k.startswith(mine)}
        p.weight.copy_(own.pop("weight"))
        p.best = own.pop("best", None)
        if "epoch_loss" in own:
            p.epoch_loss = own.pop("epoch_loss").to(p.weight.device)
        if "grad" in own and p.weight.grad is not None:
            p.weight.grad.copy_(own.pop("grad"))
        if own:
            p.optimizer.state[p.weight] = {k: v.to(p.weight.device, copy=True) for k, v in own.items()}
    return {k: notes[k] for k in ("epoch", "batch", "number")}


def _start(layer: int, row: int, job: Job, width: int, device: torch.device) -> _Probe:
    s, rows = job.settings, job.n_classes if job.head is None else job.head.shape[1]
    if s.zeros:
        weight = torch.zeros(rows, width, device=device, dtype=torch.float32)
    else:
        generator = torch.Generator().manual_seed((job.seed * 1009 + layer) * 101 + job.offsets[row] + 50)
        weight = (
            torch.empty(rows, width, dtype=torch.float32, device="cpu")
            .uniform_(-1, 1, generator=generator)
            .div_(math.sqrt(width))
            .to(device)
        )
    optimizer = torch.optim.AdamW([weight], lr=s.lr, betas=s.betas, weight_decay=s.weight_decay, fused=True)
    return _Probe(layer, row, weight, optimizer)


def _largest(job: Job) -> int:
    s = job.settings
    return s.rows if not s.documents else int(np.diff(job.starts).max()) * s.documents


def _places(job: Job, epoch: int) -> Iterator[np.ndarray]:
    """Yield the tokens of each batch: the same for all probes, drawn from seed and epoch."""
    s, rng = job.settings, np.random.default_rng([job.seed, epoch])
    if s.documents:
        starts = job.starts.tolist()
        order = rng.permutation(len(job.starts) - 1)
        for a in range(0, len(order), s.documents):
            yield np.concatenate([np.arange(starts[i], starts[i + 1]) for i in order[a : a + s.documents]])
        return
    order = job.usable[rng.permutation(len(job.usable))]
    for a in range(0, len(order), s.rows):
        yield order[a : a + s.rows]


def _factor(s: ProbeSettings, number: int, n_batches: int) -> float:
    warm = min(1.0, (number + 1) / s.warmup) if s.warmup else 1.0
    return warm * (1 - number / (s.epochs * n_batches) if s.decay else 1.0)


def _one_batch(p: _Probe, x: torch.Tensor, goal: torch.Tensor, job: Job, scratch: Scratch, b: int, rate: float) -> None:
    s, grad = job.settings, p.weight.grad
    assert grad is not None
    assert p.epoch_loss is not None
    if job.head is None:
        p.epoch_loss += softmax_gradient(x, p.weight, goal, grad, scratch, add=p.pending)
    else:
        p.epoch_loss += factored_gradient(x, p.weight, job.head, goal, grad, scratch, add=p.pending)
    p.pending = bool(s.accumulate)
    if s.accumulate and (b == 0 or b % s.accumulate):
        return  # as published: the first group is one batch longer, and the rest of an epoch waits for the next
    if s.clip:
        grad.mul_((s.clip / (grad.norm() + 1e-6)).clamp_max(1.0))
    p.optimizer.param_groups[0]["lr"] = rate * p.drop
    p.optimizer.step()
    p.pending = False


def _end_epoch(p: _Probe, held_out: torch.Tensor | None, job: Job, reader: Scratch | None, n_batches: int) -> None:
    assert p.epoch_loss is not None
    loss = math.nan
    if held_out is not None and job.validation is not None:
        found = [
            read_targets(x.float(), _weight(p, job), t, None, reader, rank=False).log_prob.nansum(dtype=torch.float64)
            for x, t in zip(held_out.split(65536), job.validation[p.row].split(65536), strict=True)
        ]
        loss = -float(sum(found)) / max(1, int((job.validation[p.row] >= 0).sum()))
    p.history.append([float(p.epoch_loss) / n_batches, loss])
    if math.isnan(loss):
        return
    if loss < p.best_loss:
        p.best_loss, p.stale = loss, 0
        if job.settings.patience:
            p.best = p.weight.detach().to("cpu", copy=True)
        return
    p.stale += 1
    if job.settings.plateau and p.stale > job.settings.plateau:
        p.drop, p.stale = p.drop / 10, 0
    p.done = bool(job.settings.patience) and p.stale >= job.settings.patience


def _weight(p: _Probe, job: Job) -> torch.Tensor:
    return p.weight if job.head is None else job.head @ p.weight


def _outcome(p: _Probe, job: Job) -> dict[str, torch.Tensor]:
    weight = (p.best if p.best is not None else p.weight.detach()).cpu()
    weight = weight if job.head is None else job.head.cpu() @ weight
    p.optimizer.state.clear()
    return {"weight": weight, "history": torch.tensor(p.history, dtype=torch.float64, device="cpu")}
