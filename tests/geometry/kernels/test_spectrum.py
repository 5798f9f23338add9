"""How fast a spectrum decays: exponent of its power law, and two ways of counting components."""

import numpy as np
import pytest
import torch
from standin import StandIn

from tokinterp.geometry.kernels import spectrum
from tokinterp.geometry.spectrum import Spectrum


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_power_law_finds_its_exponent(alpha):
    k = torch.arange(1, 701, dtype=torch.float64)
    values = 7 * k**-alpha
    values[:10] *= 100  # the head does not take part
    values[600:] = 0
    assert float(spectrum.power_law(values)) == pytest.approx(alpha, rel=1e-9)
    assert float(spectrum.power_law(values, (1, 500))) > alpha + 0.1
    assert bool(spectrum.power_law(values[:19]).isnan())
    assert not bool(spectrum.power_law(values[:20]).isnan())


def test_power_law_is_the_weighted_fit():
    values = torch.rand(60, dtype=torch.float64).sort(descending=True).values + 0.01
    k = np.arange(11, 61)
    slope = np.polyfit(np.log(k), np.log(values[10:].numpy()), 1, w=k**-0.5)[0]
    assert float(spectrum.power_law(values)) == pytest.approx(-slope, rel=1e-9)


def test_broken_stick_equals_the_pieces():
    pieces = np.array([sum(1 / j for j in range(k, 9)) / 8 for k in range(1, 9)])
    values = torch.from_numpy(pieces)
    assert pieces.sum() == pytest.approx(1)
    assert int(spectrum.broken_stick(values + 1e-9 * torch.tensor([4.0, 3, 2, -9, 0, 0, 0, 0]), 8)) == 3
    assert int(spectrum.broken_stick(torch.tensor([1.0, 0, 0, 0]), 4)) == 1
    assert int(spectrum.broken_stick(torch.ones(4), 4)) == 0
    assert bool(spectrum.broken_stick(torch.zeros(4), 4).isnan())


def test_kaiser_counts_what_is_above_the_mean():
    values = torch.tensor([[6.0, 2, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]])
    assert spectrum.kaiser(values, 4)[:2].tolist() == [1, 0]
    assert spectrum.kaiser(values, 2)[0] == 1
    assert bool(spectrum.kaiser(values, 4)[2].isnan())


def test_the_measurement_gives_them_for_both_subsets():
    model = StandIn(lengths=(60, 60), d=24)
    ds = model.measured(Spectrum(exclude=("special",), power_law=(1, 24))).result()
    x = model.rows(1)[np.concatenate(model.ids) != 0]
    values = torch.from_numpy(np.linalg.eigvalsh(np.cov(x.T))[::-1].copy())
    one = ds.sel(layer=1, subset="regular")
    assert float(one["power_law"]) == pytest.approx(float(spectrum.power_law(values, (1, 24))), rel=1e-4)
    assert int(one["kaiser"]) == int((values > values.mean()).sum())
    assert int(one["broken_stick"]) == int(spectrum.broken_stick(values, 24))
    with pytest.raises(ValueError, match="at least 10"):
        Spectrum(power_law=(5, 9))
