"""Probes in a folder: what is written comes back, what is damaged is refused."""

import numpy as np
import pytest
import torch
from tiny import tiny_lm

import tokinterp as ti
from tokinterp.erasure.probes import ProbeSettings, TokenProbes, fit_probes
from tokinterp.models import wrap

torch.set_num_threads(1)


FAST = ProbeSettings(rows=128, epochs=2, lr=0.03)


@pytest.fixture(scope="module")
def model():
    return wrap(tiny_lm("llama"), id="tiny")


def text(n=12, length=40, types=50, seed=0):
    """Random ids below ``types``, so that they repeat."""
    rng = np.random.default_rng(seed)
    return ti.Prompts.from_ids([rng.integers(3, types, length - i % 5) for i in range(n)])


@pytest.fixture(scope="module")
def fitted(model):
    return fit_probes(model, text(), offsets=[-1, 0], settings=FAST, validation=text(seed=1), progress=False)


# -- files and refusals ---------------------------------------------------------------------------------------
def test_round_trip_through_files(model, fitted, tmp_path):
    fitted.save(tmp_path / "probes")
    again = TokenProbes.load(tmp_path / "probes", model)
    assert (again.layers, again.offsets, again.digest) == (fitted.layers, fitted.offsets, fitted.digest)
    x, t = torch.randn(9, 32), torch.randint(0, 60, (9,))
    for layer in (0, 3):
        for offset in (-1, 0):
            a, b = again.read(x, layer, offset, t), fitted.read(x, layer, offset, t)
            torch.testing.assert_close(a.log_prob, b.log_prob, equal_nan=True, atol=0, rtol=0)
            assert torch.equal(a.rank, b.rank)
            known = b.rank == 0
            assert torch.equal(fitted.predict(x, layer, offset)[known, 0], t[known])
    assert torch.isnan(fitted.log_probs(x, 0, 0, torch.full((9,), 300))).all()  # a type that was never a label
    assert torch.isnan(fitted.rank(x, 0, 0, torch.full((9,), 300))).all()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        fitted.save(tmp_path / "probes")
    fitted.save(tmp_path / "probes", overwrite=True)
    (tmp_path / "probes" / "layer-002.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match="is damaged"):
        TokenProbes.load(tmp_path / "probes")
