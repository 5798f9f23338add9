"""Massive rows: the rules at their edges, and which entries of a row are listed."""

import torch

from tokinterp.kernels import massive


def sizes_of(norm, peak, median_norm, median):
    return massive.Sizes(*(torch.tensor(x) for x in ([norm], [peak], [median_norm], [median])))


def test_rules_at_their_edges():
    sizes = sizes_of([1.0, 9.9, 10.0, 10.1, torch.nan], [1.0] * 5, 1.0, 0.1)
    assert massive.by_norm(sizes, 10.0).tolist() == [[False, False, False, True, False]]
    peaks = [99.0, 100.0, 100.5, 150.0, 1e5]
    assert massive.by_magnitude(sizes_of([1.0] * 5, peaks, 1.0, 0.125)).tolist() == [[False, False, False, True, True]]
    assert massive.by_magnitude(sizes_of([1.0] * 5, peaks, 1.0, 0.01)).tolist() == [[False, False, True, True, True]]
    exact = sizes_of([1.0] * 2, [125.0, 124.9], 1.0, 0.125)
    assert massive.by_magnitude(exact).tolist() == [[True, False]]


def test_a_row_is_massive_above_ten_times_the_median_norm():
    x = torch.ones(2, 5, 4)
    x[0, 0], x[1, 3] = 9.9, 10.1
    found = massive.massive_rows(x, torch.ones(2, 5, dtype=torch.bool))
    assert found.nonzero().tolist() == [[1, 3]]
    assert torch.equal(massive.by_norm(massive.measure_sizes(x, torch.ones(2, 5, dtype=torch.bool))), found)


def test_entries_carry_a_tenth_of_the_squared_norm():
    x = torch.zeros(1, 4, 6)
    x[0, :, 0] = 1.0
    x[0, 2] = torch.tensor([0.0, -40.0, 14.0, 12.0, 0.0, 0.0])  # shares of the square .82, .101, .07
    mask = torch.ones(1, 4, dtype=torch.bool)
    sizes = massive.measure_sizes(x, mask, None)
    rows = massive.by_norm(sizes, 10.0)
    assert rows.tolist() == [[False, False, True, False]]
    found = massive.massive_entries(x, torch.arange(4)[None] + 50, torch.tensor([7]), sizes, rows, "norm", 5)
    assert found.channel.tolist() == [1, 2, -1, -1, -1]
    assert found.value[:2].tolist() == [-40.0, 14.0]
    assert found.prompt[:2].tolist() == [7, 7]
    assert found.position[:2].tolist() == [2, 2]
    assert found.token_id[:2].tolist() == [52, 52]


def test_padding_takes_no_part_in_the_medians():
    x = torch.randn(2, 40, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(40) < torch.tensor([[40], [9]])
    alone = [massive.measure_sizes(x[:1], mask[:1]), massive.measure_sizes(x[1:, :9], mask[1:, :9])]
    x[1, 9:] = 1e4
    both = massive.measure_sizes(x, mask)
    for i in range(2):
        assert float(both.median_norm[i]) == float(alone[i].median_norm)
        assert float(both.median[i]) == float(alone[i].median)
