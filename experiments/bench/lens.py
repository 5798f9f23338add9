"""The logit lens at all layers against the products with the head that it cannot do without.

    python -m experiments.bench lens [--small] --out runs/bench

The floor is the head applied to as many rows as there are tokens, at every layer, and nothing else: no norm, no read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import tokinterp as ti

from .common import Bar, paired, peak_mb, random_llama, random_prompts, save

BLOCK = 256  # rows of a product: more make it no faster


def run(out: Path | None = None, rounds: int = 2, small: bool = False) -> dict[str, Any]:
    """Time the lens with all that it gives, without lists, in bfloat16, at some layers and of some positions."""
    sizes = {"n_layers": 12, "d_model": 512, "n_heads": 8, "d_vocab": 32000, "prompts": 2, "tokens": 256}
    if small:
        sizes |= {"n_layers": 3, "d_model": 32, "d_vocab": 500, "prompts": 2, "tokens": 40}
    n, length, layers = sizes["prompts"], sizes["tokens"], sizes["n_layers"] + 1
    lm = random_llama(sizes["n_layers"], sizes["d_model"], sizes["n_heads"], sizes["d_vocab"])
    model = ti.wrap(lm, id="random-llama")
    prompts = random_prompts(n, length, sizes["d_vocab"])
    ids = torch.from_numpy(prompts.padded(range(n))[0]).to(model.device)
    rows_of_head = torch.randn(n * length, sizes["d_model"], device=model.device, dtype=torch.float32)

    def forward() -> None:
        with torch.no_grad():
            for one in ids:
                lm.model(one[None], use_cache=False)

    def products() -> None:
        with torch.no_grad():
            for _ in range(layers):
                for part in rows_of_head.split(BLOCK):
                    lm.lm_head(part)

    def measured(*asked: ti.Measurement) -> Any:
        chosen = {f"m{i}": m for i, m in enumerate(asked)}
        return lambda: ti.measure(model, prompts, chosen, batch_tokens=length, progress=False)

    methods = {
        f"products with the head, {layers} layers": products,
        "forward without head": forward,
        "measure: nothing of the head": measured(ti.geometry.TokenNorms(tokens=0)),
        "measure: lens": measured(ti.lens.LogitLens(top=5, tokens=None)),
        "measure: lens, no lists": measured(ti.lens.LogitLens(top=0, tokens=0)),
        "measure: lens, bfloat16": measured(ti.lens.QuickLens(positions=None, tokens=None, products="bfloat16")),
        "measure: lens, every fourth layer": measured(ti.lens.LogitLens(layers=range(0, layers, 4), tokens=None)),
        "measure: lens, a fourth of the positions": measured(ti.lens.QuickLens(positions=length // 4, tokens=None)),
    }
    rows = paired(methods, rounds)
    for name in ("measure: nothing of the head", "measure: lens"):
        rows[name]["peak_mb"] = peak_mb(methods[name])
    bare, floor = (rows[name]["seconds"] for name in ("measure: nothing of the head", next(iter(methods))))
    for name in list(methods)[3:]:  # what is added to a pass that runs anyway
        rows[name]["over_floor"] = (rows[name]["seconds"] - bare) / floor
    lens = rows["measure: lens"]["over_floor"]
    why = "exponential, four products and sums, ranks, maxima: eight passes over logits in the cache"
    bars = [
        Bar(f"lens, over its products alone ({layers} heads)", lens, 1.3, "most", why),
        Bar(f"reads of all {layers} layers, in products of one head", (lens - 1) * layers, 1, "most", why),
        Bar("lens in bfloat16, over its products in float32", rows["measure: lens, bfloat16"]["over_floor"], 1, "most"),
    ]
    return save("lens", rows, sizes, out, bars)
