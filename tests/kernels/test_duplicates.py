"""Equal rows are found wherever they stand, and only they."""

import numpy as np
import pytest
import torch

from tokinterp.kernels.duplicates import first_of_kind


def by_hand(points, mask):
    out = []
    for cloud, use in zip(points, mask, strict=True):
        row = list(range(len(cloud)))
        for i in range(len(cloud)):
            for j in range(i):
                if use[i] and use[j] and bool((cloud[i] == cloud[j]).all()):
                    row[i] = j
                    break
        out.append(row)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("memory", [2**30, 1])
def test_equals_comparing_all_pairs(dtype, memory):
    draw = torch.Generator().manual_seed(0)
    points = torch.randint(0, 2, (3, 40, 4), generator=draw).to(dtype)
    mask = torch.rand(3, 40, generator=draw) < 0.7
    found = first_of_kind(points, mask, memory=memory)
    assert found.tolist() == by_hand(points, mask)
    assert len(set(found[0].tolist())) < 40


def test_rows_that_differ_in_one_coordinate_that_is_not_looked_at_first():
    points = torch.ones(1, 3, 100)
    points[0, 1, 50] = 2  # of 100 coordinates 16 are hashed at first
    assert first_of_kind(points).tolist() == [[0, 1, 0]]


def test_zero_equals_minus_zero_and_nan_nothing():
    points = torch.tensor([[[0.0], [-0.0], [torch.nan], [torch.nan]]])
    assert first_of_kind(points).tolist() == [[0, 0, 2, 3]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_small_whole_numbers_are_told_apart_in_any_precision(dtype):
    """Their last bits are zero: a hash that looks at those alone takes many rows for one, and then misses copies."""
    x = torch.randint(0, 3, (2000, 5), generator=torch.Generator().manual_seed(0)).to(dtype)
    found = first_of_kind(x[None])[0]
    _, index, inverse = np.unique(x.double().numpy(), axis=0, return_index=True, return_inverse=True)
    np.testing.assert_array_equal(found, index[inverse])
