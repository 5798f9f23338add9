"""What is done with results: show, report, plot, export, merge."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from ..files.escape import say
from . import options as o
from .refusals import Usage

if TYPE_CHECKING:
    import xarray as xr

FORMATS = ("png", "pdf", "svg")


def show(run: o.Run) -> None:
    """Say what is in a result, or how far an unfinished run has come."""
    from ..files.paths import local_path
    from ..results.remote import address
    from ..results.stores import read
    from ..results.tables import summary_text, unfinished_text
    from ..run.facts import unfinished_folder

    if address(run, "RUN") is not None:
        say(summary_text(read(run)))
        return
    run = local_path(run, "RUN")
    folder = unfinished_folder(run)
    say(summary_text(read(run)) if folder is None else unfinished_text(run, folder))


def report(
    run: o.Run,
    output: Annotated[Path, Option("-o", "--output", help="HTML file to write.")] = Path("report.html"),
    title: Annotated[str | None, Option(help="Heading of the page.")] = None,
    max_prompts: Annotated[int, Option(help="Texts shown.")] = 24,
    max_megabytes: Annotated[float, Option(help="Size of the texts and their values.")] = 3.0,
    overwrite: o.Overwrite = False,
) -> None:
    """Write one self-contained HTML page of a run: figures, tables, provenance, coloured texts."""
    from ..files.paths import new_file
    from ..results.report import report as write_report

    output = new_file(output, overwrite)
    path = write_report(run, output, title=title, max_prompts=max_prompts, max_megabytes=max_megabytes)
    say(f"written to {path} ({path.stat().st_size / 1e6:.1f} MB)")


def plot(
    run: o.Run,
    output: Annotated[Path, Option("-o", "--output", help="Folder for the figures.")] = Path("figures"),
    format: Annotated[str, Option(help="png, pdf or svg.")] = "png",
    prompt: Annotated[int | None, Option(help="Prompt whose tokens are drawn.")] = None,
    overwrite: o.Overwrite = False,
) -> None:
    """Draw what to look at first in every result of a run."""
    from ..results.stores import read

    output = figure_folder(output, format, overwrite)
    for path in draw_all(read(run), output, format, prompt):
        say(str(path))


def export(
    run: o.Run,
    output: Annotated[Path, Option("-o", "--output", help="File to write: .csv or .parquet (tables), .nc, .zarr.")],
    result: Annotated[list[str], Option("--result", help="Of these results only, several times.")] = [],  # noqa: B006
    variable: Annotated[list[str], Option("--variable", help="These variables only, several times.")] = [],  # noqa: B006
    overwrite: o.Overwrite = False,
) -> None:
    """Write a result for other programs: a table with a row for each value and its labels, or netCDF.

    The table is that of tokinterp.table(run): result, variable, the labels of the place, value (or text) and unit.
    """
    from ..files.paths import new_file, new_place
    from ..results.long_table import write_table
    from ..results.stores import read, write

    if output.suffix not in (".csv", ".parquet", ".nc", ".zarr"):
        raise Usage(f"--output {output}: write .csv, .parquet, .nc or .zarr")
    table = output.suffix in (".csv", ".parquet")
    output = new_file(output, overwrite) if table else new_place(output, overwrite)
    tree = read(run)
    if wrong := [n for n in result if n not in tree.children]:
        raise Usage(f"--result {wrong[0]}: {run} has {', '.join(tree.children)}")
    if result:
        tree = tree.filter(lambda node: not node.level or node.path.split("/")[1] in result)
    if not table:
        if variable:
            raise Usage(f"--variable {variable[0]}: {output.suffix} has whole results; choose them with --result")
        write(tree, output, overwrite=overwrite)
    else:
        say(f"{write_table(tree, output, variable or None):,} rows", err=True)
    say(f"written to {output}", err=True)


def merge(
    runs: Annotated[list[Path], Argument(help="Results of the same measurements on other prompts, or shares.")],
    output: o.Output,
    drop_pooled: Annotated[
        bool, Option("--drop-pooled", help="Leave out what was summed over all prompts of a run.")
    ] = False,
    keep_repeated: Annotated[
        bool, Option("--keep-repeated", help="Count a prompt that is in several runs in each of them.")
    ] = False,
    overwrite: o.Overwrite = False,
) -> None:
    """Join runs over different prompts into one result; or the shares (--share i/n) of one run of several machines."""
    from ..files.paths import new_place
    from ..results.joining import join_runs
    from ..results.stores import read, write
    from ..run.facts import partial_folder
    from ..run.shares import gather_shares

    if unfinished := [r for r in runs if not r.exists() and partial_folder(r).is_dir()]:
        if len(unfinished) < len(runs):
            raise Usage(f"RUNS {unfinished[0]} is unfinished: end it with the command that began it")
        missing = gather_shares(runs, output)
        left = f"still to run: shares {missing}" if missing else "the command of any share, with this -o, ends the run"
        say(f"shares gathered in {partial_folder(output)}; {left}", err=True)
        return
    output = new_place(output, overwrite)
    pooled, repeated = "drop" if drop_pooled else "error", "keep" if keep_repeated else "error"
    write(join_runs([read(r) for r in runs], pooled, repeated), output, overwrite=overwrite)
    say(f"written to {output}", err=True)


COMMANDS = (show, report, plot, export, merge)


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
    from ..settings import one_of

    one_of(*FORMATS)("format", format)
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
    from ..plots.heatmaps import prompt_of
    from ..results.tables import named_results

    paths = []
    if prompt is not None:
        known = {int(n) for ds in named_results(run).values() if "token" in ds.dims for n in prompt_of(ds)}
        if prompt not in known:
            there = f"they have those of {min(known)} to {max(known)}" if known else "measure with tokens=None"
            raise ValueError(f"prompt={prompt}: the results have no value per token of this prompt: {there}")
    for name, ds in named_results(run).items():
        for figure, _, fig in plots.draw(ds, prompt):
            stem = name.replace("/", "_")
            stem = stem if figure == stem else f"{stem}_{figure.removeprefix(stem + '_')}"
            stem = re.sub(r"[^\w.+-]", "_", stem)  # names of a result are no paths
            paths.append(plots.save(fig, folder / f"{stem}.{format}"))
    if not paths:
        raise ValueError("nothing to draw: the run has no results of measurements")
    return paths
