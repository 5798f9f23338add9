"""Token probes: read the token at t + offset off the stream at t (Feucht et al. 2024, arXiv 2406.20086, section 2)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
from tqdm import tqdm

from ..files.bars import progress_bar
from ..fitted import Tensors
from ..models.steady import steady
from ..run.checkpoint import EVERY, Checkpoint, State
from ..run.facts import fit_facts
from ..run.measurement import choose_layers
from ..run.signals import at_once
from ..run.walk import Walk
from ..settings import checked, instance, integer, one_of, positive, several
from .probe_closed import SOLVERS, fit_closed
from .probe_files import LAYER, check_layer, layer_file, save_facts
from .probe_settings import NAMED, ProbeSettings, choose_settings
from .probe_states import Need, Pair, capture_states, memory_left, need_of_training
from .probe_text import OFFSETS, TextStatistics, choose_offsets, label_ids
from .probe_training import Job, train
from .token_probes import TokenProbes

if TYPE_CHECKING:
    from ..models.base import Model
    from ..text.prompts import Prompts

METHODS = ("softmax", "factored", "ridge", "lda")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@at_once()
@checked(
    offsets=several(integer, 1, once=True),
    method=one_of(*METHODS),
    settings=one_of(*NAMED) | instance("ProbeSettings"),
    states=one_of(*DTYPES),
    products=one_of(*DTYPES),
    shrinkage=positive,
)
@steady
def fit_probes(
    model: Model,
    prompts: Prompts,
    *,
    layers: Sequence[int] | None = None,
    offsets: Sequence[int] = OFFSETS,
    method: str = "softmax",
    settings: str | ProbeSettings = "default",
    validation: Prompts | None = None,
    states: str | None = None,
    products: str | None = None,
    shrinkage: float = 0.1,
    memory: int | None = None,
    seed: int = 0,
    **walk: Unpack[Walk],
) -> TokenProbes:
    """Fit linear probes from the stream at token t of every layer to the token at t + offset.

    The prompts are read once for as many layers as fit into memory; their states stay on the device and all offsets of
    all these layers are trained from them, one matrix product after the other in buffers that are used again.

    Parameters
    ----------
    model : Model
        Whose stream is read.
    prompts : Prompts
        Training text; whole documents (the paper cut none), since types that do not occur cannot be predicted.
    layers : sequence of int, optional
        Layers (blocks applied, 0 to n_layers); all by default.  The paper's l is the layer l + 1.
    offsets : sequence of int
        -3 to +1 by default: negative reads earlier tokens, 0 the token itself, 1 the next token of the text.
    method : {"softmax", "factored", "ridge", "lda"}
        "softmax": a matrix trained with cross-entropy.  "factored": the same with weights unembedding @ A, only the
        d x d matrix A trained, for small corpora.  "ridge" and "lda": closed forms from streamed statistics, a quick
        look; far weaker where the answer is spread over the state, and ridge gives an order, not probabilities.
    settings : str or ProbeSettings
        "default"; "feucht2024" for the published training loop, bugs included (see `choose_settings`); or your own.
    validation : Prompts, optional
        Other text for early stopping: each probe keeps the epoch with its lowest loss.  Without it all epochs are run.
    states : {"float32", "float16", "bfloat16"}, optional
        In which states are kept: float32 on a CPU, float16 (of standardised states; else bfloat16) on a GPU.
    products : {"float32", "bfloat16"}, optional
        In which matrices are multiplied: float32 on a CPU, bfloat16 on a GPU; the softmax and sums are float32.
    shrinkage : float
        Of the closed forms: ridge penalty in units of the mean variance, or share of the identity in LDA's covariance.
    memory : int, optional
        Memory for states, weights and working buffers; by default most of the free memory.
    seed : int
        Of the order of the batches, and of the start where it is random.
    **walk
        ``batch_tokens``, ``store`` (a folder), ``checkpoint_every``, ``progress``: see `tokinterp.run.walk.Walk`.

    Returns
    -------
    TokenProbes

    Raises
    ------
    ValueError
        Before the model runs: unknown method, settings, layer or dtype, no label at an offset, prompts of another
        tokenizer, "feucht2024" without ``validation``, too little memory for one layer, a store of another fit.  After
        it: weights that are NaN or infinite.
    KeyboardInterrupt
        After Ctrl-C, once the batch in progress has been finished and kept.

    Notes
    -----
    Special tokens (BOS) are neither sources nor labels, unlike in the published code, where BOS is a label that offset
    -1 learns easily; ``ProbeSettings(bos=True)`` brings it back.  Positions whose label would lie outside the prompt
    are skipped.  On which layers are trained together nothing depends but the memory.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> prompts = ti.Prompts.from_texts(["The Nile flows north.", "The Rhine flows north."], model)
    >>> fit_probes(model, prompts, layers=[2], offsets=[-1, 0], progress=False).offsets
    [-1, 0]
    """
    chosen, where, s = choose_layers(layers, model.info), choose_offsets(offsets), choose_settings(settings)
    if s.plateau and validation is None and method in ("softmax", "factored"):
        raise ValueError(
            f"settings={settings!r}: these lower the learning rate by the validation loss: give validation="
        )
    for name, p in (("prompts", prompts), ("validation", validation)):
        if p is not None and int(p.token_ids.max()) >= model.info.d_vocab:
            raise ValueError(f"{name}: id {int(p.token_ids.max())} is not in the vocabulary of {model.info.id}")
    text = TextStatistics.of(prompts, where, model.info.d_vocab, s.bos, s.all_types)
    gpu = model.device.type == "cuda"
    kept = states or (("float16" if s.standardise else "bfloat16") if gpu else "float32")
    multiplied = products or ("bfloat16" if gpu else "float32")
    closed = method in SOLVERS
    facts: dict[str, Any] = {
        **fit_facts(model, prompts), "d_model": model.info.d_model, "d_vocab": model.info.d_vocab,
        "n_layers": model.info.n_layers, "method": method, "bos": s.bos,
        "validation": validation.hash if validation is not None and not closed else None,
        **({"shrinkage": shrinkage} if closed else {"settings": s.facts(), "seed": seed, "states": kept,
                                                    "products": multiplied}),
    }  # fmt: skip
    if not closed:
        _warn_of_little(prompts, s, len(text.labels))
    store, every = walk.get("store"), walk.get("checkpoint_every", EVERY)
    with Checkpoint(store, {**facts, "layers": chosen, "offsets": where}, every) as keep:
        if keep.finished:
            return keep.read(TokenProbes)
        fit = _Fit(model, prompts, where, text, s, validation, walk.get("progress", True), keep)
        size = walk.get("batch_tokens") or (16384 if gpu else 4096)
        parts: dict[int, Tensors | Path] = {}
        for n in chosen if store is not None else ():
            if (keep.partial / layer_file(n)).is_file():
                keep.load_part(layer_file(n), LAYER)
                parts[n] = keep.partial / layer_file(n)
        limit = memory if memory is not None else memory_left(model.device)
        need = fit.closed_need() if closed else fit.training_need(DTYPES[kept], DTYPES[multiplied], method)
        begin = keep.state()
        going_on = [n for n in begin[0]["group"] if n not in parts] if begin is not None else []
        todo = [n for n in chosen if n not in parts and n not in going_on]
        groups = need.groups(going_on, limit) + need.groups(todo, limit)
        if model.device.type == "cpu" and store is None:  # finished weights of earlier groups stay in the same memory
            results = 4 * len(where) * len(text.labels) * model.info.d_model
            groups = need.groups(todo, limit - results * max(0, len(todo) - len(groups[0])) if groups else limit)
        logging.getLogger("tokinterp").info(
            "%d layers in %d groups; %.2f GiB each of %.2f GiB", len(todo) + len(going_on), len(groups),
            (need.fixed + max(map(len, groups), default=0) * (need.states + need.weights)) / 2**30, limit / 2**30,
        )  # fmt: skip
        for group in groups:
            known = begin if begin is not None and set(group) <= set(begin[0]["group"]) else None
            if closed:
                found = fit.closed(group, method, shrinkage, known, size)
            else:
                found = fit.train(group, DTYPES[kept], DTYPES[multiplied], method, seed, known, size)
            for layer, tensors in found.items():
                check_layer(tensors, where, len(text.labels), model.info.d_model, f"the probes of layer {layer}")
                if store is not None:
                    keep.save_part(layer_file(layer), tensors, {"layer": layer}, LAYER, finite=False)
                parts[layer] = keep.partial / layer_file(layer) if store is not None else tensors
        out = TokenProbes(chosen, where, text.labels, parts, facts, text)
        if keep.path is None:
            return out
        save_facts(out, keep.partial)
        keep.rename()
        there: dict[int, Tensors | Path] = {n: keep.path / layer_file(n) for n in chosen}
        return TokenProbes(chosen, where, text.labels, there, out.facts, text)


def _warn_of_little(prompts: Prompts, settings: ProbeSettings, n_types: int) -> None:
    """Say so where there is far too little text for what probes of so many types have to learn."""
    n, per_type = prompts.n_tokens, prompts.n_tokens / n_types
    steps = settings.epochs * math.ceil(len(prompts) / settings.documents if settings.documents else n / settings.rows)
    if steps < 100 or per_type < 10:
        logging.getLogger("tokinterp").warning(
            "%d tokens are little for probes of %d types (%.1f a type), and make %d training steps at most: a low "
            "accuracy is then that of the text, not of the model; give at least 10 tokens a type and 100 steps",
            n, n_types, per_type, steps,
        )  # fmt: skip


class _Fit:
    """The model, the prompts and their labels."""

    def __init__(
        self, model: Model, prompts: Prompts, offsets: list[int], text: TextStatistics, settings: ProbeSettings,
        validation: Prompts | None, progress: bool, keep: Checkpoint,
    ) -> None:  # fmt: skip
        self.model, self.prompts, self.offsets, self.text = model, prompts, offsets, text
        self.settings, self.validation, self.progress, self.keep = settings, validation, progress, keep

    def targets(self, prompts: Prompts) -> torch.Tensor:
        """Return (offset, token) int64 class on the device, -1 where there is none."""
        table = self.text.class_of()
        found = [torch.from_numpy(label_ids(prompts, o, self.settings.bos)) for o in self.offsets]
        rows = [torch.where(t >= 0, row[t.clamp_min(0)], -1) for t, row in zip(found, table, strict=True)]
        return torch.stack(rows).to(self.model.device)

    def training_need(self, states: torch.dtype, products: torch.dtype, method: str) -> Need:
        """Return the memory of training; see `need_of_training`."""
        n_validation = self.validation.n_tokens if self.validation is not None else 0
        d = self.model.info.d_model
        return need_of_training(
            self.prompts.n_tokens, n_validation, d, len(self.text.labels), len(self.offsets), self.settings,
            states, products, self.model.device, len(self.text.labels) * d if method == "factored" else 0,
        )  # fmt: skip

    def closed_need(self) -> Need:
        """Return the memory of the closed forms: float64 second moments and class sums."""
        d, c = self.model.info.d_model, len(self.text.labels)
        labels = 8 * len(self.offsets) * self.prompts.n_tokens
        return Need(labels + 8 * (3 * d * d + 3 * c * d), 0, 8 * d * d + 8 * len(self.offsets) * c * d)

    def train(
        self, layers: list[int], states: torch.dtype, products: torch.dtype, method: str, seed: int,
        begin: State | None, batch_tokens: int,
    ) -> dict[int, Tensors]:  # fmt: skip
        """Capture the states of a group of layers and train all its probes; go on from a state that was kept."""
        batch_tokens = batch_tokens if begin is None else begin[0]["batch_tokens"]
        s, name = self.settings, f"layers {layers[0]}-{layers[-1]}" if len(layers) > 1 else f"layer {layers[0]}"
        total = self.prompts.n_tokens + (self.validation.n_tokens if self.validation is not None else 0)
        with torch.no_grad():
            with self._bar(total, f"{name}, states", "tok") as bar:

                def after_batch(n: int) -> None:
                    bar.update(n)
                    self.keep.step(f"while the states of {name} were read")

                read = (layers, states, batch_tokens, after_batch, s.standardise)
                got = capture_states(self.model, self.prompts, *read)
                held = None
                if self.validation is not None:
                    held = capture_states(self.model, self.validation, *read, got.standard)
            targets = self.targets(self.prompts).masked_fill_(~got.finite, -1)
            checked = None
            if self.validation is not None and held is not None:
                checked = self.targets(self.validation).masked_fill_(~held.finite, -1)
            head = self._head() if method == "factored" else None
            usable = np.isin(self.prompts.token_ids, [] if s.bos else self.prompts.vocabulary.special_ids, invert=True)
            usable = np.flatnonzero(usable & got.finite.cpu().numpy())
            n_classes, starts = len(self.text.labels), self.prompts.starts
            job = Job(targets, checked, starts, usable, n_classes, self.offsets, s, seed, products, head)
            n = len(self.prompts) / s.documents if s.documents else len(usable) / s.rows
            with self._bar(s.epochs * math.ceil(n), f"{name}, probes", "batch") as bar:
                bar.update(0 if begin is None else begin[0]["number"])

                def step(batches: int, state: Callable[[], State] | None) -> None:
                    bar.update(batches)
                    whole = None if state is None else lambda: _of_group(layers, batch_tokens, state())
                    self.keep.step(f"after {bar.n} of {bar.total} batches of {name}", whole)

                found = train(got.rows, held.rows if held else {}, job, step, begin)
        out: dict[int, Tensors] = {layer: _standard(got.standard.get(layer)) for layer in layers}
        for (layer, offset), tensors in found.items():
            out[layer].update({f"{k}.{offset}": v for k, v in tensors.items()})
        return out

    def _head(self) -> torch.Tensor:
        """Return (class, d) rows of the unembedding, scaled to a mean square row of 1."""
        info = self.model.info
        eye = torch.eye(info.d_model, device=self.model.device, dtype=getattr(torch, info.dtype))
        columns = self.model.head(eye) - self.model.head(torch.zeros_like(eye[:1]))
        head = columns.T[self.text.labels.to(columns.device)].float()
        return (head / head.square().sum(1).mean().sqrt().clamp_min(1e-12)).contiguous()

    def closed(
        self, layers: list[int], method: str, shrinkage: float, begin: State | None, batch_tokens: int
    ) -> dict[int, Tensors]:
        """Solve for the probes of a group of layers; go on from sums that were kept."""
        batch_tokens = batch_tokens if begin is None else begin[0]["batch_tokens"]
        with self._bar(self.prompts.n_tokens, f"layers {layers[0]}-{layers[-1]}", "tok") as bar:
            return fit_closed(
                self.model, self.prompts, self.targets(self.prompts), layers, self.offsets, len(self.text.labels),
                bos=self.settings.bos, method=method, shrinkage=shrinkage, batch_tokens=batch_tokens, keep=self.keep,
                begin=begin, bar=bar,
            )  # fmt: skip

    def _bar(self, total: int, what: str, unit: str) -> tqdm:
        return progress_bar(self.progress, total, desc=what, unit=unit)


def _standard(pair: Pair | None) -> Tensors:
    return {} if pair is None else {"mean": pair[0].float().cpu(), "scale": pair[1].float().cpu()}


def _of_group(layers: list[int], batch_tokens: int, state: State) -> State:
    """Return a state of training that says of which layers it is, and in which batches their states were read."""
    return {**state[0], "group": layers, "batch_tokens": batch_tokens}, state[1]


__all__ = ["METHODS", "ProbeSettings", "TokenProbes", "fit_probes"]
