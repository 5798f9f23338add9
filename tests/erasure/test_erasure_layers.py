"""Layers between which erasure is looked for."""

import pytest

from tokinterp.erasure.erasure import default_layers, end_layer


@pytest.mark.parametrize("n", range(1, 70))
def test_default_layers_are_in_order_and_in_the_model(n):
    start, end = default_layers(n)
    assert 0 <= start < end <= n
    if n > 1:
        assert start >= 1
        assert abs(start - n / 16) <= 1
        assert abs(end - n * 10 / 32) <= 2


def test_the_end_is_where_the_gap_hardly_grows_any_more():
    layers, others, last = [1, 3, 5, 7], [1.0, 1.0, 1.0, 1.0], [0.9, 0.5, 0.49, 0.6]
    assert end_layer(layers, others, last) == 3
    assert end_layer(layers, others, last, tolerance=0) == 5
    assert end_layer(layers, others, [1.0] * 4) == 1
    for bad in ([1.0, 1.0], [1.0, 1.0, 1.0, float("nan")]):
        with pytest.raises(ValueError, match="4 layers need as many finite accuracies"):
            end_layer(layers, bad, bad)
