"""All three measurements of the foundation in one pass, in multiples of the bare forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import tokinterp as ti

from .common import paired, peak_mb, random_llama, random_prompts, save


def run(out: Path | None = None, rounds: int = 5, small: bool = False, llama7b: bool = False) -> dict[str, Any]:
    """Time ``measure`` with each measurement and with all of them; the first row is the pass without the LM head."""
    sizes: dict[str, Any] = {
        "n_layers": 12,
        "d_model": 512,
        "n_heads": 8,
        "d_vocab": 32000,
        "prompts": 8,
        "tokens": 512,
    }
    dtype = torch.float32
    if small:
        sizes |= {"n_layers": 4, "d_model": 64, "d_vocab": 500, "prompts": 2, "tokens": 300}
    if llama7b:
        sizes |= {"n_layers": 32, "d_model": 4096, "n_heads": 32, "d_mlp": 11008, "prompts": 64, "tokens": 1024}
        dtype = torch.bfloat16
    shape = {k: v for k, v in sizes.items() if k not in ("prompts", "tokens")}
    lm = random_llama(**shape, dtype=dtype)
    model = ti.wrap(lm, id="random-llama")
    prompts = random_prompts(sizes["prompts"], sizes["tokens"], sizes["d_vocab"])
    batch_tokens = min(sizes["prompts"], 8) * sizes["tokens"]

    def forward() -> None:
        with torch.no_grad():
            for numbers in prompts.batches(batch_tokens):
                lm.model(torch.from_numpy(prompts.padded(numbers)[0]).to(model.device), use_cache=False)

    def full() -> None:
        with torch.no_grad():
            for numbers in prompts.batches(batch_tokens):
                lm(torch.from_numpy(prompts.padded(numbers)[0]).to(model.device), use_cache=False)

    def with_measurements(**chosen: Any) -> Any:
        return lambda: ti.measure(
            model, prompts, {k: make() for k, make in chosen.items()}, batch_tokens=batch_tokens, progress=False
        )

    dimension = {"dimension": ti.geometry.IntrinsicDimension}
    spectrum = {"spectrum": ti.geometry.Spectrum}
    lens = {"lens": ti.lens.LogitLens}
    methods = {
        "forward without head": forward,
        "forward with head": full,
        "measure: dimension": with_measurements(**dimension),
        "measure: spectrum": with_measurements(**spectrum),
        "measure: lens": with_measurements(**lens),
        "measure: dimension + spectrum": with_measurements(**dimension, **spectrum),
        "measure: all three": with_measurements(**dimension, **spectrum, **lens),
    }
    rows = paired(methods, rounds)
    for name, method in methods.items():
        rows[name]["peak_mb"] = peak_mb(method)
        rows[name]["prompts_per_second"] = sizes["prompts"] / rows[name]["seconds"]
    return save("measurements_7b" if llama7b else "measurements", rows, sizes, out)
