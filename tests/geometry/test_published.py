"""Published numbers, faults included, are those of the authors' functions in every cloud."""

import numpy as np
import pytest
import torch
from standin import StandIn

from tokinterp.geometry import PerCloud, airi_twonn, skean2025_entropy, skean2025_frobenius
from tokinterp.geometry.kernels import entropy


def test_twonn_of_llm_microscope_counts_copies_which_inflates_it():
    model = StandIn((90, 120), n_layers=1)
    model.streams[0][1][40:60] = model.streams[0][1][20:40]
    for exclude, begin in ((("special",), 1), ((), 0)):
        own = model.measured(PerCloud(airi_twonn, name="airi", distinct=False, exclude=exclude)).result()
        for n in range(2):
            for layer in range(2):
                x = model.streams[n][layer][begin:].astype(np.float32)
                wanted = pytest.approx(float(airi_twonn(x)), rel=1e-6)
                assert float(own["airi"].sel(prompt=n, layer=layer)) == wanted
    clean = model.measured(PerCloud(airi_twonn, name="airi")).result()["airi"]
    assert float(own["airi"].sel(prompt=0, layer=1)) > 1.2 * float(clean.sel(prompt=0, layer=1))


def test_the_authors_numbers_are_those_of_their_function_in_every_cloud():
    model = StandIn(lengths=(12, 40))
    asked = {"entropy": skean2025_entropy, "frobenius": skean2025_frobenius}
    for name, function in asked.items():
        ds = model.measured(PerCloud(function, name=name, exclude=(), distinct=False)).result()
        for n in range(2):
            z = torch.from_numpy(model.streams[n][2])
            theirs = entropy.frobenius_entropy(z) if name == "frobenius" else entropy.renyi(entropy.clamped_spectrum(z))
            assert float(ds[name].sel(prompt=n, layer=2)) == pytest.approx(float(theirs), rel=1e-5)


def test_the_authors_entropies_are_none():
    z = np.random.default_rng(0).standard_normal((40, 8))
    own = float(entropy.renyi(entropy.gram_spectrum(entropy.centred_unit(torch.from_numpy(z)))))
    assert abs(skean2025_entropy(z) - own) > 0.02
    assert skean2025_frobenius(z) / np.log(8) > 2  # log 8 is the largest possible
    assert skean2025_entropy(z, 2.0) < skean2025_entropy(z)
