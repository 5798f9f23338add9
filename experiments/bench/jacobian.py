"""Fit of the Jacobian lens of the bundled model beside that of TransformerLens 4: seconds per prompt, same matrices."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import tokinterp as ti

from .common import paired, save


def run(out: Path | None = None, rounds: int = 1, small: bool = False) -> dict[str, Any]:
    """Time both fits of the same prompts; ``apart`` is the largest distance of two matrices, in units of their norm."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.tools.analysis.jacobian_lens import JacobianLens as Other

    sizes = {"prompts": 2, "tokens": 24} if small else {"prompts": 4, "tokens": 128}
    model = ti.load_model()
    bridge = TransformerBridge.boot_transformers(
        "bundled", hf_model=copy.deepcopy(model.lm), tokenizer=copy.deepcopy(model.tokenizer), device=str(model.device)
    )
    texts = [t.text for t in ti.bundled_texts("article")[: sizes["prompts"]]]
    prompts = ti.Prompts.from_texts(texts, model, max_tokens=sizes["tokens"], progress=False)
    lenses: dict[str, Any] = {}

    def ours(name: str, batch_tokens: int) -> Any:
        def fit() -> None:
            lenses[name] = ti.lens.fit_jacobian_lens(model, prompts, batch_tokens=batch_tokens, progress=False).weight

        return fit

    def theirs(name: str, at_once: int) -> Any:
        def fit() -> None:
            made = Other.fit(bridge, texts, corpus="bundled", dim_batch=at_once, max_seq_len=sizes["tokens"],
                             show_progress=False)  # fmt: skip
            lenses[name] = [made.jacobians[n].float() for n in made.source_layers]

        return fit

    calls = {"tokinterp": (ours, 2048), "tokinterp, one prompt at a time": (ours, 1)}
    calls |= {f"TransformerLens, {n} at once": (theirs, n) for n in (8, 32)}
    rows: dict[str, dict[str, float]] = paired({n: make(n, size) for n, (make, size) in calls.items()}, rounds, warm=0)
    for name, row in rows.items():
        row["seconds_per_prompt"] = row["seconds"] / sizes["prompts"]
        pairs = zip(lenses[name], lenses["tokinterp"], strict=True)
        row["apart"] = max(float((a - b).norm() / b.norm()) for a, b in pairs)
    return save("jacobian", rows, sizes, out)
