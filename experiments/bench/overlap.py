"""Overlap and information imbalance of two layers beside DADApy, and what sharing the neighbours saves.

The states are those of the bundled model on one text.  DADApy runs in an environment of its own: see neighbours.py.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tokinterp as ti
from tokinterp.geometry.kernels.membership import membership, neighbour_lists, rank_rows, sum_over_neighbours
from tokinterp.kernels.neighbours import nearest

from .common import Bar, paired, save
from .neighbours import Dadapy


def run(out: Path | None = None, rounds: int = 5, small: bool = False) -> dict[str, Any]:
    """Time both on two layers, then four measurements of all layers in one pass and one after another."""
    model = ti.load_model()
    n = 160 if small else min(1024, model.info.max_tokens)
    texts = [t.text for t in ti.bundled_texts()]
    prompts = ti.Prompts.from_texts(texts, model, max_tokens=n, min_tokens=n, progress=False)[: 2 if small else 4]
    k = 10 if small else 30
    return {
        "layers": two_layers(model, prompts[:1], k, out, rounds),
        "all": all_layers(model, prompts[:1], k, out, rounds),
        "pass": one_pass(model, prompts, k, out, rounds),
    }


def two_layers(model: Any, prompts: ti.Prompts, k: int, out: Path | None, rounds: int) -> dict[str, Any]:
    """Time the overlap and both imbalances of two layers in the middle of the model; ``x`` rows: the peer's time."""
    middle = model.info.n_layers // 2
    batch = ti.capture(model, prompts, [0], ti.resid([middle, middle + 1]))
    clouds = [batch.rows(layer)[1:].double() for layer in (middle, middle + 1)]
    mask = torch.ones(len(clouds[0]), dtype=torch.bool, device=model.device)
    n = len(mask)

    def lists(ranks: int) -> list[Any]:
        near = [nearest(x, ranks, ranks=[ranks]) for x in clouds]
        return [neighbour_lists(t.indices, t.first, mask) for t in near]

    def overlap() -> float:
        a, b = (membership(one, k) for one in lists(k))
        return float((a * b).sum()) / k / n

    def imbalance() -> list[float]:
        found = lists(1)
        ranks = [rank_rows(x - x.mean(0), one.first[0], mask) for x, one in zip(clouds, found, strict=True)]
        return [float(sum_over_neighbours(found[a], 1, ranks[1 - a][None])) * 2 / n**2 for a in (0, 1)]

    methods: dict[str, Callable[[], Any]] = {"tokinterp overlap": overlap, "tokinterp imbalance": imbalance}
    with tempfile.TemporaryDirectory() as folder:
        points = [x.cpu().numpy() for x in clouds]
        peer = Dadapy(points[0], Path(folder), points[1]) if os.environ.get("DADAPY_PYTHON") and k == 30 else None
        if peer:
            methods["dadapy overlap"] = lambda: peer("overlap")
            methods["dadapy imbalance"] = lambda: peer("imbalance")
        rows: dict[str, dict[str, float]] = paired(methods, rounds)
        bars = []
        if peer:
            theirs = np.array(peer("imbalance").split(), float)
            rows["difference from dadapy"] = {
                "overlap": abs(float(peer("overlap")) - overlap()),
                "imbalance": float(np.abs(theirs - imbalance()).max()),
            }
            peer.close()
            for name in ("overlap", "imbalance"):
                ratio = rows[f"dadapy {name}"]["seconds"] / rows[f"tokinterp {name}"]["seconds"]
                rows[f"x {name}, dadapy"] = {"ratio": ratio}
                bars.append(Bar(f"{name} of two layers: DADApy over tokinterp", ratio, 1, "least", WHY))
    return save("overlap_layers", rows, {"points": n, "coordinates": model.info.d_model, "k": k}, out, bars)


WHY = "each row carries a certificate that its neighbours are exact"
FORWARD = "a pass over the text is part of it, while DADApy is given the states"
SEARCH = "tokinterp, all pairs of layers, of states that are there"
WHOLE = "tokinterp, all pairs of layers, forward pass included"
PEER = "dadapy, layer by layer with all others"


def all_layers(model: Any, prompts: ti.Prompts, k: int, out: Path | None, rounds: int) -> dict[str, Any]:
    """Time the overlap of every layer with every other of one prompt: of states that are there, as DADApy, and of text.

    The first is the measurement's own update of a batch that has been captured.
    """
    layers = range(1, model.info.n_layers + 1)  # the embedding has copies, which DADApy cannot take
    batch = ti.capture(model, prompts, [0], ti.resid(layers))
    points = torch.stack([batch.rows(layer)[1:] for layer in layers]).double()
    asked = ti.geometry.NeighbourOverlap((k,), layers=layers, labels=())

    def search() -> Any:
        batch.shared.clear()
        asked.begin(model.info, prompts)
        asked.update(batch)
        return asked.sums

    def whole() -> Any:
        return ti.measure(model, prompts, {"m": asked}, progress=False)

    methods: dict[str, Callable[[], Any]] = {SEARCH: search, WHOLE: whole}
    rows: dict[str, dict[str, float]]
    bars = []
    with tempfile.TemporaryDirectory() as folder:
        peer = Dadapy(points.cpu().numpy(), Path(folder)) if os.environ.get("DADAPY_PYTHON") else None
        if peer:
            methods[PEER] = lambda: peer(f"pairs {k}")
        rows = paired(methods, rounds)
        if peer:
            found = whole()["m"]["overlap_pair"].values[0]
            theirs = np.array(peer(f"pairs {k}").split(), float).reshape(found.shape)
            rows["difference from dadapy"] = {"largest": float(np.abs(theirs - found).max())}
            peer.close()
            for said, name, why in (
                ("of states that are there", SEARCH, WHY),
                ("with the pass over the text", WHOLE, FORWARD),
            ):
                ratio = rows[PEER]["seconds"] / rows[name]["seconds"]
                bars.append(Bar(f"overlap of all layers, {said}: DADApy over tokinterp", ratio, 3, "least", why))
    sizes = {"points": points.shape[1], "layers": len(layers), "coordinates": model.info.d_model, "k": k}
    return save("overlap_all", rows, sizes, out, bars)


def one_pass(model: Any, prompts: ti.Prompts, k: int, out: Path | None, rounds: int) -> dict[str, Any]:
    """Time the measurements that rest on neighbours, together and each in a pass of its own."""
    makes: dict[str, Callable[[], ti.Measurement]] = {
        "dimension": lambda: ti.geometry.IntrinsicDimension((2, 4, 8), tokens=0),
        "overlap": lambda: ti.geometry.NeighbourOverlap((1, k), labels=()),
        "graph": lambda: ti.geometry.NeighbourGraph((k,)),
        "cosine": lambda: ti.geometry.CosineSimilarity(close=()),
        "imbalance": lambda: ti.geometry.InformationImbalance((1,)),
    }

    def forward() -> None:
        for numbers in prompts.batches(4096):
            ti.capture(model, prompts, numbers, ti.resid(range(model.info.n_layers + 1)))

    def measured(*names: str) -> Callable[[], Any]:
        return lambda: ti.measure(model, prompts, {n: makes[n]() for n in names}, progress=False)

    methods: dict[str, Callable[[], Any]] = {"forward pass": forward, "all in one pass": measured(*makes)}
    methods |= {f"measure: {n}": measured(n) for n in makes}
    rows: dict[str, dict[str, float]] = paired(methods, max(2, rounds - 2))
    apart = sum(rows[f"measure: {n}"]["seconds"] for n in makes)
    rows["x one after another"] = {"ratio": apart / rows["all in one pass"]["seconds"]}
    sizes = {"prompts": len(prompts), "tokens": prompts.lengths[0], "layers": model.info.n_layers + 1, "k": k}
    return save("overlap_pass", rows, sizes, out)
