"""Joint fit of all token probes against training them one at a time as published, to the same validation accuracy."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tokinterp as ti
from tokinterp.erasure.kernels.softmax import Scratch, softmax_gradient
from tokinterp.erasure.probe_settings import FEUCHT2024, ProbeSettings
from tokinterp.erasure.probe_text import label_ids
from tokinterp.erasure.probes import fit_probes

from .common import peak_mb, random_llama, save

OFFSETS = (-3, -2, -1, 0, 1)
WITHIN = 0.005
"""Accuracy below that of the joint fit at which the other way may stop."""


def run(out: Path | None = None, rounds: int = 3, small: bool = False) -> dict[str, Any]:
    """Time both ways to the same accuracy on held-out text, in turn in one process.

    The joint fit trains all layers x offsets of the bundled model on the bundled texts with its default settings.  The
    published way costs a forward pass of the whole model, a `torch.nn.Linear` over the whole vocabulary with autograd
    and a step of its own optimiser per probe and batch; ``rounds`` probes are trained so, each until its validation
    accuracy is within 0.005 of that of the joint fit, and their mean is taken times the number of probes.  Its schedule
    is that of the joint fit, which favours it; "published schedule" is one probe with the published one (128 steps at
    the paper's size, 16 at this one), for as many passes as it needs or the published 16.  Times are seconds of the
    clock; ``cpu`` are seconds of the processor, which other programs on the machine disturb less, and give the ratio.
    """
    model, lm = (ti.load_model(), ti.load_model().lm) if not small else _tiny()
    texts = [t.text for t in ti.bundled_texts()]
    length, n_train, n_held = (128, 136, 32) if not small else (32, 24, 8)
    make: Any = {"max_tokens": length, "min_tokens": length, "on_long": "window", "progress": False}
    prompts = ti.Prompts.from_texts(texts, model, **make)
    order = np.random.default_rng(0).permutation(len(prompts))
    train, held = prompts[order[:n_train]], prompts[order[n_train : n_train + n_held]]
    layers = list(range(model.info.n_layers + 1))
    offsets = list(OFFSETS if not small else OFFSETS[2:4])
    n_probes = len(layers) * len(offsets)
    s = ProbeSettings(rows=1024 if not small else 128)
    options: Any = {"layers": layers, "offsets": offsets, "settings": s, "progress": False}
    pool = layers[:-1]  # a library's last hidden state is normed
    chosen = [(pool[-1 - len(pool) * k // rounds], 0 if small else offsets[-2 - k % 3]) for k in range(rounds)]
    rows: dict[str, dict[str, Any]] = {}
    joint: dict[str, list[Timed]] = {"bfloat16": [], "float32": []}
    alone: list[dict[str, float]] = []
    target: dict[tuple[int, int], float] = {}
    accuracy: dict[str, float] = {}
    for k in range(rounds):  # in turn, so that a slow moment of the machine hits both
        products = ("float32", "bfloat16")[k % 2]
        timed = Timed(lambda p=products: fit_probes(model, train, products=p, **options), peak=k < 2)
        joint[products].append(timed)
        here = {c: _accuracy(model, held, *c, timed.value) for c in chosen}
        accuracy[products] = float(np.mean([*here.values()]))
        if not target:
            target = here
        alone.append(_alone(lm, model, train, held, *chosen[k], s, target[chosen[k]], peak=k == 0))
    published = _alone(lm, model, train, held, *chosen[-1], FEUCHT2024, target[chosen[-1]])
    each = {n: float(np.mean([a[n] for a in alone])) for n in alone[0] if n != "peak_mb"}
    rows["one at a time"] = {
        "seconds": each["seconds"] * n_probes, "cpu": each["cpu"] * n_probes, "measured_probes": rounds,
        "epochs": each["epochs"], "accuracy": each["accuracy"],
        "accuracy_joint": float(np.mean([target[c] for c in chosen])), "peak_mb": alone[0]["peak_mb"],
        "all_reached": all(a["reached"] for a in alone),
    }  # fmt: skip
    for name in ("forward", "gradient", "step"):
        rows[f"one at a time: {name}"] = {"seconds": each[name] * n_probes}
    rows["one at a time, published schedule"] = {
        "seconds": published["seconds"] * n_probes, "cpu": published["cpu"] * n_probes, "measured_probes": 1,
        "epochs": published["epochs"], "accuracy": published["accuracy"], "accuracy_joint": target[chosen[-1]],
        "all_reached": bool(published["reached"]),
    }  # fmt: skip
    for products, found in joint.items():
        if found:
            cpu = float(np.mean([f.cpu for f in found]))
            rows[f"joint fit, {products}"] = {
                "seconds": float(np.mean([f.seconds for f in found])), "cpu": cpu, "probes": n_probes,
                "times_faster": rows["one at a time"]["cpu"] / cpu, "peak_mb": found[0].peak,
                "accuracy": accuracy[products],
            }  # fmt: skip
    rows.update(_parts(model, train, layers, len(offsets), s))
    sizes = {
        "model": model.info.id, "n_layers": model.info.n_layers, "d_model": model.info.d_model,
        "d_vocab": model.info.d_vocab, "tokens": train.n_tokens, "held_out_tokens": held.n_tokens,
        "n_probes": n_probes, "within": WITHIN, "probes_alone": [list(c) for c in chosen],
    }  # fmt: skip
    return save("probes", rows, sizes, out)


class Timed:
    """A call, its value, seconds of the clock and of the processor, and memory above what was held before."""

    def __init__(self, call: Callable[[], Any], peak: bool = False) -> None:
        found: list[Any] = []
        self.seconds, self.cpu = 0.0, 0.0

        def run() -> None:
            start, cpu = time.perf_counter(), time.process_time()
            found.append(call())
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds = time.perf_counter() - start
            self.cpu = time.process_time() - cpu if not torch.cuda.is_available() else self.seconds

        self.peak = peak_mb(run) if peak else run()
        self.value = found[0]


def _tiny() -> tuple[ti.Model, Any]:
    """Return a tiny random model with the bundled tokenizer."""
    tokenizer = ti.load_model().tokenizer
    lm = random_llama(2, 32, 4, len(tokenizer))
    return ti.wrap(lm, tokenizer, id="random-llama"), lm


@torch.no_grad()
def _accuracy(model: ti.Model, held: ti.Prompts, layer: int, offset: int, probes: ti.erasure.TokenProbes) -> float:
    """Return the accuracy of a probe of the joint fit on held-out text."""
    return _hits(model, held, layer, offset, lambda x, y: probes.read(x, layer, offset, y).rank == 0)


@torch.no_grad()
def _hits(
    model: ti.Model, held: ti.Prompts, layer: int, offset: int,
    right: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> float:  # fmt: skip
    labels = torch.from_numpy(label_ids(held, offset)).to(model.device)
    hits, n = 0, 0
    for batch in ti.stream(model, held, [ti.Site("resid", layer)]):
        y = torch.cat([labels[held.starts[k] : held.starts[k + 1]] for k in batch.numbers])
        hits += int((right(batch.rows(layer), y) & (y >= 0)).sum())
        n += int((y >= 0).sum())
    return hits / n


def _alone(
    lm: Any, model: Any, train: ti.Prompts, held: ti.Prompts, layer: int, offset: int, s: ProbeSettings, target: float,
    peak: bool = False,
) -> dict[str, float]:  # fmt: skip
    """Train one probe with its own forward passes until its validation accuracy is that of the joint fit."""
    kept: list[dict[str, float]] = []

    def train_it() -> None:
        kept.append(_train_alone(lm, model, train, held, layer, offset, s, target))

    memory = peak_mb(train_it) if peak else train_it()
    return kept[0] | ({"peak_mb": memory} if memory is not None else {})


def _train_alone(
    lm: Any, model: Any, train: ti.Prompts, held: ti.Prompts, layer: int, offset: int, s: ProbeSettings, target: float
) -> dict[str, float]:
    d, site, spent = model.info.d_model, ti.Site("resid", layer), {"forward": 0.0, "gradient": 0.0, "step": 0.0}
    probe = torch.nn.Linear(d, model.info.d_vocab, bias=False, device=model.device)
    if s.zeros:
        torch.nn.init.zeros_(probe.weight)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=s.lr, betas=s.betas, weight_decay=s.weight_decay)
    labels = torch.from_numpy(label_ids(train, offset, s.bos)).to(model.device)
    per_batch = s.documents or max(1, s.rows // max(train.lengths))
    mean, scale = _moments(model, train, site) if s.standardise else (0.0, 1.0)
    lr = s.lr / math.sqrt(d / s.width) if s.width else s.lr
    total, most = s.epochs * math.ceil(len(train) / per_batch), s.epochs if s.documents else 4 * s.epochs
    k, epochs, accuracy, checking = 0, 0, 0.0, 0.0
    start, cpu = time.perf_counter(), time.process_time()
    while epochs < most and accuracy < target - WITHIN:
        order = np.random.default_rng(epochs).permutation(len(train))
        for batch, a in enumerate(range(0, len(order), per_batch)):
            numbers = order[a : a + per_batch].tolist()
            t0 = time.perf_counter()
            ids = torch.from_numpy(train.padded(numbers)[0]).to(model.device)  # all of one length
            with torch.no_grad():
                states = lm(ids, use_cache=False, output_hidden_states=True).hidden_states
                x = (states[layer].reshape(-1, d) - mean) / scale
            t1 = time.perf_counter()
            y = torch.cat([labels[train.starts[n] : train.starts[n + 1]] for n in numbers])
            torch.nn.functional.cross_entropy(probe(x), y, ignore_index=-1).backward()
            t2 = time.perf_counter()
            k += 1
            if not s.accumulate or (batch > 0 and batch % s.accumulate == 0):
                if s.clip:
                    torch.nn.utils.clip_grad_norm_(probe.parameters(), s.clip)
                warm = min(1.0, k / s.warmup) if s.warmup else max(0.1, 1 - k / total)
                optimizer.param_groups[0]["lr"] = lr * warm
                optimizer.step()
                optimizer.zero_grad()
            for name, value in (("forward", t1 - t0), ("gradient", t2 - t1), ("step", time.perf_counter() - t2)):
                spent[name] += value
        epochs += 1
        before = time.process_time()
        t0 = time.perf_counter()
        accuracy = _hits(model, held, layer, offset, lambda x, y: probe((x - mean) / scale).argmax(1) == y)
        checking += time.perf_counter() - t0
        cpu += time.process_time() - before
    seconds = time.perf_counter() - start - checking
    return {
        "seconds": seconds, "cpu": time.process_time() - cpu if not torch.cuda.is_available() else seconds,
        "epochs": epochs, "accuracy": accuracy, "reached": float(accuracy >= target - WITHIN), **spent,
    }  # fmt: skip


@torch.no_grad()
def _moments(model: Any, prompts: ti.Prompts, site: ti.Site) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.cat([b.rows(site.at) for b in ti.stream(model, prompts, [site])])
    return x.mean(0), x.std(0)


def _parts(
    model: Any, train: ti.Prompts, layers: list[int], n_offsets: int, s: ProbeSettings
) -> dict[str, dict[str, Any]]:
    """Say where the joint fit's time goes: forward pass, gradients, optimiser, and the floor of the two products."""
    d, device = model.info.d_model, model.device
    classes = len(np.unique(train.token_ids))
    steps = s.epochs * math.ceil(train.n_tokens / s.rows) * len(layers) * n_offsets
    x, w = (torch.randn(n, d, device=device, dtype=torch.float32) for n in (s.rows, classes))
    target = torch.randint(0, classes, (s.rows,), device=device, dtype=torch.int64)
    grad = torch.empty(classes, d, device=device, dtype=torch.float32)
    out: dict[str, dict[str, Any]] = {}
    forward = _seconds(lambda: [None for _ in ti.stream(model, train, ti.resid(layers))])
    out["joint fit: forward, once"] = {"seconds": forward, "classes": classes}
    for kind in (torch.float32, torch.bfloat16):
        scratch, name = Scratch(classes, s.rows, device, kind), str(kind).removeprefix("torch.")
        a = x.to(kind)
        one = _each(lambda sc=scratch, a=a: softmax_gradient(a, w, target, grad, sc))
        out[f"joint fit: gradients, {name}"] = {"seconds": one * steps}
        b, prob = w.to(kind), torch.rand(s.rows, classes, device=device, dtype=torch.float32).to(kind)
        out[f"joint fit: floor of the two products, {name}"] = {
            "seconds": (_each(lambda a=a, b=b: a @ b.T) + _each(lambda p=prob, a=a: p.T @ a)) * steps
        }
    weight = torch.nn.Parameter(w.clone())
    weight.grad = grad
    optimizer = torch.optim.AdamW([weight], fused=True)
    out["joint fit: optimiser"] = {"seconds": _each(optimizer.step) * steps}
    return out


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _each(call: Callable[[], Any], times: int = 8) -> float:
    """Return the median seconds of a call, with the gradients off."""
    with torch.no_grad():
        call()
        return float(np.median([_seconds(call) for _ in range(times)]))
