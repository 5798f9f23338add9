"""Results as one table with a row for each value, for pandas, R and spreadsheets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import xarray as xr

from ..files.escape import for_cell
from ..files.whole import replacing
from ..settings import checked, instance, several, string
from .tables import named_results

if TYPE_CHECKING:
    import pandas


@checked(data=instance("Dataset", "DataTree"), variables=string | several(string, 1))
def table(data: xr.Dataset | xr.DataTree, variables: str | Sequence[str] | None = None) -> pandas.DataFrame:
    """Return the values of results as a long table: a row for each value, with the labels of its place.

    Parameters
    ----------
    data : Dataset or DataTree
        A result, ``run["lens"]``, or a whole run.
    variables : str or sequence of str, optional
        Only these; by default all.

    Returns
    -------
    pandas.DataFrame
        ``result`` (of a run), ``variable``, then a column for each coordinate, ``value``, ``string`` (of values that
        are strings, and of token ids) and ``units``.  Labels that a value does not have are missing.

    Raises
    ------
    ValueError
        If there is no result, or none of them has such a variable.

    Examples
    --------
    >>> import tokinterp as ti
    >>> asked = {"lens": ti.lens.LogitLens(layers=[4], top=1)}
    >>> run = ti.measure(ti.load_model(), ["The Nile flows north."], asked, progress=False)
    >>> list(table(run, "cross_entropy").columns)
    ['result', 'variable', 'prompt', 'layer', 'variant', 'relative_depth', 'site', 'value', 'units']
    >>> table(run["lens"], "cross_entropy").pivot(index="layer", columns="prompt", values="value").shape
    (1, 1)
    >>> bool(table(run, "top_id")["string"].isna().any())
    False
    """
    import pandas

    alone = isinstance(data, xr.Dataset) or not data.children
    results = {"": data} if isinstance(data, xr.Dataset) else named_results(data)
    known = list(dict.fromkeys(str(n) for ds in results.values() for n in ds.data_vars))
    variables = [variables] if isinstance(variables, str) else variables
    if wrong := [v for v in variables or () if v not in known]:
        raise ValueError(f"variables={wrong[0]!r}: there is no such variable; there are {', '.join(known)}")
    frames = [
        _long(ds, str(v), None if alone else name)
        for name, ds in results.items()
        for v in ds.data_vars
        if not variables or v in variables
    ]
    if not frames:
        raise ValueError(f"data={data!r:.40}: there is no result in it")
    out = pandas.concat(frames, ignore_index=True)
    last = [c for c in ("value", "string", "units") if c in out]
    return out.reindex(columns=[*(c for c in out if c not in last), *last])


def _long(ds: xr.Dataset, name: str, result: str | None) -> pandas.DataFrame:
    v = ds[name]
    aux = [c for c in v.coords if c not in v.dims and c not in ("vocab_text",)]
    out = v.drop_vars([c for c in v.coords if c not in v.dims and c not in aux]).to_dataframe("value").reset_index()
    for column in out.columns[out.dtypes.map(lambda t: t.kind in "iu")]:
        out[column] = out[column].astype("float64" if column == "value" else "Int64")
    if v.dtype.kind == "b":
        out["value"] = out["value"].astype("float64")
    if v.dtype.kind not in "biuf":
        out = out.rename(columns={"value": "string"})
    elif name.endswith("_id") and "vocab_text" in ds.coords:
        strings = dict(zip(ds["vocab"].values.tolist(), ds["vocab_text"].values.tolist(), strict=True))
        out["string"] = out["value"].map(strings.get)
    out.insert(0, "variable", name)
    if result is not None:
        out.insert(0, "result", result)
    return out.assign(units=str(v.attrs.get("units", "1")))


def write_table(data: xr.Dataset | xr.DataTree, path: Path, variables: Sequence[str] | None = None) -> int:
    """Write `table` as .csv or .parquet, in one step, and return its rows; no string of a .csv is a formula."""
    found = table(data, variables)
    if path.suffix == ".parquet":
        try:
            with replacing(path) as new:
                found.to_parquet(new, engine="pyarrow", index=False)
        except ImportError:
            raise ImportError('parquet needs pyarrow: pip install "tokinterp[text]", or write .csv') from None
        return len(found)
    strings = found.columns[found.dtypes.map(lambda t: t.kind == "O")]
    safe = found.assign(**{c: found[c].map(for_cell) for c in strings})
    with replacing(path) as new, new.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        safe.to_csv(file, index=False)
    return len(found)
