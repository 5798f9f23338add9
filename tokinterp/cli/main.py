"""The application: commands are found in this folder, and their errors are one line."""

from __future__ import annotations

import functools
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module, metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from ..files.escape import say
from ..run.signals import at_once
from .refusals import Usage, about_option, asked, is_usage

LOOK: dict[str, Any] = {
    "no_args_is_help": True, "add_completion": False, "rich_markup_mode": None, "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}  # fmt: skip
ENDS = "Exit codes: 0 done; 1 failed; 2 a command that cannot be carried out as given; 128 + the number of a signal."


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; what the ``tokinterp`` script calls.

    Parameters
    ----------
    arguments : sequence of str, optional
        Instead of those of the process.

    Raises
    ------
    SystemExit
        Always: 0 if all went well, 1 if the work failed and 2 if the command cannot be carried out as it is given (one
        line on stderr), 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP, 138 after SIGUSR1: what was finished is
        kept.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is loaded, which no command has done yet
    given = list(sys.argv[1:] if arguments is None else arguments)
    asked.words, asked.traceback = [a for a in given if a != "--traceback"], "--traceback" in given
    application()(args=asked.words, prog_name="tokinterp")


def application() -> typer.Typer:
    """Return the application with the commands of all modules of this folder."""
    app = typer.Typer(name="tokinterp", epilog=ENDS, **{**LOOK, "add_completion": True})
    app.callback()(options)
    for name in sorted(m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)])):
        module = import_module(f"{__package__}.{name}") if name != "main" else None
        on = app
        if about := getattr(module, "GROUP", None):
            on = typer.Typer(name=name, help=about, **LOOK)
            app.add_typer(on, short_help=about)
        for run in getattr(module, "COMMANDS", ()):
            about, kind = (run.__doc__ or "").partition("\n")[0], getattr(run, "command_class", None)
            on.command(run.__name__.replace("_", "-"), cls=kind, short_help=about)(quiet(run))
    return app


def say_version(wanted: bool) -> None:
    """Say the version and end."""
    if wanted:
        say(f"tokinterp {metadata.version('tokinterp')}")
        raise typer.Exit


def options(
    version: Annotated[
        bool, typer.Option("--version", help="Say the version.", callback=say_version, is_eager=True)
    ] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show the whole traceback of an error.")] = False,
) -> None:
    """What happens to a token inside a language model: measure, look, report."""


def quiet(run: Callable[..., None]) -> Callable[..., None]:
    """Return a command whose errors are one line on stderr."""

    @functools.wraps(run)
    def one(*args: Any, **kwargs: Any) -> None:
        try:
            with at_once("the same command goes on with what is kept"):
                run(*args, **kwargs)
        except typer.Exit:
            raise
        except BrokenPipeError:  # of `| head`: nobody reads on
            sys.stdout = None
            raise typer.Exit(141) from None
        except KeyboardInterrupt as stop:
            told = str(stop).removeprefix("stopped").lstrip("; ")
            say(f"\nstopped{': ' + told if told else ''}", err=True)
            raise typer.Exit(getattr(stop, "code", None) or 130) from None
        except Exception as error:
            if asked.traceback:
                traceback.print_exc()
            message = about_option(" ".join(str(error).split()) or type(error).__name__, run, kwargs)
            usage = isinstance(error, Usage) or is_usage(error, message, run)
            if not isinstance(error, ValueError | OSError | ImportError | RuntimeError | TypeError):
                message = f"{type(error).__name__}: {message} (--traceback shows where)"
            say(f"error: {message}", err=True)
            raise typer.Exit(2 if usage else 1) from None

    return one


if __name__ == "__main__":
    main()
