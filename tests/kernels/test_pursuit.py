"""Sums of few atoms: weights beside SciPy's, a loop over points, planted sums, atoms and points of zeros."""

from importlib import import_module

import numpy as np
import torch
from conftest import needs_extras
from scipy.optimize import nnls

from tokinterp.kernels import pursuit
from tokinterp.kernels.pursuit import nonnegative_pursuit, nonnegative_weights


def drawn(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_weights_are_those_of_scipy():
    atoms, x = drawn(80 * 6, 8).double().reshape(80, 6, 8) + 1.5, drawn(80, 8, 1).double() + 0.5  # alike
    found = nonnegative_weights(atoms @ atoms.mT, (atoms @ x[..., None])[..., 0])
    for a, y, w in zip(atoms, x, found, strict=True):
        np.testing.assert_allclose(w, nnls(a.T.numpy(), y.numpy())[0], atol=1e-8)
    assert (found == 0).any()
    assert (found > 0).any()


def by_hand(x, atoms, k):
    x, atoms = x.double().numpy(), atoms.double().numpy()
    chosen, rest, w, shares = [], x, np.zeros(0), []
    for _ in range(k):
        cosine = atoms @ rest / np.linalg.norm(atoms, axis=1)
        cosine[chosen] = -np.inf
        chosen.append(int(cosine.argmax()))
        w = nnls(atoms[chosen].T, x)[0]
        rest = x - w @ atoms[chosen]
        shares.append(1 - (rest @ rest) / (x @ x))
    return chosen, w, shares


def test_every_point_is_that_of_a_loop(monkeypatch):
    atoms, x = drawn(60, 16) * torch.rand(60, 1, generator=torch.Generator().manual_seed(3)).add(0.2), drawn(9, 16, 2)
    monkeypatch.setattr(pursuit, "ROWS", 4)
    found = nonnegative_pursuit(x, atoms, 7)
    for n in range(9):
        chosen, weight, shares = by_hand(x[n], atoms, 7)
        assert found.atom[n].tolist() == chosen
        np.testing.assert_allclose(found.weight[n], weight, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.share[n], shares, rtol=1e-5, atol=1e-6)


def test_a_planted_sum_is_found_and_then_it_ends():
    atoms = torch.eye(12)
    found = nonnegative_pursuit(3 * atoms[[4]] + 2 * atoms[[7]], atoms, 5)
    assert found.atom.tolist() == [[4, 7, -1, -1, -1]]
    assert found.weight.tolist() == [[3, 2, 0, 0, 0]]
    np.testing.assert_allclose(found.share[0], [9 / 13, 1, 1, 1, 1])
    against = nonnegative_pursuit(-atoms[[4]], atoms, 2)
    assert against.atom.tolist() == [[-1, -1]], "a weight below 0 is none"
    assert against.share.tolist() == [[0, 0]]


def test_atoms_and_points_of_zeros():
    atoms = torch.stack([torch.zeros(4), torch.ones(4)])
    found = nonnegative_pursuit(torch.stack([torch.ones(4), torch.zeros(4)]), atoms, 2)
    assert found.atom.tolist() == [[1, -1], [-1, -1]]
    assert found.share[1].isnan().all()
    assert nonnegative_pursuit(torch.zeros(0, 4), atoms, 2).atom.shape == (0, 2)


@needs_extras
def test_the_same_as_in_transformer_lens():
    other = import_module("transformer_lens.tools.analysis.jacobian_lens_decomposition")
    atoms, x = drawn(80, 24), drawn(5, 24, 1)
    found = nonnegative_pursuit(x, atoms, 10)
    for n in range(5):
        theirs = other.get_sparse_decomposition(x[n], atoms, 10)
        assert found.atom[n].tolist() == theirs.selected_support.tolist()
        own = found.weight[n][found.weight[n] > 0].float()
        torch.testing.assert_close(own, theirs.coordinates, rtol=1e-4, atol=1e-5)
