"""Figures of token probes draw each offset and subset with its own interval and baseline."""

import numpy as np
import xarray as xr

from tokinterp import plots
from tokinterp.plots import style


def test_each_line_has_its_own_values_band_and_baseline():
    rng = np.random.default_rng(0)
    value, alone = rng.uniform(0.2, 0.8, (3, 4, 3)), rng.random((3, 3))
    ds = xr.Dataset(
        {"accuracy": (("subset", "layer", "offset"), value), "bigram_accuracy": (("subset", "offset"), alone),
         "accuracy_interval": (("bound", "subset", "layer", "offset"), np.stack([value - 0.1, value + 0.15]))},
        {"subset": ["all", "other", "last piece"], "layer": [0, 2, 4, 6], "offset": [-1, 0, 1]},
    )  # fmt: skip
    ax = plots.probe_accuracy(ds, subsets=["last piece", "other"], offsets=[-1, 1], baseline="bigram_accuracy")
    lines = {line.get_label(): line for line in ax.lines if len(line.get_xdata()) == 4}
    bands = iter(ax.collections)
    for s, subset in ((2, "last piece"), (1, "other")):
        for colour, o, offset in ((0, 2, "+1"), (1, 0, "-1")):
            line = lines[f"{offset}, {subset}"]
            np.testing.assert_allclose(line.get_ydata(), value[s, :, o])
            assert line.get_xdata().tolist() == [0, 2, 4, 6]
            assert line.get_color() == style.COLOURS[colour]
            box = next(bands).get_paths()[0].get_extents()
            np.testing.assert_allclose([box.y0, box.y1], [value[s, :, o].min() - 0.1, value[s, :, o].max() + 0.15])
    short = [line.get_ydata()[0] for line in ax.lines if len(line.get_xdata()) == 2]
    np.testing.assert_allclose(short, [alone[2, 2], alone[2, 0]])  # of the first subset
