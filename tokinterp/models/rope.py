"""Rotary embeddings that follow the longest prompt of a batch: what it takes that a prompt's states do not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn


def length_steps(config: Any) -> tuple[int, ...]:
    """Return the lengths beyond which a model computes otherwise for the whole batch, ascending.

    LongRoPE (Phi-3, MiniCPM) turns to other frequencies as soon as one prompt of the batch is longer than
    ``original_max_position_embeddings``: prompts on different sides must not be in one batch.
    """
    found = set()
    for entry in (getattr(config, "rope_parameters", None), getattr(config, "rope_scaling", None)):
        if not isinstance(entry, dict):
            continue
        for rope in (entry, *(v for v in entry.values() if isinstance(v, dict))):
            if str(rope.get("rope_type", rope.get("type"))) in ("longrope", "su"):
                step = rope.get("original_max_position_embeddings")
                found.add(step or getattr(config, "original_max_position_embeddings", None))
    return tuple(sorted(int(step) for step in found if step))


def check_lengths(steps: tuple[int, ...], longest: torch.Tensor, width: int) -> None:
    """Raise ValueError if prompts of these lengths, run in a batch so wide, lie on both sides of a step."""
    if not steps:
        return
    edges = torch.tensor(steps, dtype=torch.int64, device=longest.device)
    sides, own = torch.bucketize(longest, edges), sum(step < width for step in steps)
    if bool((sides != own).any()):
        other = int(longest[(sides != own).nonzero()[0, 0]])
        raise ValueError(
            f"a prompt of {other} tokens in a batch {width} wide: this model computes a batch otherwise as soon as it "
            f"is longer than {steps[0]} tokens (LongRoPE); batch prompts on both sides apart "
            "(Prompts.batches(..., model=model))"
        )


def dynamic_ropes(lm: nn.Module) -> list[Any]:
    """Return the modules whose rotary frequencies stay those of a sequence that they have seen."""
    kinds = ((m, getattr(m, "rope_type", None)) for m in lm.modules())
    follow = [m for m, k in kinds if "dynamic" in str(k) or "longrope" in str(k)]
    return [m for m in follow if hasattr(m, "max_seq_len_cached")]


def reset(ropes: list[Any]) -> None:
    """Bring rotary frequencies back to their start, so that no pass depends on the ones before it."""
    for rope in ropes:
        kinds = [""] if isinstance(rope.rope_type, str) else [f"{k}_" for k in rope.rope_type]
        for kind in kinds:
            first = getattr(rope, f"{kind}original_inv_freq", None)
            if first is not None:
                own = first.to(getattr(rope, f"{kind}inv_freq").device, copy=True)  # LongRoPE writes into it
                rope.register_buffer(f"{kind}inv_freq", own, persistent=False)
                setattr(rope, f"{kind}max_seq_len_cached", rope.original_max_seq_len)
        rope.max_seq_len_cached = rope.original_max_seq_len


_NOTHING = object()


@contextmanager
def as_found(lm: nn.Module) -> Iterator[None]:
    """Begin as a model begins, whatever ran before, and leave its buffers and plain attributes as they were found.

    Rotary embeddings keep the frequencies of the longest text they have seen.

    Examples
    --------
    >>> net = nn.Linear(1, 1)
    >>> net.longest = 4
    >>> with as_found(net):
    ...     net.longest, net.longer = 8, 9
    >>> net.longest, hasattr(net, "longer")
    (4, False)
    """
    ropes = dynamic_ropes(lm)
    before = [(m, dict(m.__dict__), dict(m._buffers)) for m in lm.modules()]
    try:
        reset(ropes)
        yield
    finally:
        for m, *kept in before:
            for then, now in zip(kept, (m.__dict__, m._buffers), strict=True):
                for name in then.keys() | now.keys():  # one by one: another thread may be running the model
                    if name not in then:
                        del now[name]
                    elif now.get(name, _NOTHING) is not then[name]:
                        now[name] = then[name]


def run_plain(lm: nn.Module, inputs: dict[str, Any]) -> Any:
    """Run a Hugging Face model itself; compiled modules run eagerly, because a compiled graph has no hooks."""
    compiled = any(m._compiled_call_impl is not None or hasattr(m, "_orig_mod") for m in lm.modules())
    with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
        return lm(**inputs)
