"""The routes of all predictions of prompts against one patching sweep of a single prediction.

A run looks at the model before it begins, which takes as long for one prompt as for many: its time is that of norms.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import tokinterp as ti

from .common import paired, random_llama, random_prompts, save

PROMPTS = 16


def run(out: Path | None = None, rounds: int = 3, small: bool = False) -> dict[str, Any]:
    """Time the routes of a prompt, the graph of its last prediction, and a sweep over all its layers and positions."""
    sizes = {"n_layers": 6, "d_model": 256, "n_heads": 8, "d_vocab": 2000, "tokens": 64}
    if torch.cuda.is_available():
        sizes |= {"n_layers": 32, "d_model": 4096, "n_heads": 32, "d_vocab": 32000, "tokens": 128}
    if small:
        sizes |= {"n_layers": 3, "d_model": 64, "d_vocab": 500, "tokens": 24}
    tokens = sizes.pop("tokens")
    lm = random_llama(**sizes, dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32)
    model = ti.wrap(lm, id="random-llama")
    clean, corrupted = (random_prompts(1, tokens, sizes["d_vocab"], seed) for seed in (0, 1))
    many = random_prompts(PROMPTS, tokens, sizes["d_vocab"])

    def forward() -> None:
        with torch.no_grad():
            for n in range(PROMPTS):
                lm.model(torch.from_numpy(many.padded([n])[0]).to(model.device), use_cache=False)

    def measured(asked: Any) -> Any:
        return lambda: ti.measure(model, many, {"it": asked}, progress=False)

    methods = {
        "forward without head": forward,
        "norms": measured(ti.geometry.TokenNorms(tokens=0)),
        "routes of all predictions, norm 1": measured(ti.attention.InformationRoutes(sizes=None)),
        "routes of all predictions, norm 2": measured(ti.attention.InformationRoutes(norm=2, sizes=None)),
        "graph of one prediction of each": lambda: ti.attention.route_graph(model, many),
        "patching sweep of one prediction": lambda: ti.behaviour.patching_sweep(
            model, clean, corrupted, [[5]], progress=False, batch_tokens=2048
        ),
    }
    rows = paired(methods, rounds)
    sweep = rows["patching sweep of one prediction"]["seconds"]
    for name, row in rows.items():
        row["sweep_over_a_prompt"] = sweep / row["seconds"] * (1 if "sweep" in name else PROMPTS)
    sizes |= {"tokens": tokens, "prompts": PROMPTS, "passes_of_the_sweep": (sizes["n_layers"] + 1) * tokens}
    return save("routes", rows, sizes, out)
