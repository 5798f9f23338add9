"""The papers whose methods a result uses."""

from __future__ import annotations

import xarray as xr

from ..settings import checked, instance


@checked(data=instance("Dataset", "DataTree"))
def cite(data: xr.Dataset | xr.DataTree) -> str:
    """Return what to cite for results: each source, and the quantities that are defined there.

    Parameters
    ----------
    data : Dataset or DataTree
        A result, or a whole run.

    Examples
    --------
    >>> import tokinterp as ti
    >>> asked = {"curvature": ti.geometry.Curvature(layers=[0, 4])}
    >>> print(cite(ti.measure(ti.load_model(), ["The Nile flows north."], asked, progress=False)))
    Henaff et al. 2019, Nat. Neurosci. 22, 984; Hosseini and Fedorenko 2023, arXiv 2311.04930: curvature
    Skean et al. 2025, arXiv 2502.02013, code: curvature_absolute
    """
    sets = [data] if isinstance(data, xr.Dataset) else [n.to_dataset(inherit=False) for n in data.subtree]
    found: dict[str, list[str]] = {}
    for ds in sets:
        for name, v in ds.variables.items():
            for source in [s for s in (v.attrs.get("references"),) if s]:
                found.setdefault(str(source), []).append(str(name))
    said = [f"{source}: {', '.join(dict.fromkeys(names))}" for source, names in found.items()]
    return "\n".join(said) or "no variable of this result names a source"
