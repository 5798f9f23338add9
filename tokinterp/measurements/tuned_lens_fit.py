"""Fit a tuned lens: least squares towards the last layer in closed form, then gradient steps on the KL divergence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from ..capture import Batch, capture, resid, stream
from ..kernels import linear
from ..kernels.massive import massive_rows
from ..kernels.state import neutral
from ..loop import nonfinite_layer
from ..text.prompts import Prompts
from .tuned_lens import TunedLens

if TYPE_CHECKING:
    from ..models.base import Model

BLENDS = (0.0, 0.25, 0.5, 0.75, 1.0)


@neutral()
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
        If a layer cannot have a translator, or a setting makes no sense.

    Examples
    --------
    >>> import tokinterp as ti
    >>> texts = [t.text[:200] for t in ti.bundled_texts("story")[:8]]
    >>> ti.fit_tuned_lens(ti.load_model(), texts, layers=[1, 2], steps=2, progress=False).layers
    [1, 2]
    """
    lens = TunedLens.identity(model.info, layers)
    if ridge < 0 or steps < 0 or lr <= 0 or step_tokens < 1 or check_tokens < 1:
        raise ValueError(
            f"ridge={ridge}, steps={steps}, lr={lr}, step_tokens={step_tokens}, check_tokens={check_tokens}: "
            "ridge and steps cannot be negative, the others must be positive"
        )
    if unknown := [e for e in exclude if e not in ("special", "massive")]:
        raise ValueError(f"exclude={unknown}: the exclusions are special, massive")
    if not isinstance(prompts, Prompts):
        prompts = Prompts.from_texts(prompts, model)
    rng = np.random.default_rng(seed)
    with tqdm(total=len(prompts) + steps, disable=not progress, desc="tuned lens") as bar:
        _closed_form(lens, model, prompts, ridge, exclude, batch_tokens, bar)
        lens.weight, lens.bias = lens.weight.to(model.device), lens.bias.to(model.device)
        check = capture(model, prompts, _some(prompts, check_tokens, rng), resid([*lens.layers, model.info.n_layers]))
        lens.history = _blend(lens, check)
        if steps:
            first = (lens.weight.clone(), lens.bias.clone())
            _descend(lens, model, prompts, steps, lr, step_tokens, rng, bar)
            _keep_better(lens, first, check)
    lens.weight, lens.bias = lens.weight.cpu(), lens.bias.cpu()
    return lens


def _closed_form(
    lens: TunedLens, model: Model, prompts: Prompts, ridge: float, exclude: Sequence[str], batch_tokens: int, bar: tqdm
) -> None:
    """Set A and b to the ridge regression of the last layer on each layer."""
    last, n = model.info.n_layers, len(lens.layers)
    chains: list[linear.Chain] = []
    for batch in stream(model, prompts, resid([*lens.layers, last]), batch_tokens=batch_tokens):
        bar.update(len(batch))
        batch = _finite(batch)
        if not len(batch):
            continue
        outputs = batch.rows(last).double()
        if not chains:
            goal = outputs.mean(0)
            starts = [torch.stack([batch.rows(layer).double().mean(0), goal]) for layer in lens.layers]
            chains = [linear.empty(shift, 1, 1) for shift in starts]
        dropped = batch.row_special if "special" in exclude else torch.zeros_like(batch.row_special)
        if "massive" in exclude:
            dropped = dropped | batch.flatten(massive_rows(batch.resid(last), batch.mask))
        for layer, chain in zip(lens.layers, chains, strict=True):
            out = dropped
            if "massive" in exclude:
                out = out | batch.flatten(massive_rows(batch.resid(layer), batch.mask))
            keep = ~out[:, None]
            x, y = (batch.rows(layer).double() - chain.shift[0]) * keep, (outputs - chain.shift[1]) * keep
            linear.accumulate(chain.first[0, 0], chain.second[0, 0], x)
            chain.first[1, 0].add_(y.sum(0))
            chain.cross[0, 0].addmm_(x.T, y)
            chain.count[0].add_(keep.sum())
    if not chains:
        raise ValueError("all prompts give NaN or infinite activations: load the model with dtype='float32'")
    if not int(chains[0].count):
        raise ValueError(f"no token is left to fit on without {', '.join(exclude)} ones: give longer prompts")
    eye = torch.eye(model.info.d_model, dtype=torch.float64, device=chains[0].cross.device)
    for i in range(n):
        pair = linear.pair_of(chains[i], 0, (0, 1), [0])
        weight = linear.solve(pair, ridge=ridge).weight
        lens.weight[i] = (weight - eye).T.float().cpu()
        lens.bias[i] = (pair.mean_out - pair.mean_in @ weight).float().cpu()


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
    rng: np.random.Generator, bar: tqdm,
) -> None:  # fmt: skip
    """Take gradient steps; every layer on its own, all on the same tokens."""
    sites = resid([*lens.layers, model.info.n_layers])
    params = [lens.weight, lens.bias]
    optimizer = torch.optim.Adam(params, lr=lr, betas=(0.9, 0.999))
    for p in params:
        p.grad = torch.zeros_like(p)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        batch = _finite(capture(model, prompts, _some(prompts, step_tokens, rng), sites))
        if len(batch):
            final = _final(batch)
            for i in range(len(lens.layers)):
                own = [lens.weight[i].clone().requires_grad_(), lens.bias[i].clone().requires_grad_()]
                with torch.enable_grad():
                    slopes = torch.autograd.grad(_kl(lens, batch, final, i, *own), own)
                for p, slope in zip(params, slopes, strict=True):
                    assert p.grad is not None
                    p.grad[i] = slope.nan_to_num()
            optimizer.step()
        bar.update(1)
    for p in params:
        p.grad = None


def _keep_better(lens: TunedLens, first: tuple[torch.Tensor, torch.Tensor], check: Batch) -> None:
    """Go back to the start where training has not helped."""
    check = _finite(check)
    final = _final(check)
    with torch.no_grad():
        for i in range(len(lens.layers)):
            before = _kl(lens, check, final, i, first[0][i], first[1][i])
            after = _kl(lens, check, final, i, lens.weight[i], lens.bias[i])
            lens.history[str(lens.layers[i])]["kl_trained"] = float(after)
            if not bool(after < before):
                lens.weight[i], lens.bias[i] = first[0][i], first[1][i]
