"""The command line: measure, measurements, fit-probes, vocabulary, report, plot, show, load, demo."""

from __future__ import annotations

import functools
import inspect
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import scan
from ..files.escape import say
from ..run.signals import at_once
from ..settings import check, one_of
from . import erasure as cli_erasure
from . import fillers as fillers_cli
from .measurements import (
    MeasureCommand,
    about_option,
    asked,
    make_measurements,
    measurement_class,
    settings_of,
)
from .options import check_named, choose_bos, load_named, make_prompts, parse_share, read_named, whole_path
from .output import demo_folder, draw_all, figure_folder

if TYPE_CHECKING:
    from ..models import HookedLM
    from ..text.prompts import Prompts

app = typer.Typer(
    name="tokinterp",
    help="What happens to a token inside a language model: measure, look, report.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
_show_traceback = False


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; what the ``tokinterp`` script calls.

    Parameters
    ----------
    arguments : sequence of str, optional
        Instead of those of the process.

    Raises
    ------
    SystemExit
        Always: 0 if all went well, 1 after an error (one line on stderr), 2 for a command that cannot be read, 130
        after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP, 138 after SIGUSR1: what was finished is kept.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if "--traceback" in given:  # wherever it stands
        given = ["--traceback", *(a for a in given if a != "--traceback")]
    asked[:] = given
    app(args=given, prog_name="tokinterp")


@app.callback()
def options(
    traceback: Annotated[bool, typer.Option("--traceback", help="Show the whole traceback of an error.")] = False,
) -> None:
    """What happens to a token inside a language model: measure, look, report."""
    global _show_traceback
    _show_traceback = traceback


def command(run: Callable[..., None], on: typer.Typer | None = None, kind: Any = None) -> Callable[..., None]:
    """Register a command, by default of ``tokinterp`` itself, whose errors are one line on stderr."""

    @functools.wraps(run)
    def quiet(*args: Any, **kwargs: Any) -> None:
        try:
            with at_once("the same command goes on with what is kept"):
                run(*args, **kwargs)
        except typer.Exit:
            raise
        except KeyboardInterrupt as stop:
            told = str(stop).removeprefix("stopped").lstrip("; ")
            say(f"\nstopped{': ' + told if told else ''}", err=True)
            raise typer.Exit(getattr(stop, "code", None) or 130) from None
        except Exception as error:
            if _show_traceback:
                traceback.print_exc()
            message = " ".join(str(error).split()) or type(error).__name__
            message = about_option(message, run, kwargs)
            if not isinstance(error, ValueError | OSError | ImportError | RuntimeError | TypeError):
                message = f"{type(error).__name__}: {message} (--traceback shows where)"
            say(f"error: {message}", err=True)
            raise typer.Exit(1) from None

    return (app if on is None else on).command(cls=kind)(quiet)


# -- commands -------------------------------------------------------------------------------------------------
ModelName = Annotated[str, typer.Argument(help="Name on the Hugging Face hub, local folder, or 'bundled'.")]
Store = Annotated[Path, typer.Argument(help="Result of a run, RUN.zarr.")]
Backend = Annotated[str, typer.Option(help="hf, transformer_lens or nnsight.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or auto.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; by default a GPU if there is one.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")]


def measure(
    model: ModelName,
    texts: Annotated[
        str, typer.Argument(help="File of texts (txt, jsonl, json, csv, parquet), dataset, or 'bundled'.")
    ],
    measurement: Annotated[
        list[str],
        typer.Option(
            "-m", "--measurement", help="What to measure, several times; `tokinterp measurements` lists what there is."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Store to write, RUN.zarr.")],
    settings: Annotated[
        list[str], typer.Option("--set", help="Setting of a measurement, NAME.SETTING=VALUE: dimension.scales=[2,4]")
    ] = [],  # noqa: B006
    layers: Annotated[str | None, typer.Option(help="Layers, for example 0,4,8 or 0-12; all by default.")] = None,
    probes: Annotated[
        Path | None, typer.Option(help="Folder that fit-probes wrote, for erasure and probe_scores.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest prompt; by default the model's context.")] = None,
    min_tokens: Annotated[int, typer.Option(help="Shorter prompts are dropped, and counted.")] = 1,
    on_long: Annotated[
        str, typer.Option(help="What happens to a longer text: truncate, window or error.")
    ] = "truncate",
    stride: Annotated[int | None, typer.Option(help="Tokens between the starts of two windows.")] = None,
    bos: Annotated[str, typer.Option(help="Whether prompts begin with BOS: auto, yes or no.")] = "auto",
    limit: Annotated[int | None, typer.Option(help="Read only so many texts.")] = None,
    field: Annotated[str, typer.Option(help="Field or column with the text.")] = "text",
    per_line: Annotated[bool, typer.Option(help="One text per line of a txt file.")] = False,
    split: Annotated[str | None, typer.Option(help="Split of a dataset.")] = None,
    batch_tokens: Annotated[int | None, typer.Option(help="Padded tokens per batch.")] = None,
    checkpoint_every: Annotated[float, typer.Option(help="Seconds between two checkpoints.")] = 60.0,
    share: Annotated[
        str, typer.Option(help="Run only part I/N of the prompts, I from 0; 'slurm': by the job array's task.")
    ] = "0/1",
    backend: Backend = "hf",
    dtype: Dtype = None,
    device: Device = None,
    device_map: Annotated[str | None, typer.Option(help="auto: spread the model over several GPUs.")] = None,
    revision: Revision = None,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code from the model's repository.")] = False,
) -> None:
    """Run a model over texts once and measure; the same command after a crash or Ctrl-C goes on."""
    from ..results import tables
    from ..run.engine import check_store
    from ..run.engine import measure as run_measure

    part = parse_share(share)
    check(run_measure, batch_tokens=batch_tokens, checkpoint_every=checkpoint_every)
    output = check_store(output, "--output")
    asked = make_measurements(measurement, settings, layers, probes)
    place = {"backend": backend, "dtype": dtype, "device": device, "device_map": device_map, "revision": revision}
    reading = {"field": field, "limit": limit, "per_line": per_line, "split": split}
    cutting: dict[str, Any] = {
        "min_tokens": min_tokens, "max_tokens": max_tokens, "stride": stride,
        "on_long": on_long if stride is None else "window", "bos": choose_bos(bos),
    }  # fmt: skip
    check_named(model, **place, trust_remote_code=trust_remote_code)
    found = read_named(texts, reading, cutting)
    loaded = load_named(model, **place, trust_remote_code=trust_remote_code)
    prompts = make_prompts(found, loaded, cutting)
    say(f"{loaded}\n{prompts}", err=True)
    options = {**reading, **cutting, "max_tokens": max_tokens or loaded.info.max_tokens}
    command = {"model": whole_path(model), "revision": revision, "texts": whole_path(texts), "prompts": options}
    run = run_measure(
        loaded, prompts, asked, store=output, batch_tokens=batch_tokens, checkpoint_every=checkpoint_every, share=part,
        notes={"command": json.dumps(command, sort_keys=True)},
    )  # fmt: skip
    if not run.children:
        return  # other shares are still to run, as measure() has said
    say(tables.summary_text(run))
    say(f"written to {output}; look at it with: tokinterp report {output} -o report.html", err=True)


command(measure, kind=MeasureCommand)


@command
def measurements(
    name: Annotated[str | None, typer.Argument(help="One of them: its settings.", show_default=False)] = None,
) -> None:
    """List the measurements, or the settings of one, with what they may be."""
    from ..results import tables

    if name is not None:
        kind = measurement_class(name)
        say(f"{name}: {inspect.getdoc(kind).partition(chr(10))[0]}\n")  # pyright: ignore[reportOptionalMemberAccess]
        say(tables.columns(settings_of(name)))
        say(f"\ngiven as --set {name}.SETTING=VALUE, the value as JSON: [2,4], 0.5, true, null, or a word")
        return
    about = [(n, (inspect.getdoc(k) or "").partition("\n")[0]) for n, k in scan.measurements().items()]
    say(tables.columns(about))


@command
def report(
    run: Store,
    output: Annotated[Path, typer.Option("-o", "--output", help="HTML file to write.")] = Path("report.html"),
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
    max_prompts: Annotated[int, typer.Option(help="Texts shown.")] = 24,
    max_megabytes: Annotated[float, typer.Option(help="Size of the texts and their values.")] = 12.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the page that is there.")] = False,
) -> None:
    """Write one self-contained HTML page of a run: figures, tables, provenance, coloured texts."""
    from ..files.paths import new_file
    from ..results.report import report as write_report

    output = new_file(output, overwrite)
    path = write_report(run, output, title=title, max_prompts=max_prompts, max_megabytes=max_megabytes)
    say(f"written to {path} ({path.stat().st_size / 1e6:.1f} MB)")


@command
def plot(
    run: Store,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the figures.")] = Path("figures"),
    format: Annotated[str, typer.Option(help="png, pdf or svg.")] = "png",
    prompt: Annotated[int | None, typer.Option(help="Prompt whose tokens are drawn.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace figures that are there.")] = False,
) -> None:
    """Draw what to look at first in every result of a run."""
    from ..results.stores import read

    one_of("png", "pdf", "svg")("format", format)
    output = figure_folder(output, format, overwrite)
    for path in draw_all(read(run), output, format, prompt):
        say(str(path))


@command
def show(run: Store) -> None:
    """Say what is in a run, or how far an unfinished run has come."""
    from ..files.paths import local_path
    from ..results import tables
    from ..results.stores import read
    from ..run.checkpoint import partial_folder

    run = local_path(run, "RUN")
    if not run.exists() and partial_folder(run).exists():
        say(tables.unfinished_text(run))
        return
    say(tables.summary_text(read(run)))


@command
def load(
    model: ModelName, backend: Backend = "hf", dtype: Dtype = None, device: Device = None, revision: Revision = None
) -> None:
    """Load a model, prove its sites by value, and say what it is and what it offers."""
    from dataclasses import asdict

    from ..results import tables
    from ..run.sites import SITES
    from ..settings.describe import numbered

    loaded = load_named(model, backend=backend, dtype=dtype, device=device, revision=revision)
    say(tables.columns([(k, v) for k, v in asdict(loaded.info).items()]))
    say("\nsites, verified by value:")
    places = {s: f"{'layers' if s == 'resid' else 'blocks'} {numbered(at)}" for s, at in loaded.offered.items()}
    say(tables.columns([(s, f"{places[s]}: {SITES[s]}") for s in SITES if s in loaded.offers]))
    if lacking := [s for s in SITES if s not in loaded.offers]:
        say(f"not offered by {loaded.info.architecture}: {', '.join(lacking)}")


@command
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", "--out", help="Folder to write to.")] = Path(
        "tokinterp-demo"
    ),
) -> None:
    """Measure the bundled model on the bundled texts: a report and figures, in about a minute.

    The folder must be new, empty, or that of an earlier demo, whose numbers are then used again.
    """
    from ..results import tables
    from ..results.report import report as write_report
    from ..run.engine import measure as run_measure

    output = demo_folder(output)
    model, prompts = demo_input()
    say(f"{model}\n{prompts}", err=True)
    asked = make_measurements(["dimension", "spectrum", "lens"], [], None)
    run = run_measure(model, prompts, asked, store=output / "run.zarr")
    say(tables.summary_text(run))
    page = write_report(run, output / "report.html")
    figures = draw_all(run, output / "figures")
    say(f"\n{page}: open it in a browser\n{output / 'figures'}: {len(figures)} figures")
    say(f"{output / 'run.zarr'}: the numbers, for tokinterp.read()")


# -- what they are made of ------------------------------------------------------------------------------------


def demo_input() -> tuple[HookedLM, Prompts]:
    """Return the model and prompts of the demo: the bundled ones."""
    from ..models import load_model
    from ..text import Prompts, bundled_texts

    model = load_model(device="cpu")
    texts = [t.text for t in bundled_texts("article")][:24]
    return model, Prompts.from_texts(texts, model, max_tokens=400, progress=False)


for _run in (cli_erasure.fit_probes, cli_erasure.vocabulary):
    command(_run)
app.add_typer(fillers_cli.app)
for _run in fillers_cli.COMMANDS:
    command(_run, fillers_cli.app)

if __name__ == "__main__":
    main()
