"""What the user knows of each prompt, put beside the numbers: topics, ids, correct or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from ..settings import checked, instance, short
from .dataset import variable


@checked(data=instance("Dataset", "DataTree"))
def with_labels(data: xr.Dataset | xr.DataTree, **labels: Sequence[Any]) -> Any:
    """Return results that carry labels of their prompts, for groupby, tables and plots.

    Parameters
    ----------
    data : Dataset or DataTree
        A result, or a whole run.
    **labels : sequence
        Name and values: strings, numbers or bools, one for each prompt of the input. Prompts that a result lacks are
        passed over; tokens get the label of their prompt under ``token_NAME``.

    Raises
    ------
    ValueError
        If there are too few or too many, or the name is taken.

    Examples
    --------
    >>> import tokinterp as ti
    >>> asked = {"curvature": ti.geometry.Curvature(layers=[0, 4])}
    >>> run = ti.measure(ti.load_model(), ["The Nile flows north.", "It rains."], asked, progress=False)
    >>> run = with_labels(run, topic=["river", "weather"])
    >>> sorted(run["curvature"].to_dataset().groupby("topic").groups)
    ['river', 'weather']
    """
    if isinstance(data, xr.DataTree):
        sizes = [n.to_dataset(inherit=False) for n in data.subtree if "first_nonfinite_layer" in n.data_vars]
        n = max((int(t["prompt"].max()) + 1 for t in sizes), default=None)
        nodes = {node.path: _labelled(node.to_dataset(inherit=False), n, labels) for node in data.subtree}
        return xr.DataTree.from_dict(nodes)
    return _labelled(data, None, labels)


def _labelled(ds: xr.Dataset, n: int | None, labels: dict[str, Sequence[Any]]) -> xr.Dataset:
    told = ds.attrs.get("n_prompts")  # a JSON list where conditions have different numbers
    n = int(told) if n is None and isinstance(told, int | np.integer) else n
    for name, given in labels.items():
        values = np.asarray(given)
        values = values.astype(object) if values.dtype.kind in "UO" else values
        if values.ndim != 1 or (n is not None and len(values) != n):
            raise ValueError(f"{name}={short(given)}: give one label for each of the {n or ''} prompts")
        for dim, column, called in (("prompt", "prompt", name), ("token", None, f"token_{name}")):
            if dim not in ds.dims:
                continue
            column = column or ("token_prompt" if "token_prompt" in ds.coords else "prompt")
            if column not in ds.coords or ds[column].dims != (dim,):
                continue
            if called in ds.variables or called in ds.dims:
                raise ValueError(f"{name}={short(given)}: the result has something of this name already: rename it")
            numbers = ds[column].values
            if numbers.max(initial=-1) >= len(values):
                raise ValueError(f"{name}={short(given)}: there are prompts up to number {numbers.max()}")
            ds = ds.assign_coords({called: variable(dim, values[numbers], f"{name} of the prompt", "1")})
    return ds
