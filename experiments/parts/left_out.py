"""What a measurement of all prompts together finds without some of them: for the jackknife of what has no rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import xarray as xr

import tokinterp as ti
from tokinterp.results.dataset import bound_coord, variable
from tokinterp.results.stamp import derived
from tokinterp.stats.jackknife import jackknife_interval, left_out

GROUPS = 10
Asked = Mapping[str, ti.Measurement]


def without_each(
    model: ti.Model, prompts: ti.Prompts, asked: Asked, groups: Sequence[np.ndarray], size: int = 8
) -> Iterator[dict[str, xr.Dataset]]:
    """Yield the results without each group of prompt numbers; every prompt is run once.

    Examples
    --------
    >>> model, texts = ti.load_model(), ["One.", "A blue door.", "The Nile flows north to the sea."]
    >>> prompts, asked = ti.Prompts.from_texts(texts, model), {"spectrum": ti.geometry.Spectrum(layers=[4])}
    >>> found = without_each(model, prompts, asked, [np.array([0]), np.array([1, 2])])
    >>> [one["spectrum"].sizes["prompt"] for one in found]
    [2, 1]
    """
    sites = sorted({s for m in asked.values() for s in m.sites(model.info)})

    def read(numbers: np.ndarray) -> dict[str, ti.Measurement]:
        out = _begun(model, prompts, asked)
        for a in range(0, len(numbers), size):
            batch = ti.capture(model, prompts, numbers[a : a + size].tolist(), sites)
            for m in out.values():
                m.update(batch)
        return out

    parts = [read(numbers) for numbers in groups]
    rest = np.setdiff1d(np.arange(len(prompts)), np.concatenate(groups))  # never left out
    before = [read(rest) if len(rest) else _begun(model, prompts, asked)]
    for part in parts[:-1]:
        before.append(_joined(model, prompts, asked, [before[-1], part]))
    after: list[dict[str, ti.Measurement]] = [_begun(model, prompts, asked)]
    for part in parts[:0:-1]:
        after.append(_joined(model, prompts, asked, [after[-1], part]))
    for one, other in zip(before, after[::-1], strict=True):
        yield {name: m.result() for name, m in _joined(model, prompts, asked, [one, other]).items()}


def _begun(model: ti.Model, prompts: ti.Prompts, asked: Asked) -> dict[str, ti.Measurement]:
    out = {name: m.fresh() for name, m in asked.items()}
    for m in out.values():
        m.begin(model.info, prompts)
    return out


def _joined(model: ti.Model, prompts: ti.Prompts, asked: Asked, parts: Sequence[Asked]) -> dict[str, ti.Measurement]:
    out = _begun(model, prompts, asked)
    for part in parts:
        for name, m in out.items():
            if part[name].sums or part[name].rows:
                m.merge(part[name])
    return out


def linearity_spread(model: ti.Model, prompts: ti.Prompts, linearity: xr.Dataset, spectrum: xr.Dataset) -> xr.Dataset:
    """Return jackknife intervals over documents of what is fitted to all tokens at once.

    Parameters
    ----------
    linearity, spectrum : Dataset
        Of the model on these prompts: all rows as published, and the spectrum.

    Returns
    -------
    Dataset
        ``linearity`` and ``drop`` (linearity less that without the residual), mean over blocks, and ``anisotropy``
        (layer, subset), each with ``_interval``; NaN for fewer than 3 documents.
    """
    documents = np.unique(prompts.documents)
    removed = left_out(len(documents), GROUPS) if len(documents) > 1 else np.zeros((0, 1), dtype=int)
    asked = {"linearity": ti.linearity.Linearity(exclude=(), held_out=False),
             "spectrum": ti.geometry.Spectrum(components=1)}  # fmt: skip
    groups = [np.flatnonzero(np.isin(prompts.documents, documents[out])) for out in removed]
    parts = [_numbers(**found) for found in without_each(model, prompts, asked, groups)] if groups else []
    said = {
        "linearity": "linearity of all rows, mean over blocks",
        "drop": "linearity less that without the residual stream, mean over blocks",
        "anisotropy": "share of the largest eigenvalue of the covariance",
    }
    data = {}
    for name, whole in _numbers(linearity, spectrum).items():
        each = np.array([part[name] for part in parts])
        bounds = np.full((2, *whole.shape), np.nan)
        if len(parts):
            bounds = jackknife_interval(whole, each, removed.shape[1], len(documents))
        dims = ("layer", "subset") if whole.ndim else ()
        text = f"95% jackknife interval over {len(documents)} documents of the {said[name]}"
        data[name] = variable(dims, whole, said[name], "1")
        data[f"{name}_interval"] = variable(("bound", *dims), bounds, text, "1")
    coords = {**{c: spectrum[c] for c in ("layer", "relative_depth", "subset")}, "bound": bound_coord()}
    ds = xr.Dataset(data, coords, {"n_groups": len(documents), "groups": "documents"})
    return derived(ds, "linearity spread", [linearity, spectrum], {"groups": GROUPS})


def _numbers(linearity: xr.Dataset, spectrum: xr.Dataset) -> dict[str, np.ndarray]:
    score, bare = linearity["linearity"], linearity["linearity_without_residual"]
    return {
        "linearity": np.asarray(score.mean("block")), "drop": np.asarray((score - bare).mean("block")),
        "anisotropy": spectrum["anisotropy"].transpose("layer", "subset").values,
    }  # fmt: skip
