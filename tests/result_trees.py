"""Results that follow the conventions, with everything that files find hard."""

import numpy as np
import xarray as xr
from tiny import tiny

from tokinterp.results.dataset import layer_coords, provenance, variable


def example(n=6, layers=4, seed=0, **attrs):
    """A dataset that follows the conventions, with everything that files find hard."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, layers)).astype(np.float32)
    x[1, 2], x[2, 0] = np.nan, -0.0
    words = np.array(["", " leading", "é", "日本", "\\x00", "a\nb"] + ["w"] * (n - 6), dtype=object)[:n]
    info = tiny().info
    ds = xr.Dataset(
        {
            "x": variable(("prompt", "layer"), x, "some quantity", "nat", "Someone 2024, eq. 3"),
            "y": variable("prompt", rng.normal(size=n), "another", "1"),
            "flag": variable("prompt", rng.random(n) < 0.5, "whether", "1"),
            "count": variable("layer", np.arange(layers, dtype=np.int32), "how many", "token"),
            "word": variable("prompt", words, "a string", "1"),
            "total": variable((), np.float64(-np.nan), "one number", "1"),
            "none": variable(("span",), np.zeros(0, np.int64), "an empty table", "1"),
        },
        {**layer_coords(range(layers), info), "prompt": variable("prompt", np.arange(n), "number", "1")},
    )
    ds.attrs = {**provenance(info, "hash", {"k": 1}, "mark"), **attrs}
    return ds


def tree():
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=example().attrs), "/a": example(), "/b": example(seed=1)})
