"""What tests of probes share: a tiny model, random text of few types, quick settings, probes fitted with them."""

import numpy as np
import pytest
from tiny import tiny_lm

import tokinterp as ti
from tokinterp.erasure.probe_settings import ProbeSettings
from tokinterp.erasure.probes import fit_probes
from tokinterp.models import wrap

FAST = ProbeSettings(rows=128, epochs=2, lr=0.03)


def text(n=12, length=40, types=50, seed=0):
    """Random ids below ``types``, so that they repeat."""
    rng = np.random.default_rng(seed)
    return ti.Prompts.from_ids([rng.integers(3, types, length - i % 5) for i in range(n)])


@pytest.fixture(scope="module")
def model():
    return wrap(tiny_lm("llama"), id="tiny")


@pytest.fixture(scope="module")
def fitted(model):
    return fit_probes(model, text(), offsets=[-1, 0], settings=FAST, validation=text(seed=1), progress=False)
