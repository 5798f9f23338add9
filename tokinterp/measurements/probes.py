"""Token probes: read the token at t + offset off the stream at t (Feucht et al. 2024, arXiv 2406.20086, section 2)."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from ..checkpoint import compare_facts
from ..files import write_text
from ..kernels import probes as kernel
from ..kernels.state import neutral
from .base import choose_layers
from .probe_settings import ProbeSettings, choose_settings
from .probe_states import (
    Need,
    Pair,
    capture_states,
    memory_left,
    need_of_training,
    provisional,
    read_batches,
    usual_scale,
)
from .probe_text import OFFSETS, TextStatistics, choose_offsets, label_ids
from .probe_training import Job, train
from .token_probes import Tensors, TokenProbes, layer_file, save_layer

if TYPE_CHECKING:
    from ..models.base import Model
    from ..text.prompts import Prompts

METHODS = ("softmax", "factored", "ridge", "lda")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@neutral()
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
    max_bytes: int | None = None,
    batch_tokens: int | None = None,
    store: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
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
    max_bytes : int, optional
        Memory for states, weights and working buffers; by default most of the free memory.
    batch_tokens : int, optional
        Padded tokens per forward pass.
    store : path, optional
        Folder for the probes.  Finished layers are kept in ``STORE.partial``: the same call goes on after a crash, and
        reads the finished probes if they are there.
    seed : int
        Of the order of the batches, and of the start where it is random.
    progress : bool
        Show a bar.

    Returns
    -------
    TokenProbes

    Raises
    ------
    ValueError
        Before the model runs: unknown method, settings, layer or dtype, no label at an offset, prompts of another
        tokenizer, "feucht2024" without ``validation``, too little memory for one layer, a store of another fit.

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
    if method not in METHODS:
        raise ValueError(f"method={method!r}: choose from {', '.join(METHODS)}")
    if s.plateau and validation is None and method in ("softmax", "factored"):
        raise ValueError("these settings lower the learning rate by the validation loss: give validation=")
    if shrinkage <= 0:
        raise ValueError(f"shrinkage={shrinkage}: give a positive number")
    for name, p in (("prompts", prompts), ("validation", validation)):
        if p is not None and int(p.token_ids.max()) >= model.info.d_vocab:
            raise ValueError(f"{name}: id {int(p.token_ids.max())} is not in the vocabulary of {model.info.id}")
    text = TextStatistics.of(prompts, where, model.info.d_vocab, s.bos, s.all_types)
    gpu = model.device.type == "cuda"
    kept = states or (("float16" if s.standardise else "bfloat16") if gpu else "float32")
    multiplied = products or ("bfloat16" if gpu else "float32")
    for name, value in (("states", kept), ("products", multiplied)):
        if value not in DTYPES:
            raise ValueError(f"{name}={value!r}: choose from {', '.join(DTYPES)}")
    closed = method in ("ridge", "lda")
    info = model.info
    facts: dict[str, Any] = {
        "model": info.id, "weights": info.weights, "tokenizer": info.tokenizer, "d_model": info.d_model,
        "d_vocab": info.d_vocab, "n_layers": info.n_layers, "prompts": prompts.hash, "method": method, "bos": s.bos,
        "validation": validation.hash if validation is not None and not closed else None,
        **({"shrinkage": shrinkage} if closed else {"settings": s.facts(), "seed": seed, "states": kept,
                                                    "products": multiplied}),
    }  # fmt: skip
    keep = _Store(store, {**facts, "layers": chosen, "offsets": where}) if store is not None else None
    if keep is not None and keep.path.exists():
        return keep.finished()
    fit = _Fit(model, prompts, where, text, s, validation, progress, batch_tokens)
    limit = max_bytes if max_bytes is not None else memory_left(model.device)
    need = fit.closed_need() if closed else fit.training_need(DTYPES[kept], DTYPES[multiplied], method)
    done = keep.layers(chosen) if keep is not None else []
    todo = [n for n in chosen if n not in done]
    groups = need.groups(todo, limit)
    if model.device.type == "cpu" and keep is None:  # finished weights of earlier groups stay in the same memory
        results = 4 * len(where) * len(text.labels) * info.d_model
        groups = need.groups(todo, limit - results * max(0, len(todo) - len(groups[0])) if groups else limit)
    logging.getLogger("tokinterp").info(
        "%d layers in %d groups; %.2f GiB each of %.2f GiB", len(todo), len(groups),
        (need.fixed + max(map(len, groups), default=0) * (need.states + need.weights)) / 2**30, limit / 2**30,
    )  # fmt: skip
    if keep is not None:
        keep.open()
    parts: dict[int, Tensors | Path] = {}
    for group in groups:
        if closed:
            found = fit.closed(group, method, shrinkage)
        else:
            found = fit.train(group, DTYPES[kept], DTYPES[multiplied], method, seed)
        for layer, tensors in found.items():
            if keep is not None:
                save_layer(keep.partial, layer, tensors)
            else:
                parts[layer] = tensors
    if keep is not None:
        parts = {n: keep.partial / layer_file(n) for n in chosen}
    out = TokenProbes(chosen, where, text.labels, parts, facts, text)
    return out if keep is None else keep.finish(out)


class _Fit:
    """The model, the prompts and their labels."""

    def __init__(
        self, model: Model, prompts: Prompts, offsets: list[int], text: TextStatistics, settings: ProbeSettings,
        validation: Prompts | None, progress: bool, batch_tokens: int | None,
    ) -> None:  # fmt: skip
        self.model, self.prompts, self.offsets, self.text = model, prompts, offsets, text
        self.settings, self.validation, self.progress = settings, validation, progress
        self.batch_tokens = batch_tokens or (16384 if model.device.type == "cuda" else 4096)

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
        self, layers: list[int], states: torch.dtype, products: torch.dtype, method: str, seed: int
    ) -> dict[int, Tensors]:
        """Capture the states of a group of layers and train all its probes."""
        s, name = self.settings, f"layers {layers[0]}-{layers[-1]}" if len(layers) > 1 else f"layer {layers[0]}"
        total = self.prompts.n_tokens + (self.validation.n_tokens if self.validation is not None else 0)
        with torch.no_grad():
            with self._bar(total, f"{name}, states", "tok") as bar:
                read = (layers, states, self.batch_tokens, bar.update, s.standardise)
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
            with self._bar(s.epochs * int(-(-n // 1)), f"{name}, probes", "batch") as bar:
                found = train(got.rows, held.rows if held else {}, job, lambda k, word: bar.update(k))
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

    def closed(self, layers: list[int], method: str, shrinkage: float) -> dict[int, Tensors]:
        """Stream the moments of a group of layers and solve for the weights of all offsets."""
        d, c, device = self.model.info.d_model, len(self.text.labels), self.model.device
        targets = self.targets(self.prompts)
        first: dict[int, Pair] = {}
        gram = {n: torch.zeros(d, d, dtype=torch.float64, device=device) for n in layers}
        total = {n: torch.zeros(d, dtype=torch.float64, device=device) for n in layers}
        sums = {n: torch.zeros(len(self.offsets), c, d, dtype=torch.float64, device=device) for n in layers}
        count, counts = 0, torch.zeros(len(self.offsets), c, dtype=torch.int64, device=device)
        with torch.no_grad(), self._bar(self.prompts.n_tokens, f"layers {layers[0]}-{layers[-1]}", "tok") as bar:
            _, batches = read_batches(self.model, self.prompts, layers, self.batch_tokens, bar.update)
            for batch, place in batches:
                kept = ~batch.row_special if not self.settings.bos else torch.ones_like(batch.row_special)
                goals = targets[:, place]
                count += int(kept.sum())
                for layer in layers:
                    x = batch.rows(layer).float()
                    if layer not in first:
                        first[layer] = provisional(x[kept])
                    mean, scale = first[layer]
                    x = (x - mean) / scale
                    y, x = x[kept], x.double()
                    gram[layer] += (y.T @ y).double()
                    total[layer] += y.double().sum(0)
                    for o, goal in enumerate(goals):
                        rows = goal >= 0
                        sums[layer][o].index_add_(0, goal[rows], x[rows])
                for o, goal in enumerate(goals):
                    counts[o] += torch.bincount(goal[goal >= 0], minlength=c)
            solve = {"ridge": kernel.ridge, "lda": kernel.shrunk_lda}[method]
            out: dict[int, Tensors] = {}
            for layer in layers:
                mean = total[layer] / count
                scatter = gram.pop(layer) / count - torch.outer(mean, mean)
                scale = usual_scale(scatter.diagonal())
                centred = sums.pop(layer).sub_(counts[..., None] * mean).div_(scale)
                before, factor = first[layer]
                out[layer] = _standard((before + factor * mean.float(), factor * scale.float()))
                for o, offset in enumerate(self.offsets):
                    weight, bias = solve(scatter / torch.outer(scale, scale), centred[o], counts[o], shrinkage)
                    out[layer][f"weight.{offset}"] = weight.float().cpu()
                    out[layer][f"bias.{offset}"] = bias.float().cpu()
        return out

    def _bar(self, total: int, what: str, unit: str) -> tqdm:
        return tqdm(
            total=total, desc=what, unit=unit, unit_scale=unit == "tok", disable=not self.progress, dynamic_ncols=True
        )


def _standard(pair: Pair | None) -> Tensors:
    return {} if pair is None else {"mean": pair[0].float().cpu(), "scale": pair[1].float().cpu()}


class _Store:
    """The folder of finished probes, and ``NAME.partial`` beside it with the layers finished so far."""

    def __init__(self, path: str | Path, facts: dict[str, Any]) -> None:
        self.path, self.facts = Path(path), facts
        self.partial = self.path.with_name(self.path.name + ".partial")
        run = self.partial / "run.json"
        if not self.path.exists() and run.is_file():
            compare_facts(json.loads(run.read_text(encoding="utf-8")), facts, self.partial)

    def finished(self) -> TokenProbes:
        """Return the probes that are there, if they are of the same fit."""
        out = TokenProbes.load(self.path)
        then = {k: v for k, v in out.facts.items() if k != "digest"}
        compare_facts({**then, "layers": out.layers, "offsets": out.offsets}, self.facts, self.path)
        return out

    def layers(self, chosen: list[int]) -> list[int]:
        """Return the layers that are finished."""
        return [n for n in chosen if (self.partial / layer_file(n)).is_file()]

    def open(self) -> None:
        """Make the folder for the layers."""
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
            write_text(self.partial / "run.json", json.dumps(self.facts, sort_keys=True, indent=1))
        except OSError as error:
            raise OSError(error.errno, f"cannot write the store {self.path}: {error.strerror}") from error

    def finish(self, probes: TokenProbes) -> TokenProbes:
        """Write what belongs to all layers, and give the folder its name."""
        probes.save_facts(self.partial)
        (self.partial / "run.json").unlink()
        os.replace(self.partial, self.path)
        return TokenProbes.load(self.path)


__all__ = ["METHODS", "ProbeSettings", "TokenProbes", "fit_probes"]
