"""State of the process and of modules that would change numbers: set for the time of a computation, then put back."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import nn

NUMPY = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}
_held: dict[nn.Module, int] = {}
_lock = threading.Lock()

DTYPE = "float32"
"""Default dtype inside ``neutral``: that of torch itself, under which models are written."""


@contextmanager
def neutral() -> Iterator[None]:
    """Compute as in a fresh process, whatever the caller has set; what was set is there again afterwards.

    Inside, the default dtype is float32 and the default device the CPU, autocast, inference mode and gradients are off
    (``torch.enable_grad`` inside turns them on), float32 matrices are multiplied in float32 (no TF32, no bfloat16), and
    numpy does not raise for a division by zero.  Where torch is not loaded, there is nothing of it to set.  Also a
    decorator.

    Examples
    --------
    >>> import torch
    >>> with torch.autocast("cpu", torch.bfloat16), neutral():
    ...     (torch.ones(1, 2) @ torch.ones(2, 1)).dtype
    torch.float32
    """
    with ExitStack() as stack:
        if sys.modules.get("torch") is not None:
            _neutral_torch(stack)
        if np.geterr() != NUMPY:
            stack.enter_context(np.errstate(**NUMPY))  # type: ignore[arg-type]
        yield


def _neutral_torch(stack: ExitStack) -> None:
    import torch

    if torch.is_inference_mode_enabled():
        stack.enter_context(torch.inference_mode(False))
    stack.enter_context(torch.no_grad())
    for kind in ("cpu", "cuda", "xpu"):
        if torch.is_autocast_enabled(kind):
            stack.enter_context(torch.autocast(kind, enabled=False))
    if torch.get_default_dtype() != (dtype := getattr(torch, DTYPE)):
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(dtype)
    if torch.get_default_device().type != "cpu":
        stack.enter_context(torch.device("cpu"))
    for place, name, full in _products(torch.backends):
        if (set_now := getattr(place, name)) != full:
            stack.callback(setattr, place, name, set_now)
            setattr(place, name, full)


def _products(backends: Any) -> list[tuple[Any, str, Any]]:
    """Return where torch keeps how float32 matrices (and convolutions) are multiplied, and what means float32."""
    if hasattr(backends.cuda.matmul, "fp32_precision"):
        places = [backends.cuda.matmul, backends.mkldnn.matmul, backends.mkldnn.conv, backends.cudnn.conv]
        return [(p, "fp32_precision", "ieee") for p in places]
    return [(backends.cuda.matmul, "allow_tf32", False), (backends.cudnn, "allow_tf32", False)]


@contextmanager
def evaluating(*modules: nn.Module | None) -> Iterator[None]:
    """Put modules and all inside them into eval mode (no dropout), and each back into the mode that it was in.

    Threads may share a module: it trains again when the last of them is done.

    Raises
    ------
    RuntimeError
        If something inside, such as a hook, puts one of them back into training mode.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Dropout(0.9), nn.Dropout(0.9).eval())
    >>> with evaluating(net):
    ...     float(net(torch.ones(1, dtype=torch.float32)))
    1.0
    >>> [m.training for m in net]
    [True, False]
    """
    with _lock:
        # By attribute: train() and eval() also reach what is inside, and some modules merge weights there.
        mine = [m for root in modules if root is not None for m in root.modules() if m.training or m in _held]
        for m in mine:
            _held[m] = _held.get(m, 0) + 1
            m.training = False
    try:
        yield
        if woken := [type(m).__name__ for root in modules if root is not None for m in root.modules() if m.training]:
            raise RuntimeError(
                f"{woken[0]} was put into training mode in the middle of a computation, so that dropout may have "
                "changed its numbers: remove the hook (or stop the thread) that calls train()"
            )
    finally:
        with _lock:
            for m in mine:
                _held[m] -= 1
                if not _held[m]:
                    del _held[m]
                    m.training = True


@contextmanager
def passing(*modules: nn.Module | None) -> Iterator[None]:
    """Run modules as they are in a fresh process: in eval mode, without gradients, nothing of the caller's autocast."""
    with evaluating(*modules), neutral():
        yield


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Let torch's global random numbers begin at a seed inside, for code that takes no generator, and go on after.

    Only those of the CPU and of ``device`` are touched.

    Examples
    --------
    >>> import torch
    >>> before = torch.random.get_rng_state()
    >>> with seeded(0):
    ...     first = torch.nn.Linear(2, 2).weight
    >>> bool((torch.random.get_rng_state() == before).all())
    True
    """
    import torch

    place = torch.device(device)
    gpus = [place.index or 0] if place.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:
            torch.cuda.default_generators[gpu].manual_seed(seed)
        yield
