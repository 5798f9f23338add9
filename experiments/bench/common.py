"""Timing side by side in one process, and small JSON files of what came out."""

from __future__ import annotations

import ctypes
import gc
import platform
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import tokinterp as ti

from ..runner.record import about, write


def paired(methods: Mapping[str, Callable[[], Any]], rounds: int = 9, warm: int = 1) -> dict[str, dict[str, float]]:
    """Time methods in turn, round after round; the ratio to the first is the median of the ratios within rounds.

    A slow moment of a shared machine hits neighbours in a round alike, so ratios are steadier than times.
    """
    names = list(methods)
    seconds: dict[str, list[float]] = {n: [] for n in names}
    for r in range(warm + rounds):
        for name in names if r % 2 == 0 else reversed(names):
            gc.collect()
            _wait()
            start = time.perf_counter()
            out = methods[name]()
            _wait()
            if r >= warm:
                seconds[name].append(time.perf_counter() - start)
            del out
    base = seconds[names[0]]
    return {
        n: {
            "seconds": statistics.median(s),
            "ratio": statistics.median(x / b for x, b in zip(s, base, strict=True)),
            "ratio_low": min(x / b for x, b in zip(s, base, strict=True)),
            "ratio_high": max(x / b for x, b in zip(s, base, strict=True)),
        }
        for n, s in seconds.items()
    }


def peak_mb(method: Callable[[], Any]) -> float:
    """Return the memory in MB that a call needs above what is held before it (GPU: allocator; CPU: sampled RSS)."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        method()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    _trim()
    before = peak = _rss()
    stop = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.002):
            peak = max(peak, _rss())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        method()
    finally:
        stop.set()
        thread.join()
    return (peak - before) / 2**20


def save(name: str, rows: Mapping[str, Any], sizes: Mapping[str, Any], out: Path | None) -> dict[str, Any]:
    """Print a table of the rows and write them with command, commit, sizes and versions to ``out/NAME.json``."""
    record = {
        **about(f"bench {name}"),
        "sizes": dict(sizes),
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {torch.get_num_threads()} threads",
        "processor": platform.machine(),
        "rows": dict(rows),
    }
    print(f"\n{name}: {', '.join(f'{k}={v}' for k, v in sizes.items())} on {record['device']}")
    for row, values in rows.items():
        print(
            f"  {row:44}" + "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
        )
    if out is not None:
        write(record, out / f"{name}.json")
    return record


def random_llama(
    n_layers: int = 12, d_model: int = 512, n_heads: int = 8, d_vocab: int = 32000, d_mlp: int | None = None,
    dtype: torch.dtype = torch.float32, n_kv_heads: int | None = None, context: int = 2048,
) -> Any:  # fmt: skip
    """Return a Llama of that shape with random weights, on the GPU if there is one."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=d_vocab, hidden_size=d_model, num_hidden_layers=n_layers, num_attention_heads=n_heads,
        num_key_value_heads=n_kv_heads or n_heads, intermediate_size=d_mlp or int(d_model * 8 / 3) // 64 * 64,
        max_position_embeddings=context, dtype=dtype,
    )  # fmt: skip
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    with device:
        lm: Any = LlamaForCausalLM(config)
    return lm.to(dtype).eval()


def random_prompts(n: int, length: int, d_vocab: int, seed: int = 0) -> ti.Prompts:
    """Return prompts of random ids."""
    ids = torch.randint(
        0, d_vocab, (n, length), generator=torch.Generator().manual_seed(seed), dtype=torch.int64, device="cpu"
    )
    return ti.Prompts.from_ids(ids.tolist())


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _trim() -> None:
    """Give memory that was freed back to the system, so that the next call is seen to take it."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def _rss() -> int:
    if sys.platform == "linux":
        with open("/proc/self/statm") as f:
            return int(f.read().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
