"""Scores of heads in the files of the authors of the dual-route model: read, and written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...files.paths import local_path
from ...settings import checked, mapping, short

KEYS = {"layer", "head_idx", "score"}


@checked()
def read_head_scores(path: str | Path) -> dict[str, np.ndarray]:
    """Read a file of scores of all heads of a model.

    Parameters
    ----------
    path : path
        JSON: a list of ``{"layer": 0, "head_idx": 0, "score": 0.1}``, a mapping of names to such lists, or a list of
        ``[layer, head]``, the best head first.

    Returns
    -------
    dict of str to numpy.ndarray
        (block, head) float64 by name; ``"score"`` of a list by itself; ``"rank"``, 0 for the best head, of a ranking.

    Raises
    ------
    ValueError
        If the file is none of these, or has a head twice or not at all.
    FileNotFoundError
        If there is no such file.

    References
    ----------
    github.com/sfeucht/dual-route-induction, folder ``cache``.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "a.json")
    ...     _ = file.write_text("[[0, 1], [0, 0]]")
    ...     read_head_scores(file)["rank"].tolist()
    [[1.0, 0.0]]
    """
    path = local_path(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"path: {path.name}: not a JSON file of head scores ({error})") from None
    if isinstance(found, list) and found and isinstance(found[0], list):
        rows = [{"layer": r[0], "head_idx": r[1], "score": n} for n, r in enumerate(found) if len(r) == 2]
        return {"rank": _grid(path, "the ranking", rows if len(rows) == len(found) else [])}
    if isinstance(found, list):
        return {"score": _grid(path, "the list", found)}
    if not isinstance(found, dict) or not found:
        raise ValueError(f"path: {path.name}: {short(found)}: give a list of scores, or lists by name")
    return {name: _grid(path, name, rows) for name, rows in found.items()}


def _grid(path: Path, name: str, rows: Any) -> np.ndarray:
    """Return (block, head) of a list of scores."""
    where = f"path: {path.name}, {name}: "
    good = isinstance(rows, list) and rows
    if not good or not all(isinstance(r, dict) and set(r) == KEYS for r in rows):
        raise ValueError(f"{where}give for each head layer, head_idx and score")
    places = [(r["layer"], r["head_idx"]) for r in rows]
    if not all(type(n) is int and n >= 0 for pair in places for n in pair):
        raise ValueError(f"{where}layer and head_idx are numbers from 0")
    if not all(type(r["score"]) in (int, float) for r in rows):
        raise ValueError(f"{where}a score is not a number")
    shape = tuple(max(p[i] for p in places) + 1 for i in (0, 1))
    if len(set(places)) != len(places) or len(places) != shape[0] * shape[1]:
        raise ValueError(f"{where}{len(rows)} scores for {shape[0]} blocks of {shape[1]} heads: give each head once")
    out = np.empty(shape)
    out[tuple(np.array(places).T)] = [r["score"] for r in rows]
    return out


@checked(scores=mapping())
def write_head_scores(path: str | Path, scores: Mapping[str, Any]) -> None:
    """Write scores of all heads as `read_head_scores` reads them.

    Parameters
    ----------
    path : path
        The file; replaced if it is there.
    scores : mapping of str to array_like
        (block, head) by name; what is called ``"score"`` alone is written as a list by itself, and ``"rank"`` as a
        ranking.  The authors call attention scores ``next_tok_attn`` and ``end_tok_attn``.

    Raises
    ------
    ValueError
        For scores of another shape, or that are not finite.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "a.json")
    ...     write_head_scores(file, {"score": [[0.5, 0.25]]})
    ...     file.read_text()
    '[{"layer": 0, "head_idx": 0, "score": 0.5}, {"layer": 0, "head_idx": 1, "score": 0.25}]'
    """
    made: dict[str, Any] = {}
    for name, given in scores.items():
        grid = np.asarray(given, dtype=np.float64)
        if grid.ndim != 2 or not grid.size or not np.isfinite(grid).all():
            raise ValueError(f"scores[{name!r}]={short(given)}: give (block, head) finite numbers")
        if name == "rank":
            order = np.argsort(grid, axis=None, kind="stable")
            made[name] = np.stack(np.unravel_index(order, grid.shape), 1).tolist()
        else:
            made[name] = [{"layer": b, "head_idx": h, "score": grid[b, h].item()} for b, h in np.ndindex(*grid.shape)]
    alone = len(made) == 1 and {*made} <= {"score", "rank"}
    if "rank" in made and not alone:
        raise ValueError("scores: a ranking has a file of its own: write rank by itself")
    Path(path).write_text(json.dumps(next(iter(made.values())) if alone else made), encoding="utf-8")
