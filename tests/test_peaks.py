"""What a measurement says of its memory for long prompts is what its tensors take."""

import math
import re

import numpy as np
import pytest
import torch
from peaks import Peak, peak
from tiny import byte_tokenizer, tiny_lm

import tokinterp as ti
from tokinterp.scan import measurements

MODEL = ti.wrap(tiny_lm("llama", max_position_embeddings=1024), byte_tokenizer(), id="tiny")
SIZES = {"heads": MODEL.info.n_heads, "layers": MODEL.info.n_layers + 1}
SAID = re.compile(r"Memory: (\d+)((?: x [a-z]+)*) x n\^2 bytes")
KINDS = {m.__name__: m for m in measurements().values() if SAID.search(m.__doc__ or "")}
SHORT, LONG = 256, 512


def of_one_prompt(kind, n):
    """Peak of a measurement of one prompt beyond that of a pass with nothing measured."""
    ids = np.random.default_rng(0).integers(5, 250, n)
    prompts = ti.Prompts.from_ids([ids.tolist()], MODEL)
    return peak(lambda: ti.measure(MODEL, prompts, {"m": kind()}, progress=False))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(KINDS))
def test_the_square_of_the_length_costs_what_is_said(name):
    factor, sizes = SAID.search(KINDS[name].__doc__).groups()
    said = int(factor) * math.prod(SIZES[s] for s in sizes.split(" x ")[1:])
    short, long = (of_one_prompt(KINDS[name], n) for n in (SHORT, LONG))
    square = (long - 2 * short) / (LONG**2 - 2 * SHORT**2)
    assert 0.4 * said < square <= said


def test_every_measurement_that_looks_at_patterns_says_so():
    looking = {m.__name__ for m in measurements().values() if "attention" in m.__module__ and getattr(m, "streams", 0)}
    assert len(looking) > 5
    assert looking <= {*KINDS}


def test_what_is_alive_is_counted_and_what_is_gone_is_not():
    def one_after_the_other():
        a = torch.ones(1000)
        del a
        b = torch.ones(500)
        return b[:10].sum() + b.sum()

    assert 2000 * 2 <= peak(one_after_the_other) < 4100
    with Peak() as mode:
        held = [torch.zeros(100) for _ in range(3)]
    assert mode.now == mode.most == 1200
    del held
    assert mode.now == 0
