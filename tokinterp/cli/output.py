"""Where the commands write: folders that are checked before the work, and the figures of a run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray as xr

FORMATS = ("png", "pdf", "svg")
DEMO = "demo.txt"
"""Marks a folder as that of a demo."""


def demo_folder(folder: Path) -> Path:
    """Return the folder of a demo, marked as one, so that a later demo may write into it again.

    Raises
    ------
    FileExistsError
        If something else is in it.
    """
    from ..files.paths import new_path
    from ..files.whole import write_text

    found = new_path(folder, "--output")
    mark = found / DEMO
    if not mark.is_file():
        if found.exists() and not (found.is_dir() and not any(found.iterdir())):
            raise FileExistsError(f"--output {found}: something is there that no demo wrote; give another name")
        write_text(mark, "Written by tokinterp demo, which replaces what it wrote here when it is called again.\n")
    return found


def figure_folder(folder: Path, format: str, overwrite: bool) -> Path:
    """Return the folder for figures, before any is drawn.

    Raises
    ------
    ValueError
        For a format that is not offered.
    FileExistsError
        If it has files of this format, which may not be replaced.
    """
    from ..files.paths import new_path

    if format not in FORMATS:
        raise ValueError(f"--format {format}: write {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    found = new_path(folder, "--output")
    if found.exists() and not found.is_dir():
        raise FileExistsError(f"--output {found} is a file: give the name of a folder")
    if not overwrite and (there := sorted(p.name for p in found.glob(f"*.{format}"))):
        raise FileExistsError(
            f"--output {found} has {format} files already ({there[0]}): give another folder, or --overwrite to "
            "replace those of the same names"
        )
    return found


def draw_all(run: xr.DataTree, folder: Path, format: str = "png", prompt: int | None = None) -> list[Path]:
    """Save the figures of every result of a run and return their paths."""
    from .. import plots
    from ..plots.tokens import prompt_of
    from ..results.tables import named_results

    paths = []
    if prompt is not None:
        known = {int(n) for ds in named_results(run).values() if "token" in ds.dims for n in prompt_of(ds)}
        if prompt not in known:
            there = f"they have those of {min(known)} to {max(known)}" if known else "measure with tokens=None"
            raise ValueError(f"prompt={prompt}: the results have no value per token of this prompt: {there}")
    for name, ds in named_results(run).items():
        for figure, _, fig in plots.overview(ds, prompt):
            stem = name.replace("/", "_")
            stem = stem if figure == stem else f"{stem}_{figure.removeprefix(stem + '_')}"
            stem = re.sub(r"[^\w.+-]", "_", stem)  # names of a result are no paths
            paths.append(plots.save(fig, folder / f"{stem}.{format}"))
    if not paths:
        raise ValueError("nothing to draw: the run has no results of measurements")
    return paths
