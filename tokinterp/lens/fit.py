"""Fit a tuned lens: least squares towards the last layer in closed form, then gradient steps on the KL divergence."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from ..kernels import linear
from ..models.steady import steady
from ..run.batch import Batch
from ..run.fitting import Fit, State, fit_facts
from ..run.signals import at_once
from ..run.sites import resid
from ..run.stream import capture, nonfinite_layer, stream
from ..settings import checked, count, number, positive
from ..text.prompts import Prompts
from .tuned_lens import TunedLens

if TYPE_CHECKING:
    from ..models.base import Model

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
    batch_tokens: int = 8192,
    store: str | Path | None = None,
    checkpoint_every: float = 60.0,
    seed: int = 0,
    progress: bool = True,
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
    batch_tokens : int
        Padded tokens per batch of the first reading.
    store : path, optional
        File for the lens, LENS.safetensors.  The state of the fit is kept in ``STORE.partial``: the same call after a
        crash or Ctrl-C goes on from there and ends in the same bits, and a finished lens is read.
    checkpoint_every : float
        Seconds between two checkpoints; at least ten times as long as writing one takes.
    seed : int
        Of the order of the prompts.
    progress : bool
        Show a bar.

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
    lens = TunedLens.identity(model.info, layers)
    if not isinstance(prompts, Prompts):
        prompts = Prompts.from_texts(prompts, model)
    facts = {
        **fit_facts(model, prompts), "layers": lens.layers, "ridge": ridge, "exclude": list(exclude), "steps": steps,
        "lr": lr, "step_tokens": step_tokens, "check_tokens": check_tokens, "batch_tokens": batch_tokens, "seed": seed,
    }  # fmt: skip
    with Fit(store, facts, checkpoint_every) as keep:
        if keep.finished:
            return keep.read(TunedLens)
        lens.facts = facts  # with the model as it is now
        begin = keep.state()
        with tqdm(total=len(prompts) + steps, disable=not progress, desc="tuned lens") as bar:
            rng = np.random.default_rng(seed)
            chosen = _some(prompts, check_tokens, rng)
            sites = resid([*lens.layers, model.info.n_layers])
            if begin is None or "read" in begin[0]:
                _closed_form(lens, model, prompts, ridge, exclude, batch_tokens, bar, keep, begin)
                begin = None
            lens.weight, lens.bias = lens.weight.to(model.device), lens.bias.to(model.device)
            check = capture(model, prompts, chosen, sites)
            if begin is None:
                lens.facts["history"] = _blend(lens, check)
            if steps:
                first = _descend(lens, model, prompts, steps, lr, step_tokens, rng, bar, keep, begin)
                _keep_better(lens, first, check)
        lens.weight, lens.bias = lens.weight.cpu(), lens.bias.cpu()
        lens.check()
        keep.finish(lens.save)
        return lens


def _closed_form(
    lens: TunedLens, model: Model, prompts: Prompts, ridge: float, exclude: Sequence[str], batch_tokens: int, bar: tqdm,
    keep: Fit, begin: State | None,
) -> None:  # fmt: skip
    """Set A and b to the ridge regression of the last layer on each layer; go on from sums that were kept."""
    last, n = model.info.n_layers, len(lens.layers)
    chains: list[linear.Chain] = []
    read = 0
    if begin is not None:
        read, fields = begin[0]["read"], linear.Chain._fields
        kept = {k: v.to(model.device) for k, v in begin[1].items()}
        chains = [linear.Chain(**{f: kept[f"{i}/{f}"] for f in fields}) for i in range(n if kept else 0)]
        bar.update(read)
    source = stream(model, prompts, resid([*lens.layers, last]), batch_tokens=batch_tokens, start=read)
    for batch in source:
        bar.update(source.read - read)
        read = source.read
        chains = chains or _empty_chains(lens, batch)
        _add(chains, lens, batch, exclude)
        sums = {f"{i}/{f}": v for i, c in enumerate(chains) for f, v in c._asdict().items()}
        keep.step(f"after {read} of {len(prompts)} prompts", partial(_pair, {"read": read}, sums))
    if not int(chains[0].count):
        raise ValueError(f"no token is left to fit on without {', '.join(exclude)} ones: give longer prompts")
    eye = torch.eye(model.info.d_model, dtype=torch.float64, device=chains[0].cross.device)
    for i in range(n):
        pair = linear.pair_of(chains[i], 0, (0, 1), [0])
        weight = linear.solve(pair, ridge=ridge).weight
        lens.weight[i] = (weight - eye).T.float().cpu()
        lens.bias[i] = (pair.mean_out - pair.mean_in @ weight).float().cpu()


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


def _finite(batch: Batch) -> Batch:
    ok = nonfinite_layer(batch) < 0
    return batch if bool(ok.all()) else batch.select(ok.nonzero()[:, 0].tolist())


def _some(prompts: Prompts, tokens: int, rng: np.random.Generator) -> list[int]:
    """Return numbers of random prompts that have so many tokens together (at least one prompt)."""
    order = rng.permutation(len(prompts))
    total = np.cumsum(np.asarray(prompts.lengths)[order])
    return order[: max(1, int(np.searchsorted(total, tokens, side="right")))].tolist()


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


def _blend(lens: TunedLens, check: Batch) -> dict[str, dict[str, float]]:
    """Take of every closed-form map the share with the least KL; return what was found."""
    check, found = _finite(check), {}
    final = _final(check)
    with torch.no_grad():
        for i, layer in enumerate(lens.layers):
            weight, bias = lens.weight[i].clone(), lens.bias[i].clone()
            kl = torch.stack([_kl(lens, check, final, i, a * weight, a * bias) for a in BLENDS]).nan_to_num(
                nan=torch.inf
            )
            best = int(kl.argmin())
            lens.weight[i], lens.bias[i] = BLENDS[best] * weight, BLENDS[best] * bias
            found[str(layer)] = {"blend": BLENDS[best], "kl_identity": float(kl[0]), "kl_start": float(kl[best])}
    return found


def _descend(
    lens: TunedLens, model: Model, prompts: Prompts, steps: int, lr: float, step_tokens: int,
    rng: np.random.Generator, bar: tqdm, keep: Fit, begin: State | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Take gradient steps, every layer on its own, all on the same tokens; return weight and bias of the start."""
    sites = resid([*lens.layers, model.info.n_layers])
    first = (lens.weight.clone(), lens.bias.clone())
    done = 0
    if begin is not None:
        notes, kept = begin[0], {k: v.to(model.device) for k, v in begin[1].items()}
        done, lens.facts["history"], rng.bit_generator.state = notes["done"], notes["history"], notes["rng"]
        first = (kept["first/weight"], kept["first/bias"])
        lens.weight, lens.bias = kept["weight"], kept["bias"]
        bar.update(len(prompts) + done)
    params = {"weight": lens.weight, "bias": lens.bias}
    optimizer = torch.optim.Adam(params.values(), lr=lr, betas=(0.9, 0.999))
    for name, p in params.items():
        p.grad = torch.zeros_like(p)
        if begin is not None:
            mine = {k.rpartition("/")[2]: v for k, v in begin[1].items() if k.startswith(f"adam/{name}/")}
            optimizer.state[p] = {k: v if k == "step" else v.to(p.device) for k, v in mine.items()}

    def state() -> State:
        notes = {"done": done, "history": lens.facts["history"], "rng": rng.bit_generator.state}
        adam = {f"adam/{name}/{k}": v for name, p in params.items() for k, v in optimizer.state[p].items()}
        return notes, {**params, "first/weight": first[0], "first/bias": first[1], **adam}

    while done < steps:
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - done / steps)
        batch = _finite(capture(model, prompts, _some(prompts, step_tokens, rng), sites))
        if len(batch):
            final = _final(batch)
            for i in range(len(lens.layers)):
                own = [lens.weight[i].clone().requires_grad_(), lens.bias[i].clone().requires_grad_()]
                with torch.enable_grad():
                    slopes = torch.autograd.grad(_kl(lens, batch, final, i, *own), own)
                for p, slope in zip(params.values(), slopes, strict=True):
                    assert p.grad is not None
                    p.grad[i] = slope.nan_to_num()
            optimizer.step()
        done += 1
        bar.update(1)
        keep.step(f"after {done} of {steps} steps", state)
    for p in params.values():
        p.grad = None
    return first


def _keep_better(lens: TunedLens, first: tuple[torch.Tensor, torch.Tensor], check: Batch) -> None:
    """Go back to the start where training has not helped."""
    check = _finite(check)
    final = _final(check)
    with torch.no_grad():
        for i in range(len(lens.layers)):
            before = _kl(lens, check, final, i, first[0][i], first[1][i])
            after = _kl(lens, check, final, i, lens.weight[i], lens.bias[i])
            lens.facts["history"][str(lens.layers[i])]["kl_trained"] = float(after)
            if not bool(after < before):
                lens.weight[i], lens.bias[i] = first[0][i], first[1][i]
