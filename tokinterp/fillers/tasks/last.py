"""The last evaluation of each training run, which may have stopped early."""

from __future__ import annotations

import xarray as xr


def last_evaluation(ds: xr.Dataset) -> xr.Dataset:
    """Return a result of `tokinterp.fillers.tasks.train` at the last evaluation of each seed, without ``step``.

    The number of steps taken is the variable ``steps_taken`` (seed).

    Raises
    ------
    ValueError
        If a seed was never evaluated.
    """
    done = ds["seconds"].notnull().sum("step")
    if int(done.min()) < 1:
        raise ValueError(
            f"seed {int(ds['seed'].values[done.values.argmin()])} was never evaluated: train it to an evaluation first"
        )
    last = ds.isel(step=done - 1)
    return last.reset_coords("step").rename(step="steps_taken")
