"""A model without a model: streams of chosen numbers, a norm and a head, and batches of any composition."""

import itertools
from types import SimpleNamespace

import numpy as np
import torch

from tokinterp.models.info import ModelInfo
from tokinterp.run.batch import Batch
from tokinterp.run.measurement import MEMORY
from tokinterp.run.sites import Site


class StandIn:
    """Prompts of chosen lengths with a fixed random stream at each layer; token 0 is special and comes first."""

    def __init__(self, lengths=(9, 5, 12, 2, 7), n_layers=3, d=8, vocab=17, seed=0, dtype=torch.float32, device="cpu"):
        rng = np.random.default_rng(seed)
        self.lengths, self.n_layers, self.d, self.vocab, self.dtype = list(lengths), n_layers, d, vocab, dtype
        self.ids = [np.concatenate([[0], rng.integers(1, vocab, n - 1)]) for n in lengths]
        self.streams = [rng.standard_normal((n_layers + 1, n, d)) + 0.5 for n in lengths]
        self.device = torch.device(device)
        self.weight = torch.from_numpy(rng.standard_normal((d, vocab))).float().to(device)
        self.rows_seen: list[int] = []
        self.info = ModelInfo(
            id="stand-in", revision="local", weights="", architecture="StandIn", backend="hf", n_layers=n_layers,
            n_heads=1, d_model=d, d_vocab=vocab, max_tokens=64, dtype="float32", device=str(device), tokenizer="",
        )  # fmt: skip
        self.prompts = SimpleNamespace(
            lengths=self.lengths, special=lambda i: self.ids[i] == 0, special_mask=np.concatenate(self.ids) == 0,
            starts=np.concatenate([[0], np.cumsum(self.lengths)]),
        )  # fmt: skip

    def normed(self, x):
        return x / x.float().pow(2).mean(-1, keepdim=True).sqrt()

    def head(self, x):
        self.rows_seen.append(len(x))
        return 3 * torch.tanh(x.float() @ self.weight / 3)

    def unembed(self, x):
        return self.head(self.normed(x))

    def rows(self, layer, numbers=None):
        """Stream of all prompts (or some) at a layer, without padding, float64."""
        numbers = range(len(self.lengths)) if numbers is None else numbers
        return np.concatenate([self.streams[n][layer] for n in numbers])

    def batch(self, numbers, extra=0):
        """Return a batch of these prompts, padded with nonsense to the longest of them and ``extra`` positions more."""
        numbers = [int(n) for n in numbers]
        width = max(self.lengths[n] for n in numbers) + extra
        ids = torch.zeros(len(numbers), width, dtype=torch.int64)
        stream = torch.full((self.n_layers + 1, len(numbers), width, self.d), 1e3)
        mask = torch.zeros(len(numbers), width, dtype=torch.bool)
        for b, n in enumerate(numbers):
            ids[b, : self.lengths[n]] = torch.from_numpy(self.ids[n])
            stream[:, b, : self.lengths[n]] = torch.from_numpy(self.streams[n])
            mask[b, : self.lengths[n]] = True
        sites = {Site("resid", layer): stream[layer].to(self.device, self.dtype) for layer in range(self.n_layers + 1)}
        lengths = [self.lengths[n] for n in numbers]
        ids, mask = ids.to(self.device), mask.to(self.device)
        starts = [sum(self.lengths[:n]) for n in numbers]
        return Batch(ids, mask, numbers, lengths, starts, (ids == 0) & mask, sites, self)

    def measured(self, measurement, batches=None, memory=MEMORY):
        """Return a measurement that has seen all prompts, in these batches."""
        measurement.memory = memory
        measurement.begin(self.info, self.prompts)
        for numbers in batches or [range(len(self.lengths))]:
            measurement.update(self.batch(numbers))
        return measurement


def partitions(n):
    """Hypothesis strategy: the numbers 0..n-1 in any order, cut into batches."""
    from hypothesis import strategies as st

    def cut(pair):
        order, marks = pair
        edges = [0, *sorted(marks), n]
        return [order[a:b] for a, b in itertools.pairwise(edges) if b > a]

    return st.tuples(st.permutations(range(n)), st.sets(st.integers(1, n - 1))).map(cut)
