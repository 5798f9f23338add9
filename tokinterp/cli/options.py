"""What several commands read from the command line: models, texts, layers, shares."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..settings import check

if TYPE_CHECKING:
    from ..models.hooks import HookedLM
    from ..text.prompts import Prompts

BUNDLED = "bundled"


def choose_bos(text: str) -> bool | str:
    """Return the setting of `Prompts.from_texts` for auto, yes or no."""
    if text not in ("auto", "yes", "no"):
        raise ValueError(f"--bos {text}: write auto, yes or no")
    return {"yes": True, "no": False}.get(text, "auto")


def whole_path(name: str) -> str:
    """Return the absolute path of what exists on disk, and any other name as it is."""
    path = Path(os.path.expanduser(name))
    return str(path.resolve()) if path.exists() else name


def parse_share(text: str) -> tuple[int, int]:
    """Return (i, n) of ``"i/n"``, or of this task of a SLURM job array for ``"slurm"``.

    Raises
    ------
    ValueError
        For anything else; for an array with gaps, or no array.
    """
    if text == "slurm":
        names = [f"SLURM_ARRAY_TASK_{n}" for n in ("ID", "MIN", "MAX", "COUNT")]
        found = [os.environ.get(n, "") for n in names]
        if not all(v.isdecimal() for v in found):
            raise ValueError("--share slurm: this is no task of a SLURM job array (sbatch --array=0-7); write I/N")
        at, low, high, n = map(int, found)
        if high - low + 1 != n:
            raise ValueError(f"--share slurm: the array has {n} tasks from {low} to {high}: use one without gaps")
        return at - low, n
    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise ValueError(f"--share {text}: write I/N with I from 0 to N - 1, for example 0/4, or slurm")
    return int(i), int(n)


def load_named(name: str, **settings: Any) -> HookedLM:
    """Load a model by name, folder, or ``"bundled"``."""
    from ..models import load_model

    return load_model(name, **settings)


def check_named(name: str, **settings: Any) -> None:
    """Refuse a model that cannot be loaded, as far as its folder and config say it, before anything is read."""
    from ..models import check_source

    check_source(name, **settings)


def read_named(texts: str, reading: dict[str, Any], cutting: dict[str, Any]) -> list[str]:
    """Read the texts of a file, a dataset, or ``"bundled"``, with options that prompts can be made with later."""
    from ..text import Prompts, bundled_texts
    from ..text.files import read_texts

    check(Prompts.from_texts, **cutting)
    if texts != BUNDLED:
        return read_texts(texts, **reading)
    check(read_texts, **reading)
    if reading["split"] is not None:
        raise ValueError(f"split={reading['split']}: the bundled texts have no splits; leave it out")
    return [t.text for t in bundled_texts()][: reading["limit"]]


def make_prompts(texts: list[str], model: HookedLM | Any, cutting: dict[str, Any]) -> Prompts:
    """Make prompts of the texts of a file; empty ones are dropped and counted."""
    from ..text import Prompts

    return Prompts.from_texts(texts, model, on_empty="drop", **cutting)


def parse_layers(text: str) -> list[int]:
    """Return the layers of ``"0,4,8-10"``.

    Raises
    ------
    ValueError
        For anything else.
    """
    out: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", part.strip())
        if not found or int(found[2] or found[1]) < int(found[1]):
            raise ValueError(f"--layers {text}: write numbers and ranges, for example 0,4,8 or 0-12")
        out += range(int(found[1]), int(found[2] or found[1]) + 1)
    return out
