"""Pairs of clouds as the kernel sees them, and stand-ins whose linearity is known."""

import json

import numpy as np
import torch
from conftest import ROOT
from standin import StandIn

from tokinterp.kernels import linear

GOLDEN = ROOT / "tests" / "golden"
FOUND = json.loads((GOLDEN / "llm_microscope.json").read_text(encoding="utf-8"))


def pair(x, y):
    """The kernel's view of two clouds (row, d), by way of its sums."""
    x, y = (torch.as_tensor(z, dtype=torch.float64) for z in (x, y))
    shift = torch.stack([x[0], y[0]])
    chain = linear.empty(shift, 1, 1)
    for i, z in enumerate((x, y)):
        linear.accumulate(chain.first[i, 0], chain.second[i, 0], z - shift[i])
    chain.cross[0, 0] += (x - shift[0]).T @ (y - shift[1])
    chain.count[0] += len(x)
    return linear.pair_of(chain, 0, (0, 1), [0])


def stand_in(seed=0, lengths=(40, 30, 25, 50), d=6):
    """Prompts whose streams are clouds of a nonlinear network, with a channel offset of 1000."""
    model = StandIn(lengths, d=d, seed=seed)
    rng = np.random.default_rng(seed)
    ms = rng.standard_normal((4, d, d))
    for n in range(len(lengths)):
        x = rng.standard_normal((lengths[n], d))
        for layer in range(4):
            model.streams[n][layer] = x + 1000 * (np.arange(d) == 2)
            x = x + 0.4 * np.tanh(x @ ms[layer])
    return model


def streamed(model, measurement, batches=None):
    model.measured(measurement, batches)
    for reading in range(1, measurement.passes):
        measurement.end_reading()
        measurement.reading = reading
        for numbers in batches or [range(len(model.lengths))]:
            measurement.update(model.batch(numbers))
    measurement.end_reading()
    return measurement.result()
