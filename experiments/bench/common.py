"""Timing side by side in one process, and small JSON files of what came out."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

import tokinterp as ti

from ..runner.record import about, write

ELSEWHERE = [0.0]
"""CPU seconds that processes of ours have told of, see `neighbours.Dadapy`."""


class Bar(NamedTuple):
    """What a measured value must reach.

    Attributes
    ----------
    what : str
        What is compared, in words.
    value : float
        As measured.
    limit : float
        The value must be at most, or at least, this.
    at : str
        ``"most"`` or ``"least"``.
    why : str
        Why it is missed where it is.
    """

    what: str
    value: float
    limit: float
    at: str
    why: str = ""

    @property
    def met(self) -> bool:
        """Whether the value reaches the limit; False for NaN."""
        return self.value <= self.limit if self.at == "most" else self.value >= self.limit


def clock() -> float:
    """Return seconds: of the CPU where one thread computes (others on its core take none of them), else of the wall."""
    if torch.cuda.is_available() or torch.get_num_threads() > 1:
        return time.perf_counter()
    return time.process_time() + ELSEWHERE[0]


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
            start = clock()
            out = methods[name]()
            _wait()
            if r >= warm:
                seconds[name].append(clock() - start)
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


def save(
    name: str, rows: Mapping[str, Any], sizes: Mapping[str, Any], out: Path | None, bars: Sequence[Bar] = ()
) -> dict[str, Any]:
    """Print rows and bars, and write them with command, commit, sizes, machine and versions to ``out/NAME.json``."""
    record = {
        **about(f"bench {name}"),
        "sizes": dict(sizes),
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {torch.get_num_threads()} threads",
        "processor": processor(),
        "seconds_of": "wall" if torch.cuda.is_available() or torch.get_num_threads() > 1 else "CPU",
        "rows": dict(rows),
        **({"bars": [{**bar._asdict(), "met": bar.met} for bar in bars]} if bars else {}),
    }
    print(f"\n{name}: {', '.join(f'{k}={v}' for k, v in sizes.items())} on {record['device']}")
    for row, values in rows.items():
        print(
            f"  {row:44}" + "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
        )
    for bar in bars:
        verdict = "met" if bar.met else f"not met ({bar.why})"
        print(f"  bar: {bar.what}: {bar.value:.3g}, at {bar.at} {bar.limit:g}: {verdict}")
    if out is not None:
        write(record, out / f"{name}.json")
    return record


def processor() -> str:
    """Return architecture and model of the processor, and which cores this process may use of how many."""
    cores = f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores" if sys.platform == "linux" else ""
    info = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return ", ".join([platform.machine(), *names[:1], *([cores] if cores else [])])


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
