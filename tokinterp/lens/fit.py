"""Fit a tuned lens: least squares towards the last layer in closed form, then gradient steps on the KL divergence."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
from tqdm import tqdm

from ..files.bars import progress_bar
from ..kernels import linear
from ..models.steady import steady
from ..run.batch import Batch
from ..run.checkpoint import EVERY, Checkpoint, State
from ..run.facts import fit_facts
from ..run.signals import at_once
from ..run.sites import resid
from ..run.stream import Stream, stream
from ..run.walk import Walk
from ..settings import checked, count, number, positive
from ..text.prompts import Prompts
from .tuned_lens import TunedLens

if TYPE_CHECKING:
    from ..models.base import Model

Check = list[tuple[Batch, torch.Tensor]]
BLENDS = (0.0, 0.25, 0.5, 0.75, 1.0)


@at_once()
@checked(ridge=number(0), steps=count(), lr=positive, step_tokens=count(1), check_tokens=count(1))
@steady
def fit_tuned_lens(
    model: Model,
    prompts: Prompts | Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    ridge: float = 1e-3,
    exclude: Sequence[str] = ("special", "massive"),
    steps: int = 250,
    lr: float = 1e-3,
    step_tokens: int = 2048,
    check_tokens: int = 4096,
    seed: int = 0,
    **walk: Unpack[Walk],
) -> TunedLens:
    """Fit a translator h -> h + A h + b for every layer before the last (Belrose et al. 2023, arXiv 2303.08112).

    The start is the ridge regression of the last layer's stream on this layer's, from float64 sums over one reading.
    Of the way from the identity (the logit lens) to it, the share with the least KL is taken. Then Adam with a rate
    that falls linearly to 0 minimises KL(last layer || lens); a layer that is not better afterwards keeps its start.
    No translator therefore has a greater KL than the logit lens on the tokens kept for checking.

    Parameters
    ----------
    model : Model
        The model, which is not changed.
    prompts : Prompts or sequence of str
        What to fit on.
    layers : sequence of int, optional
        Layers that get a translator; by default all before the last.
    ridge : float
        Added to the diagonal of the covariance of a layer, in units of its mean.
    exclude : sequence of str
        Rows left out of the closed form: ``"special"`` and ``"massive"`` ones (at that layer or at the last).
    steps : int
        Gradient steps after the closed form; 0 for none. The paper takes 250 with far larger batches.
    lr : float
        First learning rate of Adam (betas 0.9 and 0.999).
    step_tokens, check_tokens : int
        Tokens of a gradient step (whole prompts), and tokens on which KL is compared.
    seed : int
        Of the order of the prompts.
    **walk
        ``batch_tokens`` (8192 by default), ``store`` (LENS.safetensors), ``checkpoint_every``, ``progress``: see
        `tokinterp.run.walk.Walk`.

    Returns
    -------
    TunedLens
        On the CPU.

    Raises
    ------
    ValueError
        If a layer cannot have a translator, a setting makes no sense, or the store is of another fit (names what
        differs).
    KeyboardInterrupt
        After Ctrl-C, once the batch or step in progress has been finished and kept.

    Examples
    --------
    >>> import tokinterp as ti
    >>> texts = [t.text[:200] for t in ti.bundled_texts("story")[:8]]
    >>> ti.lens.fit_tuned_lens(ti.load_model(), texts, layers=[1, 2], steps=2, progress=False).layers
    [1, 2]
    """
    lens, batch_tokens = TunedLens.identity(model.info, layers), walk.get("batch_tokens") or 8192
    if not isinstance(prompts, Prompts):
        prompts = Prompts.from_texts(prompts, model)
    facts = {
        **fit_facts(model, prompts), "layers": lens.layers, "ridge": ridge, "exclude": list(exclude), "steps": steps,
        "lr": lr, "step_tokens": step_tokens, "check_tokens": check_tokens, "batch_tokens": batch_tokens, "seed": seed,
    }  # fmt: skip
    with Checkpoint(walk.get("store"), facts, walk.get("checkpoint_every", EVERY)) as keep:
        if keep.finished:
            return keep.read(TunedLens)
        lens.facts = facts  # with the model as it is now
        begin = keep.state()
        with progress_bar(walk.get("progress", True), len(prompts) + steps, desc="tuned lens") as bar:
            if begin is None or "read" in begin[0]:
                left_out = _closed_form(lens, model, prompts, ridge, exclude, batch_tokens, bar, keep, begin)
                begin = None
            else:
                left_out = begin[0]["left_out"]
            lens.weight, lens.bias = lens.weight.to(model.device), lens.bias.to(model.device)
            some = _Draws(lens, model, prompts, left_out, batch_tokens, seed)
            check = [(batch, _final(batch)) for batch in some.stream(check_tokens)]
            if begin is None:
                lens.facts["history"] = _blend(lens, check)
            if steps:
                first = _descend(lens, some, steps, lr, step_tokens, bar, keep, begin)
                _keep_better(lens, first, check)
        lens.weight, lens.bias = lens.weight.cpu(), lens.bias.cpu()
        lens.check()
        keep.write(lens)
        return lens


def _closed_form(
    lens: TunedLens, model: Model, prompts: Prompts, ridge: float, exclude: Sequence[str], batch_tokens: int, bar: tqdm,
    keep: Checkpoint, begin: State | None,
) -> list[int]:  # fmt: skip
    """Set A and b to the ridge regression of the last layer on each layer; go on from sums that were kept.

    Returns the numbers of the prompts that are not finite.
    """
    last, n = model.info.n_layers, len(lens.layers)
    chains: list[linear.Chain] = []
    read = 0
    if begin is not None:
        read, fields = begin[0]["read"], linear.Chain._fields
        kept = {k: v.to(model.device) for k, v in begin[1].items()}
        chains = [linear.Chain(**{f: kept[f"{i}/{f}"] for f in fields}) for i in range(n if kept else 0)]
        bar.update(read)
    source = stream(model, prompts, resid([*lens.layers, last]), batch_tokens=batch_tokens, start=read)
    source.left_out |= {} if begin is None else dict(begin[0]["left_out"])
    for batch in source:
        bar.update(source.read - read)
        read = source.read
        chains = chains or _empty_chains(lens, batch)
        _add(chains, lens, batch, exclude)
        sums = {f"{i}/{f}": v for i, c in enumerate(chains) for f, v in c._asdict().items()}
        notes = {"read": read, "left_out": [*source.left_out.items()]}
        keep.step(f"after {read} of {len(prompts)} prompts", partial(_pair, notes, sums))
    if not int(chains[0].count):
        raise ValueError(f"no token is left to fit on without {', '.join(exclude)} ones: give longer prompts")
    eye = torch.eye(model.info.d_model, dtype=torch.float64, device=chains[0].cross.device)
    for i in range(n):
        pair = linear.pair_of(chains[i], 0, (0, 1), [0])
        weight = linear.solve(pair, ridge=ridge).weight
        lens.weight[i] = (weight - eye).T.float().cpu()
        lens.bias[i] = (pair.mean_out - pair.mean_in @ weight).float().cpu()
    return sorted(source.left_out)


def _pair(notes: dict[str, Any], tensors: dict[str, torch.Tensor]) -> State:
    return notes, tensors


def _empty_chains(lens: TunedLens, batch: Batch) -> list[linear.Chain]:
    """Return sums of nothing about the mean of the first rows seen."""
    goal = batch.rows(batch.model.info.n_layers).double().mean(0)
    starts = [torch.stack([batch.rows(layer).double().mean(0), goal]) for layer in lens.layers]
    return [linear.empty(shift, 1, 1) for shift in starts]


def _add(chains: list[linear.Chain], lens: TunedLens, batch: Batch, exclude: Sequence[str]) -> None:
    """Add the rows of a batch to the sums of each layer and the last."""
    last = batch.model.info.n_layers
    outputs = batch.rows(last).double()
    for layer, chain in zip(lens.layers, chains, strict=True):
        keep = batch.flatten(batch.kept(exclude, layer, last))[:, None]
        x, y = (batch.rows(layer).double() - chain.shift[0]) * keep, (outputs - chain.shift[1]) * keep
        linear.accumulate(chain.first[0, 0], chain.second[0, 0], x)
        chain.first[1, 0].add_(y.sum(0))
        chain.cross[0, 0].addmm_(x.T, y)
        chain.count[0].add_(keep.sum())


class _Draws:
    """Random prompts, of those with finite states, at the layers of a lens and the last."""

    def __init__(
        self, lens: TunedLens, model: Model, prompts: Prompts, left_out: Sequence[int], batch_tokens: int, seed: int
    ) -> None:
        self.model, self.batch_tokens, self.left_out = model, batch_tokens, list(left_out)
        self.prompts = prompts[np.setdiff1d(np.arange(len(prompts)), left_out)]
        self.sites, self.rng = resid([*lens.layers, model.info.n_layers]), np.random.default_rng(seed)

    def stream(self, tokens: int) -> Stream:
        """Return the batches of random prompts that have so many tokens together (at least one prompt)."""
        order = self.rng.permutation(len(self.prompts))
        total = np.cumsum(np.asarray(self.prompts.lengths)[order])
        chosen = order[: max(1, int(np.searchsorted(total, tokens, side="right")))]
        return stream(self.model, self.prompts[chosen], self.sites, batch_tokens=self.batch_tokens)


def _kl(
    lens: TunedLens, batch: Batch, final: torch.Tensor, i: int, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """Return () the mean of KL(last layer || lens) over the tokens of a batch, nat."""
    model, x = batch.model, batch.rows(lens.layers[i])
    stream = x.float()
    stream = (stream + stream @ weight.T + bias).to(x.dtype)
    q = model.head(model.normed(stream)).log_softmax(-1)
    return (final.exp() * (final - q)).sum(-1).mean()


def _final(batch: Batch) -> torch.Tensor:
    """Return (row, vocab) log-probabilities of the last layer."""
    with torch.no_grad():
        return batch.model.unembed(batch.rows(batch.model.info.n_layers)).log_softmax(-1)


def _mean_kl(lens: TunedLens, check: Check, i: int, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return () the mean of KL(last layer || lens) over the tokens of all batches, nat."""
    each = [_kl(lens, batch, final, i, weight, bias) * len(final) for batch, final in check]
    return torch.stack(each).sum() / sum(len(final) for _, final in check)


def _blend(lens: TunedLens, check: Check) -> dict[str, dict[str, float]]:
    """Take of every closed-form map the share with the least KL; return what was found."""
    found = {}
    with torch.no_grad():
        for i, layer in enumerate(lens.layers):
            weight, bias = lens.weight[i].clone(), lens.bias[i].clone()
            kl = torch.stack([_mean_kl(lens, check, i, a * weight, a * bias) for a in BLENDS]).nan_to_num(nan=torch.inf)
            best = int(kl.argmin())
            lens.weight[i], lens.bias[i] = BLENDS[best] * weight, BLENDS[best] * bias
            found[str(layer)] = {"blend": BLENDS[best], "kl_identity": float(kl[0]), "kl_start": float(kl[best])}
    return found


def _descend(
    lens: TunedLens, some: _Draws, steps: int, lr: float, step_tokens: int, bar: tqdm, keep: Checkpoint,
    begin: State | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Take gradient steps, every layer on its own, all on the same tokens; return weight and bias of the start."""
    first = (lens.weight.clone(), lens.bias.clone())
    done = 0
    if begin is not None:
        notes, kept = begin[0], {k: v.to(some.model.device) for k, v in begin[1].items()}
        done, lens.facts["history"], some.rng.bit_generator.state = notes["done"], notes["history"], notes["rng"]
        first = (kept["first/weight"], kept["first/bias"])
        lens.weight, lens.bias = kept["weight"], kept["bias"]
        bar.update((bar.total or 0) - steps + done)
    params = {"weight": lens.weight, "bias": lens.bias}
    optimizer = torch.optim.Adam(params.values(), lr=lr, betas=(0.9, 0.999))
    for name, p in params.items():
        if begin is not None:
            mine = {k.rpartition("/")[2]: v for k, v in begin[1].items() if k.startswith(f"adam/{name}/")}
            optimizer.state[p] = {k: v if k == "step" else v.to(p.device) for k, v in mine.items()}

    def state() -> State:
        notes = {"done": done, "history": lens.facts["history"], "rng": some.rng.bit_generator.state}
        notes["left_out"] = some.left_out
        adam = {f"adam/{name}/{k}": v for name, p in params.items() for k, v in optimizer.state[p].items()}
        return notes, {**params, "first/weight": first[0], "first/bias": first[1], **adam}

    while done < steps:
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - done / steps)
        found = [*some.stream(step_tokens).each(partial(_slopes, lens))]
        total = sum(n for n, _ in found)
        for k, p in enumerate(params.values()):
            p.grad = torch.stack([slopes[k] * (n / total) for n, slopes in found]).sum(0).nan_to_num()
        optimizer.step()
        done += 1
        bar.update(1)
        keep.step(f"after {done} of {steps} steps", state)
    for p in params.values():
        p.grad = None
    return first


def _slopes(lens: TunedLens, batch: Batch) -> tuple[int, list[torch.Tensor]]:
    """Return the tokens of a batch, and the gradients of their mean KL with respect to A and b of all layers."""
    final, found = _final(batch), []
    for i in range(len(lens.layers)):
        own = [lens.weight[i].clone().requires_grad_(), lens.bias[i].clone().requires_grad_()]
        with torch.enable_grad():
            found.append(torch.autograd.grad(_kl(lens, batch, final, i, *own), own))
    return len(batch.tokens), [torch.stack(part) for part in zip(*found, strict=True)]


def _keep_better(lens: TunedLens, first: tuple[torch.Tensor, torch.Tensor], check: Check) -> None:
    """Go back to the start where training has not helped."""
    with torch.no_grad():
        for i in range(len(lens.layers)):
            before = _mean_kl(lens, check, i, first[0][i], first[1][i])
            after = _mean_kl(lens, check, i, lens.weight[i], lens.bias[i])
            lens.facts["history"][str(lens.layers[i])]["kl_trained"] = float(after)
            if not bool(after < before):
                lens.weight[i], lens.bias[i] = first[0][i], first[1][i]
