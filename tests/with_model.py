"""Settings of an experiment with a model and texts that are in memory."""

from dataclasses import replace

import xarray as xr


def settings(preset, model=None, texts=None, train=None, **changes):
    """A preset with some settings changed, that asks for no other model and reads nothing."""
    p = replace(preset, **changes)
    if model is not None:
        p.lm = model
    if texts is not None:
        p.found["texts"] = list(texts)
    if train is not None:
        p.found["train"] = list(train)
    return p


def as_tree(results):
    """Results of an experiment as what the figures are given."""
    return xr.DataTree.from_dict(results)
