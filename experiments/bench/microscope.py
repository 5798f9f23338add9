"""All of a study in one pass against the published functions one after the other on the same states.

    python -m experiments.bench microscope [--small] --out runs/bench

scikit-dimension and scikit-learn stand beside it where they are installed; DADApy runs in an environment of its own,
whose Python is named by DADAPY_PYTHON.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import tokinterp as ti

from . import common
from .common import Bar
from .layer_geometry import literal_cka, literal_curvature, literal_entropy, literal_pairs
from .linearity import published as linearity
from .neighbours import Dadapy

K = 10


def run(*, small: bool = False, out: Path | None = None, rounds: int = 3) -> dict[str, Any]:
    """Time each question both ways, then all questions, and all in multiples of a bare forward pass.

    Clouds are single prompts for dimension, overlap, entropy and curvature, and all tokens for the others. The literal
    side takes states that are there already: its total adds one pass that keeps all hidden states.  ``ratio`` is to the
    measurement in a pass of its own, forward included; ``over_added`` to what it adds to a pass that measures nothing.
    """
    n, length, d, blocks, vocab = (3, 48, 16, 2, 320) if small else (4, 512, 256, 6, 4000)
    lm = common.random_llama(n_layers=blocks, d_model=d, n_heads=4, d_vocab=vocab, d_mlp=3 * d)
    model = ti.wrap(lm, id="bench")
    prompts = common.random_prompts(n, length, vocab)
    ids = torch.from_numpy(np.stack([prompts.ids(i) for i in range(n)])).long().to(model.device)

    def forward(keep: bool = False) -> Any:
        with torch.no_grad():
            return lm(ids, use_cache=False, output_hidden_states=keep)

    states = torch.stack([h.float().cpu() for h in forward(True).hidden_states])  # (layer, prompt, position, d)
    clouds, flat = list(states.transpose(0, 1)), list(states.flatten(1, 2))
    weight = lm.lm_head.weight.detach().float().cpu()
    sample = [x[:: max(1, len(x) // (256 if not small else 48))] for x in flat]
    questions: dict[str, tuple[Callable[[], Any], Callable[[], ti.Measurement]]] = {
        "linearity": (
            lambda: [(linearity(x, y), linearity(x, y - x)) for x, y in pairwise(flat)],
            lambda: ti.linearity.Linearity(exclude=(), held_out=False),
        ),
        "token nonlinearity": (
            lambda: [token_errors(x, y) for x, y in pairwise(flat)],
            lambda: ti.linearity.TokenNonlinearity(exclude=()),
        ),
        "anisotropy": (lambda: [anisotropy(x) for x in flat], lambda: ti.geometry.Spectrum(exclude=(), components=1)),
        "logit lens, raw": (
            lambda: [lens(x, weight, ids.flatten().cpu()) for x in flat],
            lambda: ti.lens.LogitLens(top=1, variants=("raw",)),
        ),
        "intrinsic dimension": (
            lambda: [[two_nn(x) for x in cloud] for cloud in clouds],
            lambda: ti.geometry.IntrinsicDimension((2,), tokens=0, small="nan"),
        ),
        "overlap of neighbours": (
            lambda: [[overlap(x, y) for x, y in pairwise(cloud)] for cloud in clouds],
            lambda: ti.geometry.NeighbourOverlap((K,), pairs=False, labels=(), small="nan"),
        ),
        "information imbalance": (
            lambda: [imbalances(cloud) for cloud in clouds],
            lambda: ti.geometry.InformationImbalance((1,), small="nan"),
        ),
        "cosine similarity": (
            lambda: [[cosine(x) for x in cloud] for cloud in clouds],
            lambda: ti.geometry.CosineSimilarity(exclude=(), angles=False, lags=(1,), close=(), channels=0),
        ),
        "matrix entropy": (
            lambda: [[literal_entropy(x) for x in cloud] for cloud in clouds],
            lambda: ti.geometry.MatrixEntropy(),
        ),
        "curvature": (
            lambda: [[literal_curvature(x) for x in cloud] for cloud in clouds],
            lambda: ti.geometry.Curvature(),
        ),
        "CKA, layer by layer": (
            lambda: literal_pairs(sample, literal_cka),
            lambda: ti.geometry.LayerSimilarity(measures="cka", sample=len(sample[0])),
        ),
    }  # fmt: skip

    def measured(*names: str) -> Callable[[], Any]:
        return lambda: ti.measure(
            model, prompts, {f"m{i}": questions[q][1]() for i, q in enumerate(names)}, progress=False
        )

    def by_default(question: Callable[[], ti.Measurement]) -> Callable[[], Any]:
        return lambda: ti.measure(model, prompts, {"m": question()}, progress=False)

    nothing = by_default(Nothing)
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        peers, dadapy = libraries(clouds, Path(folder))
        for name, (literal, _) in questions.items():
            own = {
                f"{name}: in its own pass": measured(name), f"{name}: literal": literal,
                f"{name}: a pass that measures nothing": nothing,
            }  # fmt: skip
            if name in BY_DEFAULT:
                own[f"{name}: by default, in its own pass"] = by_default(BY_DEFAULT[name])
            found = common.paired({**own, **peers.get(name, {})}, rounds)
            rows |= found
            print("  ".join(f"{key}: {row['seconds']:.3g} s" for key, row in found.items()), flush=True)
        if dadapy is not None:
            dadapy.close()
    everything = {
        "forward with head": forward,
        "a pass that measures nothing": nothing,
        "all, one pass": measured(*questions),
        "all but lens and linear maps, one pass": measured(*list(questions)[4:]),
        "all, literal, states kept": lambda: (forward(True), *(literal() for literal, _ in questions.values())),
    }
    rows |= common.paired(everything, rounds)
    forward_pass = rows["forward with head"]["seconds"]
    for name in questions:
        rows[f"{name}: in its own pass"]["added"] = of = added(rows, name)
        rows[f"{name}: literal"]["over_added"] = rows[f"{name}: literal"]["seconds"] / of
    over = {name: rows[f"{name}: literal"]["over_added"] for name in JUDGED}
    bars = [
        Bar(f"{name}{ASKED.get(name, '')}: literal code over what is added to a pass", over[name], 1, "least", why)
        for name, why in JUDGED.items()
    ]
    rows["all: literal over one pass"] = {
        "ratio": rows["all, literal, states kept"]["seconds"] / rows["all, one pass"]["seconds"]
    }
    floor = sum(f for f in floors(states, weight).values())
    rows["floors, one after the other"] = {"seconds": floor}
    bars += [
        Bar("all: literal functions on states kept, over one pass", rows["all: literal over one pass"]["ratio"], 3,
            "least", "the products with the head and for linear maps are the same on both sides: see the floors"),
        Bar("one pass, beyond pass and floors, in forward passes",
            (rows["all, one pass"]["seconds"] - forward_pass - floor) / forward_pass, 2, "most",
            "what is no product: sorting, norms, eigenvalues of Gram matrices"),
    ]  # fmt: skip
    for name in ("forward with head", "all, one pass", "all, literal, states kept"):
        rows[name]["peak_mb"] = common.peak_mb(everything[name])
    sizes = {"prompts": n, "tokens": length, "d_model": d, "blocks": blocks, "d_vocab": vocab, "rounds": rounds}
    return common.save("microscope", rows, sizes, out, bars)


JUDGED = {
    "token nonlinearity": "second moments in float64, which the sums over any number of prompts need",
    "cosine similarity": "",
    "logit lens, raw": "",
    "information imbalance": "neighbours are searched with a certificate, ranks sorted with ties",
    "overlap of neighbours": "",
    "intrinsic dimension": "",
}


ASKED = {"cosine similarity": " (means of all pairs and of adjacent tokens; no close pairs, channels, angles)"}
"""What of a measurement is asked for where the literal code answers less than its default."""
BY_DEFAULT: dict[str, Callable[[], ti.Measurement]] = {
    "cosine similarity": lambda: ti.geometry.CosineSimilarity(exclude=(), angles=False)
}


def added(rows: dict[str, dict[str, float]], name: str) -> float:
    """Return the seconds that a question adds to a pass that runs anyway; by how much these differ, or 2 %, at least.

    Examples
    --------
    >>> rows = {"x: in its own pass": {"seconds": 10.0}}
    >>> nothing = rows["x: a pass that measures nothing"] = {"ratio": 0.75, "ratio_low": 0.625, "ratio_high": 0.875}
    >>> added(rows, "x")
    2.5
    >>> nothing["ratio"] = 1.0  # lost in what rounds differ by: no reason to call it infinitely fast
    >>> added(rows, "x")
    1.25
    """
    whole, bare = rows[f"{name}: in its own pass"]["seconds"], rows[f"{name}: a pass that measures nothing"]
    return whole * max(1 - bare["ratio"], (bare["ratio_high"] - bare["ratio_low"]) / 2, 0.02)


class Nothing(ti.Measurement):
    """Looks at all layers and keeps nothing of them: what a run costs in any case."""

    fields = {"n": ti.Field(("prompt",), "tokens")}

    def sites(self, info: ti.ModelInfo) -> list[ti.Site]:
        """Return the stream at all layers."""
        return ti.resid(range(info.n_layers + 1))

    def update(self, batch: ti.Batch) -> None:
        """Count the tokens."""
        self.keep(batch, n=batch.mask.sum(1))


def floors(states: Tensor, weight: Tensor) -> dict[str, float]:
    """Return the seconds of the products that the questions cannot do without, each in the precision that it needs.

    Linear maps: second and cross moments of all layers in float64, whose sums are long, and the product of every row
    with its map.  Lens: the head at every layer.  Neighbours, entropy: one product of every cloud with itself; ranks
    need it in float64.
    """
    length, d = states.shape[2:]
    flat, clouds = states.flatten(1, 2), states.transpose(0, 1).flatten(0, 1)
    double = clouds.double()
    square = torch.empty(length, length, dtype=torch.float32, device="cpu")
    exact = square.double()
    ways = {
        "linear maps": lambda: [x.T @ y for x, y in [*zip(flat.double(), flat.double(), strict=True)] * 2],
        "rows of maps": lambda: [x @ torch.eye(d, dtype=torch.float64, device="cpu") for x in flat.double()],
        "lens": lambda: [x @ weight.T for x in flat],
        "neighbours": lambda: [torch.mm(x, x.T, out=square) for x in clouds],
        "ranks": lambda: [torch.mm(x, x.T, out=exact) for x in double],
        "entropy": lambda: [torch.mm(x.T, x) if d < length else torch.mm(x, x.T, out=exact) for x in double],
    }
    return {name: common.paired({name: way}, 3)[name]["seconds"] for name, way in ways.items()}


def libraries(
    clouds: list[Tensor], folder: Path
) -> tuple[dict[str, dict[str, Callable[[], Any]]], Dadapy | None]:  # fmt: skip
    """Return for some questions what libraries do with the clouds, (layer, position, d) of each prompt."""
    out: dict[str, dict[str, Callable[[], Any]]] = {}
    points = torch.stack(clouds).numpy()
    if find_spec("skdim") is not None:
        from skdim.id import TwoNN

        def by_skdim() -> list[float]:
            distinct = [np.unique(x, axis=0) for one in points for x in one]
            return [float(TwoNN().fit(x).dimension_) for x in distinct if len(x) > 2]

        out["intrinsic dimension"] = {"intrinsic dimension: scikit-dimension": by_skdim}
    peer = None
    if os.environ.get("DADAPY_PYTHON"):
        peer = Dadapy(points[:, 1:].copy(), folder)  # the embedding has copies, which it cannot take
        for name, word in (("intrinsic dimension", "all_gride"), ("overlap of neighbours", "all_overlap")):
            out.setdefault(name, {})[f"{name}: DADApy, no layer 0"] = lambda word=word: peer(word)
    return out, peer


# -- the published steps, written out -----------------------------------------------------------------------------
def token_errors(x: Tensor, y: Tensor) -> Tensor:
    """Return (row,) distances from the best linear map of centred, normalised clouds (thin SVD)."""
    x, y = x - x.mean(0), y - y.mean(0)
    x, y = x / torch.linalg.norm(x), y / torch.linalg.norm(y)
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    return torch.linalg.norm(x @ (vt.T @ ((u.T @ y) / s[:, None])) - y, dim=1)


def anisotropy(x: Tensor) -> float:
    """Return the share of the largest of all squared singular values."""
    s = torch.linalg.svdvals(x - x.mean(0)) ** 2
    return float(s[0] / s.sum())


def lens(x: Tensor, head: Tensor, ids: Tensor) -> tuple[float, Tensor]:
    """Return the loss of the next token and the most probable tokens, from all logits at once."""
    logits = x @ head.T
    loss = torch.nn.functional.cross_entropy(logits[:-1], ids[1:])
    return float(loss), logits.softmax(-1).argmax(-1)


def two_nn(x: Tensor) -> float:
    """Return the dimension from two nearest neighbours, found point by point (maximum likelihood)."""
    total = 0.0
    for i in range(len(x)):
        r = torch.linalg.norm(x - x[i], dim=1)
        r[i] = torch.inf
        first, second = r.topk(2, largest=False).values
        if first > 0:
            total += float((second / first).log())
    return (len(x) - 1) / total if total else float("nan")


def overlap(x: Tensor, y: Tensor) -> float:
    """Return the mean share of common neighbours, by scikit-learn."""
    from sklearn.neighbors import NearestNeighbors

    near = [NearestNeighbors(n_neighbors=K).fit(z.numpy()).kneighbors(return_distance=False) for z in (x, y)]
    return float(np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(*near, strict=True)]))


def imbalances(cloud: Tensor) -> Tensor:
    """Return (layer, other layer) the information imbalance of all pairs, from ranks of all points."""
    orders = [torch.cdist(x.double(), x.double()).fill_diagonal_(torch.inf).argsort(1) for x in cloud]
    ranks = [order.argsort(1) + 1 for order in orders]
    n = cloud.shape[1]
    return torch.tensor(
        [[2 / n * float(b.gather(1, a[:, :1]).double().mean()) for b in ranks] for a in orders],
        dtype=torch.float64,
        device="cpu",
    )


def cosine(x: Tensor) -> float:
    """Return the mean of the matrix of all cosines, diagonal and all, as published."""
    y = x / x.norm(dim=1, keepdim=True)
    return float((y @ y.T).mean())
