"""States of many layers read in one pass over the prompts and kept on the device, standardised, for training."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..run.batch import Batch
from ..run.sites import resid
from ..run.stream import stream
from .kernels.softmax import Scratch

if TYPE_CHECKING:
    from ..models.base import Model
    from ..text.prompts import Prompts
    from .probe_settings import ProbeSettings

Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass
class States:
    """States of all tokens of some prompts, in the order of the token stream.

    Attributes
    ----------
    rows : dict of int to torch.Tensor
        Layer -> (token, d_model).
    standard : dict of int to (torch.Tensor, torch.Tensor)
        Layer -> mean and standard deviation (d_model,) float32 of the states before; empty if they are raw.
    finite : torch.Tensor
        (token,) bool, false in prompts with NaN or infinite states.
    """

    rows: dict[int, torch.Tensor]
    standard: dict[int, Pair] = field(default_factory=dict)
    finite: torch.Tensor = field(default_factory=lambda: torch.ones(0, dtype=torch.bool, device="cpu"))


def usual_scale(mean_square: torch.Tensor) -> torch.Tensor:
    """Return standard deviations from variances (d,); 1 where a coordinate does not vary."""
    scale = mean_square.clamp_min(0).sqrt()
    return torch.where(scale > 1e-6 * scale.max().clamp_min(1e-30), scale, 1.0)


def provisional(x: torch.Tensor) -> Pair:
    """Return mean and scale (d,) of the first rows seen, about which sums are exact and 16-bit states fine-grained."""
    return x.mean(0), usual_scale(x.var(0, unbiased=False))


class Batches:
    """Batches of finite prompts, with the place of each row in the token stream.

    Attributes
    ----------
    finite : torch.Tensor
        (token,) bool, false in the prompts left out so far.
    read : int
        Prompts read so far, in the order in which they are read.
    left_out : dict of int to int
        Those with NaN or infinite states, each with the first layer that has them.
    """

    def __init__(
        self, model: Model, prompts: Prompts, layers: Sequence[int], batch_tokens: int, done: Callable[[int], object]
    ) -> None:
        self.model, self.prompts, self.layers = model, prompts, layers
        self.batch_tokens, self.done = batch_tokens, done
        self.finite = torch.ones(prompts.n_tokens, dtype=torch.bool, device=model.device)
        self.read: int = 0
        self.left_out: dict[int, int] = {}

    def __iter__(self) -> Iterator[tuple[Batch, torch.Tensor]]:
        ordered = -np.sort(-np.asarray(self.prompts.lengths))
        source = stream(self.model, self.prompts, resid(self.layers), batch_tokens=self.batch_tokens, start=self.read)
        source.left_out |= self.left_out
        for batch in source:
            yield batch, torch.from_numpy(batch.tokens.place).to(batch.device)
            self.left_out = dict(source.left_out)
            before, self.read = self.read, source.read
            self.done(int(ordered[before : self.read].sum()))
        self.left_out = dict(source.left_out)
        for number in self.left_out:
            self.finite[int(self.prompts.starts[number]) : int(self.prompts.starts[number + 1])] = False


def capture_states(
    model: Model, prompts: Prompts, layers: Sequence[int], dtype: torch.dtype, batch_tokens: int,
    done: Callable[[int], object], standardise: bool, standard: dict[int, Pair] | None = None,
) -> States:  # fmt: skip
    """Read the states of some layers in one pass.

    Parameters
    ----------
    model, prompts, layers
        What to read.
    dtype : torch.dtype
        In which they are kept.
    batch_tokens : int
        Padded tokens per batch.
    done : callable
        Told the tokens of every finished batch.
    standardise : bool
        Bring every coordinate to mean 0 and standard deviation 1 over the tokens that are not special.
    standard : dict, optional
        Use these means and scales instead of the states' own (for validation).
    """
    n, d, device = prompts.n_tokens, model.info.d_model, model.device
    rows = {layer: torch.zeros(n, d, dtype=dtype, device=device) for layer in layers}
    first: dict[int, Pair] = dict(standard or {}) if standardise else {}
    sums = {layer: torch.zeros(2, d, dtype=torch.float64, device=device) for layer in layers}
    count = 0
    batches = Batches(model, prompts, layers, batch_tokens, done)
    for batch, place in batches:
        kept = ~batch.tokens.special
        count += int(kept.sum())
        for layer in layers:
            x = batch.rows(layer).float()
            if standardise:
                if layer not in first:
                    first[layer] = provisional(x[kept] if bool(kept.any()) else x)
                mean, scale = first[layer]
                x = (x - mean) / scale
                y = x[kept].double()
                sums[layer] += torch.stack([y.sum(0), y.square().sum(0)])
            rows[layer][place] = x.to(dtype)
    if standardise and standard is None:
        for layer in layers:
            mean = sums[layer][0] / count
            scale = usual_scale(sums[layer][1] / count - mean.square())
            for block in rows[layer].split(65536):
                block.copy_((block.double() - mean) / scale)
            before, factor = first[layer]
            first[layer] = (before + factor * mean.float(), factor * scale.float())
    return States(rows, first, batches.finite)


# -- memory ---------------------------------------------------------------------------------------------------
@dataclass
class Need:
    """Bytes that a fit needs: ``fixed`` whatever the number of layers, and of each layer ``states`` and ``weights``."""

    fixed: int
    states: int
    weights: int

    def groups(self, layers: Sequence[int], memory: int) -> list[list[int]]:
        """Return as few groups of layers as fit, of about equal size.

        Raises
        ------
        ValueError
            If not even one layer fits.
        """
        each = self.states + self.weights
        room = (memory - self.fixed) // each
        if room < 1:
            raise ValueError(
                f"fitting one layer needs {(self.fixed + each) / 2**30:.2f} GiB (states {self.states / 2**30:.2f}, "
                f"weights and optimiser {self.weights / 2**30:.2f}, working memory {self.fixed / 2**30:.2f}), but "
                f"memory is {memory / 2**30:.2f} GiB: give fewer offsets, states='bfloat16', or more memory"
            )
        if not layers:
            return []
        n = -(-len(layers) // room)
        size = -(-len(layers) // n)
        return [list(layers[a : a + size]) for a in range(0, len(layers), size)]


def need_of_training(
    n_tokens: int, n_validation: int, d_model: int, n_classes: int, n_offsets: int, settings: ProbeSettings,
    states: torch.dtype, products: torch.dtype, device: torch.device, head: int = 0,
) -> Need:  # fmt: skip
    """Return the bytes needed to train: states, weights with the two moments of AdamW and the best so far, scratch."""
    matrix = 4 * d_model * (d_model if head else n_classes)
    copies = 3 + bool(settings.accumulate) + bool(n_validation and device.type == "cpu")
    labels = 8 * n_offsets * (n_tokens + n_validation)
    batch = settings.rows if not settings.documents else 4096
    scratch = Scratch.bytes(n_classes, batch, device, products) + 4 * batch * d_model * 3
    if n_validation:
        scratch += Scratch.bytes(n_classes, 4096, device)
    fixed = labels + scratch + matrix + products.itemsize * n_classes * d_model + 8 * head
    return Need(fixed, (n_tokens + n_validation) * d_model * states.itemsize, copies * n_offsets * matrix)


def memory_left(device: torch.device) -> int:
    """Return the bytes that a fit may take by default: nine tenths of a GPU's free memory, half of a CPU's."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * 0.9)
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, OSError, ValueError):
        return 2**32
