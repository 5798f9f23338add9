"""Joint fit of all token probes against training them one at a time as in the published code, to the same loss."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tokinterp as ti
from tokinterp.kernels.probes import Scratch, softmax_gradient
from tokinterp.measurements.probe_text import label_ids
from tokinterp.measurements.probes import ProbeSettings, fit_probes

from .common import peak_mb, random_llama, save


def run(out: Path | None = None, rounds: int = 2, small: bool = False) -> dict[str, Any]:
    """Time both ways to the same validation loss; ``rounds`` probes are trained in the published way, for the mean.

    The published way costs a forward pass of the whole model, a `torch.nn.Linear` over the whole vocabulary with
    autograd and a step of its own optimiser per probe and batch.  Learning rate and number of steps are those of the
    joint fit, not the published ones, which waste most of their passes: only the machinery is compared, which favours
    the published way.
    """
    sizes = {
        "n_layers": 11,
        "d_model": 128,
        "n_heads": 4,
        "d_vocab": 8000,
        "prompts": 24,
        "tokens": 128,
        "n_offsets": 5,
    }
    if small:
        sizes |= {"n_layers": 2, "d_model": 32, "d_vocab": 300, "prompts": 16, "tokens": 32, "n_offsets": 2}
    lm = random_llama(sizes["n_layers"], sizes["d_model"], sizes["n_heads"], sizes["d_vocab"])
    model = ti.wrap(lm, id="random-llama")
    train, held = (zipf_prompts(n, sizes["tokens"], sizes["d_vocab"], s) for s, n in enumerate((sizes["prompts"], 16)))
    layers, offsets = list(range(sizes["n_layers"] + 1)), list(range(2 - sizes["n_offsets"], 2))
    n_probes = len(layers) * len(offsets)
    settings = ProbeSettings(rows=256, patience=0)
    options: Any = {"layers": layers, "offsets": offsets, "settings": settings, "progress": False, "validation": held}
    rows: dict[str, dict[str, Any]] = {}
    for products in ("float32", "bfloat16"):
        fits: list[Any] = []
        clock: list[float] = []

        def fit(p: str = products, f: list[Any] = fits, c: list[float] = clock) -> None:
            c.append(_seconds(lambda: f.append(fit_probes(model, train, products=p, **options))))

        peak = peak_mb(fit)
        history = {(n, o): fits[0]._get(n, f"history.{o}") for n in layers for o in offsets}
        loss = float(np.mean([h[-1, 1] for h in history.values()]))
        rows[f"joint fit, {products}"] = {
            "seconds": clock[0], "probes": n_probes, "validation_loss": loss, "peak_mb": peak,
        }  # fmt: skip
        if products == "float32":
            target = {k: float(h[-1, 1]) for k, h in history.items()}
    chosen = [(layers[len(layers) * k // rounds], offsets[0] if k % 2 else offsets[-2]) for k in range(rounds)]
    found = [_alone(lm, model, train, held, n, o, settings, target[n, o]) for n, o in chosen]
    each = float(np.mean([f["seconds"] for f in found]))
    rows["one at a time"] = {
        "seconds": each * n_probes, "measured_probes": rounds, "epochs": float(np.mean([f["epochs"] for f in found])),
        "loss_over_joint": float(np.mean([f["loss"] - target[k] for f, k in zip(found, chosen, strict=True)])),
    }  # fmt: skip
    for name, parts in (("forward", "forward"), ("gradient with autograd", "gradient"), ("optimiser", "step")):
        rows[f"one at a time: {name}"] = {"seconds": float(np.mean([f[parts] for f in found])) * n_probes}
    for products in ("float32", "bfloat16"):
        row = rows[f"joint fit, {products}"]
        row["times_faster"] = rows["one at a time"]["seconds"] / row["seconds"]
    rows.update(_parts(model, train, layers, len(offsets), settings))
    return save("probes", rows, {**sizes, "n_probes": n_probes}, out)


def zipf_prompts(n: int, length: int, d_vocab: int, seed: int = 0) -> ti.Prompts:
    """Return prompts of ids that are drawn with probabilities 1 / rank, as words of a text are."""
    share = 1 / np.arange(3, d_vocab)
    rng = np.random.default_rng(seed)
    return ti.Prompts.from_ids(3 + rng.choice(len(share), (n, length), p=share / share.sum()))


def _alone(
    lm: Any, model: Any, train: ti.Prompts, held: ti.Prompts, layer: int, offset: int, s: ProbeSettings, target: float
) -> dict[str, float]:
    """Train one probe with its own forward passes until its validation loss is that of the joint fit."""
    d, site, spent = model.info.d_model, [ti.Site("resid", layer)], {"forward": 0.0, "gradient": 0.0, "step": 0.0}
    probe = torch.nn.Linear(d, model.info.d_vocab, bias=False, device=model.device)
    torch.nn.init.zeros_(probe.weight)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=s.lr, betas=s.betas, weight_decay=s.weight_decay)
    labels = torch.from_numpy(label_ids(train, offset)).to(model.device)
    per_batch = max(1, s.rows // max(train.lengths))
    mean, scale = _moments(model, train, site[0])
    total = s.epochs * math.ceil(len(train) / per_batch)
    k, epochs, loss, start = 0, 0, math.inf, time.perf_counter()
    checking = 0.0
    while epochs < s.epochs or (loss > target + 0.02 and epochs < s.epochs + 3):
        order = np.random.default_rng(epochs).permutation(len(train))
        for a in range(0, len(order), per_batch):
            numbers = order[a : a + per_batch].tolist()
            t0 = time.perf_counter()
            ids = torch.from_numpy(train.padded(numbers)[0]).to(model.device)  # all of one length
            with torch.no_grad():
                x = lm(ids, use_cache=False, output_hidden_states=True).hidden_states[layer].reshape(-1, d)
                x = (x - mean) / scale
            t1 = time.perf_counter()
            y = torch.cat([labels[train.starts[n] : train.starts[n + 1]] for n in numbers])
            torch.nn.functional.cross_entropy(probe(x), y, ignore_index=-1).backward()
            t2 = time.perf_counter()
            optimizer.param_groups[0]["lr"] = s.lr / math.sqrt(d / s.width) * max(0.1, 1 - k / total)
            optimizer.step()
            optimizer.zero_grad()
            k += 1
            for name, value in (("forward", t1 - t0), ("gradient", t2 - t1), ("step", time.perf_counter() - t2)):
                spent[name] += value
        epochs += 1
        t0 = time.perf_counter()
        loss = _loss(model, held, layer, offset, probe, mean, scale)
        checking += time.perf_counter() - t0
    return {"seconds": time.perf_counter() - start - checking, "epochs": epochs, "loss": loss, **spent}


@torch.no_grad()
def _moments(model: Any, prompts: ti.Prompts, site: ti.Site) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.cat([b.rows(site.at) for b in ti.stream(model, prompts, [site])])
    return x.mean(0), x.std(0)


@torch.no_grad()
def _loss(
    model: Any, held: ti.Prompts, layer: int, offset: int, probe: Any, mean: torch.Tensor, scale: torch.Tensor
) -> float:
    total, n = 0.0, 0
    labels = torch.from_numpy(label_ids(held, offset)).to(model.device)
    seen = probe.weight.abs().sum(1) > 0
    for batch in ti.stream(model, held, [ti.Site("resid", layer)]):
        y = torch.cat([labels[held.starts[k] : held.starts[k + 1]] for k in batch.numbers])
        rows = (y >= 0) & seen[y.clamp_min(0)]
        x = (batch.rows(layer) - mean) / scale
        total += float(torch.nn.functional.cross_entropy(probe(x[rows]), y[rows], reduction="sum"))
        n += int(rows.sum())
    return total / n


def _parts(
    model: Any, train: ti.Prompts, layers: list[int], n_offsets: int, s: ProbeSettings
) -> dict[str, dict[str, Any]]:
    """Say where the joint fit's time goes: forward pass, gradients, optimiser, and the floor of the two products."""
    d, device = model.info.d_model, model.device
    classes = len(np.unique(train.token_ids))
    steps = s.epochs * math.ceil(train.n_tokens / s.rows) * len(layers) * n_offsets
    x, w = torch.randn(s.rows, d, device=device), torch.randn(classes, d, device=device)
    target, grad = torch.randint(0, classes, (s.rows,), device=device), torch.empty(classes, d, device=device)
    out: dict[str, dict[str, Any]] = {}
    forward = _seconds(lambda: [None for _ in ti.stream(model, train, ti.resid(layers))])
    out["joint fit: forward, once"] = {"seconds": forward, "classes": classes}
    for kind in (torch.float32, torch.bfloat16):
        scratch, name = Scratch(classes, s.rows, device, kind), str(kind).removeprefix("torch.")
        a = x.to(kind)
        one = _each(lambda sc=scratch, a=a: softmax_gradient(a, w, target, grad, sc))
        out[f"joint fit: gradients, {name}"] = {"seconds": one * steps}
        b, prob = w.to(kind), torch.rand(s.rows, classes, device=device).to(kind)
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
