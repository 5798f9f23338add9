"""Neighbours are known to be of a cloud by its states; which tokens are finite, and the first with a state."""

import numpy as np
import pytest
from planted_clouds import corpus, flat, planted, search

from tokinterp.geometry.corpus.shared import check_cloud, finite_tokens, first_of_state


@pytest.mark.parametrize("layer", [0, 1])
def test_neighbours_of_another_model_are_not_of_the_cloud(layer):
    """The same tokens at the same places, and other states at one layer."""
    cloud = planted(flat(120, 3, 8).reshape(60, 2, 8), corpus(6, 10))
    near = search(cloud, 4, n_tokens=20)
    check_cloud(cloud, near)
    other = cloud.copy(deep=True)
    other["state"][:, layer] += 1e-3 * np.arange(60)[:, None]
    with pytest.raises(ValueError, match="near: these are neighbours in another cloud"):
        check_cloud(other, near)


def test_tokens_without_a_neighbour_say_nothing():
    cloud = planted(flat(60, 3, 8).reshape(60, 1, 8), corpus(6, 10))
    lone = search(cloud, 4, apart=["prompt"])
    lone["neighbour"][:5], lone["distance"][:5] = -1, np.nan
    check_cloud(cloud, lone)


def test_finite_tokens_are_those_of_all_layers_in_any_memory():
    x = flat(120, 3, 8).reshape(60, 2, 8)
    x[7, 0, 2], x[50, 1, 0] = np.nan, np.inf
    finite = finite_tokens(planted(x, corpus(6, 10)), 300)
    assert np.flatnonzero(~finite.numpy()).tolist() == [7, 50]


def test_the_first_of_each_state_is_by_layer():
    assert first_of_state(np.array([[4, 1], [4, 0], [2, 1]])).tolist() == [[True, True], [False, True], [True, False]]
