"""Capture of all residual layers against the bare forward pass, transformers, TransformerLens and nnsight."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

import tokinterp as ti

from .common import Bar, paired, peak_mb, random_llama, save


def run(out: Path | None = None, rounds: int = 9, small: bool = False) -> dict[str, Any]:
    """Time the ways to get all residual layers of one batch; the first row is the pass without the LM head."""
    sizes = {"n_layers": 12, "d_model": 512, "n_heads": 8, "d_vocab": 32000, "prompts": 8, "tokens": 256}
    if small:
        sizes |= {"n_layers": 4, "d_model": 64, "d_vocab": 500, "prompts": 2, "tokens": 32}
    lm = random_llama(sizes["n_layers"], sizes["d_model"], sizes["n_heads"], sizes["d_vocab"])
    model = ti.wrap(lm, id="random-llama")
    ids = torch.randint(
        0, sizes["d_vocab"], (sizes["prompts"], sizes["tokens"]), device=model.device, dtype=torch.int64
    )
    layers = range(sizes["n_layers"] + 1)
    sites = ti.resid(layers)
    half = [ti.Site("resid", sizes["n_layers"] // 2)]

    def plain(f: Any) -> Any:
        def call() -> Any:
            with torch.no_grad():
                return f()

        return call

    methods = {
        "forward without head": plain(lambda: lm.model(ids, use_cache=False)),
        "tokinterp, all residual layers": lambda: model.run(ids, sites),
        "tokinterp, stop at half depth": lambda: model.run(ids, half),
        "forward with head": plain(lambda: lm(ids, use_cache=False)),
        "output_hidden_states": plain(lambda: lm(ids, use_cache=False, output_hidden_states=True)),
        "output_hidden_states, without head": plain(lambda: lm.model(ids, use_cache=False, output_hidden_states=True)),
        **_nnsight(lm, ids),
        **_transformer_lens(lm, ids),
    }
    rows = paired(methods, rounds)
    for name, method in methods.items():
        rows[name]["peak_mb"] = peak_mb(method)
    own = "tokinterp, all residual layers"
    peers = [n for n in rows if n.startswith(("nnsight", "TransformerLens")) or n == "output_hidden_states"]
    bars = [
        Bar("capture of all residual layers, in forward passes", rows[own]["ratio"], 1.05, "most"),
        Bar(
            "its peak memory, of the least of a peer's", rows[own]["peak_mb"] / min(rows[n]["peak_mb"] for n in peers),
            1, "most", "both hold the same layers and nothing else",
        ),
    ]  # fmt: skip
    return save("capture", rows, sizes, out, bars)


def _transformer_lens(lm: Any, ids: torch.Tensor) -> dict[str, Any]:
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(
        "random-llama",
        hf_model=copy.deepcopy(lm),
        tokenizer=_tokenizer(),
        device=str(ids.device),
        dtype=next(lm.parameters()).dtype,
    )

    def call() -> Any:
        with torch.no_grad():
            return bridge.run_with_cache(ids, names_filter=lambda n: n.endswith(("hook_resid_pre", "hook_resid_post")))

    return {"TransformerLens run_with_cache, resid only": call}


def _nnsight(lm: Any, ids: torch.Tensor) -> dict[str, Any]:
    import nnsight
    from nnsight.modeling.transformers import TransformersModel

    model = TransformersModel(copy.deepcopy(lm), tokenizer=_tokenizer(), task="text-generation")

    def call() -> Any:
        with torch.no_grad():
            with model.trace({"input_ids": ids, "attention_mask": torch.ones_like(ids)}):
                kept = nnsight.save([])
                for layer in model.model.layers:
                    kept.append(layer.output)
        return kept

    return {"nnsight trace, all layer outputs": call}


def _tokenizer() -> Any:
    """Return a stand-in tokenizer: both libraries want one, neither uses it here."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "a": 3}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<pad>")),
        pad_token="<pad>", bos_token="<s>", eos_token="</s>", name_or_path="stand-in", add_bos_token=True,
    )  # fmt: skip
