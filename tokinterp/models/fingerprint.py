"""Hashes of weights and tokenizers: what decides the numbers, whatever the files are called."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn

SAMPLE = 65536


def weights_hash(module: nn.Module) -> str:
    """Return a hash of shape, dtype and a regular sample of about 65,536 values of every parameter.

    A fine-tuned copy differs in it; it costs a fraction of a second for billions of parameters, and does not depend
    on the device.  Names are left out, because backends wrap modules.  All parameters of up to 131,071 values are
    hashed whole.
    """
    digest = hashlib.sha256()
    for p in module.parameters():
        flat = p.detach().reshape(-1)
        step = max(1, flat.numel() // SAMPLE)
        sample = flat[::step].to(torch.float32).cpu().contiguous()
        digest.update(f"{tuple(p.shape)} {p.dtype}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def tokenizer_hash(tokenizer: Any) -> str:
    """Return a hash of all that decides how text becomes ids; empty without a tokenizer."""
    if tokenizer is None:
        return ""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        # Truncation and padding are settings of a call, not of the tokenizer.
        described = json.loads(backend.to_str()) | {"truncation": None, "padding": None}
    else:
        described = {"vocab": sorted(tokenizer.get_vocab().items()), "class": type(tokenizer).__name__}
    described["special"] = {k: str(v) for k, v in sorted(tokenizer.special_tokens_map.items())}
    text = json.dumps(described, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
