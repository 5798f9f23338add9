"""The last evaluation of each seed."""

import numpy as np
import pytest
import xarray as xr

from tokinterp.fillers.tasks.last import last_evaluation


def result(seconds):
    steps = np.array([10, 20, 30])
    accuracy = np.arange(6.0).reshape(2, 3)
    return xr.Dataset(
        {"accuracy": (("seed", "step"), accuracy), "seconds": (("seed", "step"), seconds)},
        {"step": steps, "seed": [4, 7]},
    )


def test_each_seed_has_its_own_last_step():
    found = last_evaluation(result([[1.0, 2.0, np.nan], [1.0, 2.0, 3.0]]))
    assert found["steps_taken"].values.tolist() == [20, 30]
    assert found["accuracy"].values.tolist() == [1.0, 5.0]
    assert "step" not in found.dims


def test_a_seed_without_an_evaluation_is_named():
    with pytest.raises(ValueError, match="seed 7 was never evaluated"):
        last_evaluation(result([[1.0, 2.0, np.nan], [np.nan] * 3]))
