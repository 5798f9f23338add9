"""The routes of all predictions of a prompt against one patching sweep of it, in multiples of the bare pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import tokinterp as ti

from .common import paired, random_llama, random_prompts, save


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

    def forward() -> None:
        with torch.no_grad():
            lm.model(torch.from_numpy(clean.padded([0])[0]).to(model.device), use_cache=False)

    def routes(norm: int) -> Any:
        asked = {"routes": ti.attention.InformationRoutes(norm=norm, sizes=None)}
        return lambda: ti.measure(model, clean, asked, progress=False)

    methods = {
        "forward without head": forward,
        "routes of all predictions, norm 1": routes(1),
        "routes of all predictions, norm 2": routes(2),
        "graph of one prediction": lambda: ti.attention.route_graph(model, clean),
        "patching sweep of one prediction": lambda: ti.behaviour.patching_sweep(
            model, clean, corrupted, [[5]], progress=False, batch_tokens=2048
        ),
    }
    rows = paired(methods, rounds)
    sweep = rows["patching sweep of one prediction"]["seconds"]
    for row in rows.values():
        row["sweep_over_this"] = sweep / row["seconds"]
    return save("routes", rows, {**sizes, "tokens": tokens, "passes_of_the_sweep": (sizes["n_layers"] + 1) * tokens},
                out)  # fmt: skip
