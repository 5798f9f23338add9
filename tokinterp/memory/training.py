"""Train the decoder that writes the text before a token from its states, with checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch

from ..files.bars import progress_bar
from ..kernels.state import seeded
from ..models.steady import steady
from ..run.checkpoint import EVERY, Checkpoint, State
from ..run.facts import fit_facts
from ..run.signals import at_once
from ..run.sites import resid
from ..run.stream import report_nonfinite, stream
from ..run.walk import Keeping
from ..settings import checked, count, number, positive
from ..text.prompts import Prompts
from .decoder import ContextDecoder

if TYPE_CHECKING:
    from ..models.hooks import HookedLM


@at_once()
@checked(
    steps=count(1),
    rows=count(1),
    max_prefix=count(1),
    lr=positive,
    lr_new=positive,
    weight_decay=number(0),
    hidden=count(1),
)
@steady
def fit_context_decoder(
    model: HookedLM,
    prompts: Prompts | Sequence[str],
    *,
    steps: int = 2000,
    rows: int = 64,
    max_prefix: int = 32,
    lr: float = 1e-4,
    lr_new: float = 1e-3,
    warmup: int = 100,
    weight_decay: float = 0.01,
    hidden: int | None = None,
    train_copy: bool = True,
    seed: int = 0,
    **keeping: Unpack[Keeping],
) -> ContextDecoder:
    """Train a `ContextDecoder` on random tokens of the prompts.

    The paper (Razzhigaev et al. 2025, arXiv 2502.15007, section 3.2) gives the architecture and the loss, the
    cross-entropy of the true prefix. It does not give the lengths of prefixes, width and activation of the MLP, the
    optimiser or the number of steps; those below are this package's own and are kept with the decoder.

    Parameters
    ----------
    model : Model
        The examined model, frozen; a copy of it is trained.
    prompts : Prompts or sequence of str
        Fragments; only the first ``max_prefix + 1`` tokens of each are used. Score others than these.
    steps, rows : int
        Gradient steps, and tokens (from up to ``rows / 4`` prompts) in each.
    max_prefix : int
        Longest prefix in tokens, BOS not counted.
    lr, lr_new : float
        Peak learning rates of the copy, and of pooling and MLP. AdamW (betas 0.9 and 0.95), linear warm-up over
        ``warmup`` steps, then linear decay to 0; gradients are clipped to norm 1.
    warmup : int
        Steps.
    weight_decay : float
        Of AdamW.
    hidden : int, optional
        Width of the MLP; that of the model by default.
    train_copy : bool
        Whether the copy learns; if not, only pooling and MLP do.
    seed : int
        Of weights and draws.
    **keeping
        ``store`` (DECODER.safetensors), ``checkpoint_every``, ``progress``: see `tokinterp.run.walk.Keeping`.

    Returns
    -------
    ContextDecoder

    Raises
    ------
    ValueError
        If a setting makes no sense, no prompt has two tokens, or the store is of another fit (names what differs);
        after training, if it gave NaN.
    KeyboardInterrupt
        After Ctrl-C, once the step in progress has been finished and kept.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> texts = [t.text for t in ti.bundled_texts("story")[:4]]
    >>> ti.memory.fit_context_decoder(model, texts, steps=1, rows=4, max_prefix=4, progress=False).facts["steps"]
    1
    """
    numbers = {"steps": steps, "rows": rows, "max_prefix": max_prefix, "lr": lr, "lr_new": lr_new}
    if not isinstance(prompts, Prompts):
        prompts = Prompts.from_texts(prompts, model)
    draws = _Draws(model, prompts, rows, max_prefix)
    facts = {
        **fit_facts(model, prompts), **numbers, "warmup": warmup, "weight_decay": weight_decay,
        "train_copy": train_copy, "seed": seed, "hidden": int(hidden or model.info.d_model),
    }  # fmt: skip
    with Checkpoint(keeping.get("store"), facts, keeping.get("checkpoint_every", EVERY)) as keep:
        if keep.finished:
            return keep.read(ContextDecoder, model).requires_grad_(False)
        with seeded(seed):
            decoder = ContextDecoder(model, facts, hidden)
        decoder.lm.requires_grad_(train_copy)
        copy = [p for p in decoder.lm.parameters() if p.requires_grad]
        groups = [{"params": [decoder.pool, *decoder.mlp.parameters()], "peak": lr_new}, {"params": copy, "peak": lr}]
        optimizer = torch.optim.AdamW([g for g in groups if g["params"]], betas=(0.9, 0.95), weight_decay=weight_decay)
        begin = keep.state()
        losses = [] if begin is None else _take_up(decoder, optimizer, begin)
        seen = sum(n for _, n in losses)
        shown = keeping.get("progress", True)
        with progress_bar(shown, steps, initial=len(losses), desc="context decoder") as bar:
            while (done := len(losses)) < steps:
                _set_rate(optimizer, done, steps, warmup)
                states, prefix = draws.states([seed, done])
                loss = float("nan")
                if len(states):
                    loss = _step(decoder, optimizer, states, prefix)
                    seen += len(states)
                    decoder.mean_state.lerp_(states.mean(0), len(states) / seen)
                losses.append((loss, len(states)))
                bar.update(1)
                bar.set_postfix(loss=f"{_mean(losses):.3f}")
                keep.step(f"after {len(losses)} of {steps} steps", partial(_state, decoder, optimizer, losses))
        report_nonfinite(draws.left_out, len(prompts), model)
        decoder.facts["loss"] = _mean(losses)
        decoder.check()
        keep.write(decoder)
        return decoder.requires_grad_(False)


def _mean(losses: list[tuple[float, int]]) -> float:
    """Return the mean of the last 50 losses; NaN where none of these steps had a finite state."""
    last = [loss for loss, n in losses[-50:] if n]
    return float(np.mean(last)) if last else float("nan")


def prefix_start(special: np.ndarray) -> int:
    """Return how many special tokens (BOS) a prompt begins with: the place of its first prefix token."""
    return int(np.argmin(special)) if not special.all() else len(special)


def prefixes(ids: torch.Tensor, start: torch.Tensor, row: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """Return (row, n) the tokens of prompt ``row`` from ``start`` up to, not including, ``position``; -1 beyond."""
    length = position - start[row]
    places = torch.arange(int(length.max()), device=ids.device, dtype=torch.int64)
    inside = places < length[:, None]
    at = (start[row][:, None] + places).clamp(max=ids.shape[1] - 1)
    return torch.where(inside, ids[row[:, None], at], -1)


class _Draws:
    """Random tokens of the prompts that have a prefix, with their states."""

    def __init__(self, model: HookedLM, prompts: Prompts, rows: int, max_prefix: int) -> None:
        starts = np.array([prefix_start(prompts.special(i)) for i in range(len(prompts))])
        usable = np.flatnonzero(starts < np.asarray(prompts.lengths) - 1)
        if not len(usable):
            raise ValueError("no prompt has two tokens that are not special: give longer prompts")
        self.starts = starts[usable]
        self.last = np.minimum(np.asarray(prompts.lengths)[usable] - 1, self.starts + max_prefix)
        self.prompts = Prompts.from_ids(
            [prompts.ids(int(i))[: last + 1] for i, last in zip(usable, self.last, strict=True)], model
        )
        self.model, self.rows, self.numbers = model, rows, usable
        self.left_out: dict[int, int] = {}  # what is not finite among the prompts drawn so far

    def states(self, seed: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return finite states (row, layer, d) of random tokens, and the prefixes (row, n) before them."""
        rng, model, n_layers = np.random.default_rng(seed), self.model, self.model.info.n_layers
        chosen = rng.choice(len(self.starts), size=max(1, self.rows // 4))
        row = rng.integers(0, len(chosen), self.rows)
        position = rng.integers(self.starts[chosen][row] + 1, self.last[chosen][row] + 1)
        place, row = (torch.from_numpy(x).to(model.device) for x in (position, row))
        states = torch.full(
            (self.rows, n_layers, model.info.d_model), torch.nan, dtype=torch.float32, device=model.device
        )
        some = self.prompts[chosen]
        source = stream(model, some, resid(range(1, n_layers + 1)))
        for batch in source.each(lambda batch: batch, report=False):
            within = torch.full((len(chosen),), -1, dtype=torch.int64, device=model.device)
            within[batch.numbers] = torch.arange(len(batch), dtype=torch.int64, device=model.device)
            mine = (within[row] >= 0).nonzero()[:, 0]
            at = (within[row[mine]], place[mine])
            states[mine] = torch.stack([batch.resid(n)[at].float() for n in range(1, n_layers + 1)], 1)
        self.left_out |= {int(self.numbers[chosen[i]]): layer for i, layer in source.left_out.items()}
        ids = torch.from_numpy(some.padded(range(len(chosen)))[0]).to(model.device)
        prefix = prefixes(ids, torch.from_numpy(self.starts[chosen]).to(model.device), row, place)
        finite = states.isfinite().flatten(1).all(1)
        return states[finite], prefix[finite]


def _step(decoder: ContextDecoder, optimizer: torch.optim.Optimizer, states: Any, prefix: torch.Tensor) -> float:
    with torch.enable_grad():
        loss = decoder(states, prefix).sum(1) / (prefix >= 0).sum(1)  # every prefix counts the same
        optimizer.zero_grad(set_to_none=True)
        loss.mean().backward()
    torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
    optimizer.step()
    return float(loss.mean().detach())


def _set_rate(optimizer: torch.optim.Optimizer, done: int, steps: int, warmup: int) -> None:
    factor = min(1.0, (done + 1) / warmup) if warmup else 1.0
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor * (1 - done / steps)


def _state(decoder: ContextDecoder, optimizer: torch.optim.Optimizer, losses: list[tuple[float, int]]) -> State:
    """Return all that training needs to go on."""
    names = {id(p): n for n, p in decoder.named_parameters()}
    adam = {f"adam/{names[id(p)]}/{k}": v for p, s in optimizer.state.items() for k, v in s.items()}
    return {"losses": losses}, {**decoder.tensors(), **adam}


def _take_up(decoder: ContextDecoder, optimizer: torch.optim.Optimizer, begin: State) -> list[tuple[float, int]]:
    """Give decoder and optimiser what `_state` returned; return the losses of the steps that are done."""
    notes, tensors = begin
    decoder.take(tensors)
    for name, p in decoder.named_parameters():
        mine = f"adam/{name}/"
        known = {k.removeprefix(mine): v for k, v in tensors.items() if k.startswith(mine)}
        if known:
            optimizer.state[p] = {k: v.to(p.device) if k != "step" else v for k, v in known.items()}
    logging.getLogger("tokinterp").info("context decoder: %d steps are done", len(notes["losses"]))
    return [(loss, n) for loss, n in notes["losses"]]
