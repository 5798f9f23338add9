"""The commands ``tokinterp fillers ...``; registered by ``cli.main``, which also turns errors into one line."""

from __future__ import annotations

from collections.abc import Callable

import typer

from .fillers_frozen import attention, insert
from .fillers_tasks import probe, train

app = typer.Typer(
    name="fillers",
    help="Filler tokens: train on Match3 and Match2, probe the dots, insert fillers into frozen models.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


COMMANDS: tuple[Callable[..., None], ...] = (train, probe, insert, attention)
"""What becomes a command of the sub-application; add a function here."""
