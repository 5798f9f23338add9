"""Figures of the intrinsic dimension draw the estimate that is asked for."""

import numpy as np
import pytest
import xarray as xr

from tokinterp import plots


@pytest.mark.parametrize("estimator", ["gride", "mle", "twonn"])
def test_each_estimate_is_drawn_under_its_own_name(estimator):
    rng = np.random.default_rng(0)
    by, names = ("prompt", "layer"), {"mle": "dimension_mle", "twonn": "dimension_twonn"}
    made = {n: (by, rng.random((5, 3)), {"long_name": n, "units": "1"}) for n in names.values()}
    made["dimension"] = ((*by, "scale"), rng.random((5, 3, 2)), {"long_name": "dimension", "units": "1"})
    ds = xr.Dataset(made, {"layer": [0, 1, 2], "scale": [2, 4]})
    ax = plots.dimension_by_layer(ds, estimator=estimator)
    wanted = ds[names[estimator]] if estimator in names else ds["dimension"].sel(scale=4)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), wanted.mean("prompt"))
    assert ("n₂ = 4" if estimator == "gride" else estimator.upper()) in ax.get_ylabel()
