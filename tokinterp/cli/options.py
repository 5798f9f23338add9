"""What several commands take: models, texts, layers, settings; one type for each kind, and what is read from it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from .refusals import Usage

if TYPE_CHECKING:
    from ..models.hooks import HookedLM
    from ..text.prompts import Prompts

BUNDLED = "bundled"
Number = int | None
ModelName = Annotated[str, Argument(help="Name on the Hugging Face hub, local folder, or 'bundled'.")]
Texts = Annotated[str, Argument(help="File of texts (txt, jsonl, json, csv, parquet), dataset, or 'bundled'.")]
Run = Annotated[Path, Argument(help="Result of a run, RUN.zarr.")]
Output = Annotated[Path, Option("-o", "--output", help="Result to write, RUN.zarr.")]
Overwrite = Annotated[bool, Option("--overwrite", help="Replace what is there.")]
Settings = Annotated[list[str], Option("--set", help="A setting, several times: see the end of this page.")]
Layers = Annotated[str | None, Option(help="Layers, for example 0,4-8; all by default.")]
Seed = Annotated[Number, Option(help="Of what is drawn; 0 by default.")]
# -- how texts are read, and cut into prompts
Field = Annotated[str, Option(help="Field or column with the text.")]
Limit = Annotated[Number, Option(help="Read only so many texts.")]
PerLine = Annotated[bool, Option("--per-line", help="One text per line of a txt file.")]
Split = Annotated[str | None, Option(help="Split of a dataset.")]
MaxTokens = Annotated[Number, Option(help="Longest prompt; by default the model's context.")]
MinTokens = Annotated[int, Option(help="Shorter prompts are dropped, and counted.")]
OnLong = Annotated[str | None, Option(help="What happens to a longer text: truncate (default), window or error.")]
Stride = Annotated[Number, Option(help="Tokens between the starts of two windows; means --on-long window.")]
Bos = Annotated[str, Option(help="Whether prompts begin with BOS: auto, yes or no.")]
# -- how the model is loaded and run
Backend = Annotated[str, Option(help="hf, transformer_lens or nnsight.")]
Dtype = Annotated[str | None, Option(help="float32, bfloat16, float16 or auto.")]
Device = Annotated[str | None, Option(help="cpu, cuda, cuda:1; by default a GPU if there is one.")]
DeviceMap = Annotated[str | None, Option(help="auto: spread the model over several GPUs.")]
Revision = Annotated[str | None, Option(help="Branch, tag or commit on the hub.")]
TrustCode = Annotated[bool, Option("--trust-remote-code", help="Run code from the model's repository.")]
BatchTokens = Annotated[Number, Option(help="Padded tokens per batch.")]
CheckpointEvery = Annotated[float, Option(help="Seconds between two checkpoints.")]

READING = ("field", "limit", "per_line", "split")
CUTTING = ("min_tokens", "max_tokens", "stride", "on_long", "bos")
PLACE = ("backend", "dtype", "device", "device_map", "revision", "trust_remote_code")


class Input:
    """A model and texts as a command names them: refused as far as can be before the model is loaded, then loaded once.

    Parameters
    ----------
    model, texts : str
        Names.
    given : mapping
        The arguments of the command, of which ``READING``, ``CUTTING`` and ``PLACE`` are taken.
    others : str
        Further texts that are cut alike.
    """

    def __init__(self, model: str, texts: str, given: Mapping[str, Any], *others: str) -> None:
        from ..models import check_source

        self.model, self.texts = model, texts
        self.reading, self.cutting, self.place = ({k: given[k] for k in keys} for keys in (READING, CUTTING, PLACE))
        self.cutting["bos"] = choose_bos(given["bos"])
        self.cutting["on_long"] = given["on_long"] or ("truncate" if given["stride"] is None else "window")
        if given["stride"] is not None and self.cutting["on_long"] != "window":
            raise Usage(f"--stride {given['stride']}: --on-long {given['on_long']} makes no windows; leave one out")
        check_source(model, **self.place)
        self._found = [read_named(t, self.reading, self.cutting) for t in (texts, *others)]
        self._loaded: HookedLM | None = None

    def load(self) -> HookedLM:
        """Return the model."""
        if self._loaded is None:
            self._loaded = load_named(self.model, **self.place)
        return self._loaded

    def prompts(self) -> list[Prompts]:
        """Return the prompts of the texts, and of each of the others."""
        return [make_prompts(found, self.load(), self.cutting) for found in self._found]

    def command(self) -> str:
        """Return what a result says of the command that made it, so that its prompts can be made again."""
        cut = {**self.reading, **self.cutting, "max_tokens": self.cutting["max_tokens"] or self.load().info.max_tokens}
        said = {"model": whole_path(self.model), "revision": self.place["revision"], "texts": whole_path(self.texts)}
        return json.dumps({**said, "prompts": cut}, sort_keys=True)


def load_named(name: str, **settings: Any) -> HookedLM:
    """Load a model by name, folder, or ``"bundled"``."""
    from ..models import load_model

    return load_model(name, **settings)


def read_named(texts: str, reading: dict[str, Any], cutting: dict[str, Any]) -> list[str]:
    """Read the texts of a file, a dataset, or ``"bundled"``, with options that prompts can be made with later."""
    from ..settings import check
    from ..text import Prompts, bundled_texts
    from ..text.readers.files import read_texts

    check(Prompts.from_texts, **cutting)
    if texts != BUNDLED:
        return read_texts(texts, **reading)
    check(read_texts, **reading)
    for name, default in (("split", None), ("field", "text"), ("per_line", False)):
        if reading[name] != default:
            raise ValueError(f"{name}={reading[name]}: the bundled texts have none; leave it out")
    return [t.text for t in bundled_texts()][: reading["limit"]]


def make_prompts(texts: list[str], model: HookedLM | Any, cutting: dict[str, Any]) -> Prompts:
    """Make prompts of the texts of a file; empty ones are dropped and counted."""
    from ..text import Prompts

    return Prompts.from_texts(texts, model, on_empty="drop", **cutting)


def whole_path(name: str) -> str:
    """Return the absolute path of what exists on disk, and any other name as it is."""
    path = Path(os.path.expanduser(name))
    return str(path.resolve()) if path.exists() else name


# -- what is written in one word ------------------------------------------------------------------------------
def choose_bos(text: str) -> bool | str:
    """Return the setting of `Prompts.from_texts` for auto, yes or no."""
    from ..settings import one_of

    one_of("auto", "yes", "no")("bos", text)
    return {"yes": True, "no": False}.get(text, "auto")


def parse_layers(text: str, option: str = "--layers") -> list[int]:
    """Return the numbers of ``"0,4,8-10"``.

    Raises
    ------
    Usage
        For anything else.

    Examples
    --------
    >>> parse_layers("0,4-6")
    [0, 4, 5, 6]
    """
    out: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", part.strip())
        if not found or int(found[2] or found[1]) < int(found[1]):
            raise Usage(f"{option} {text}: write numbers and ranges, for example 0,4,8 or 0-12")
        out += range(int(found[1]), int(found[2] or found[1]) + 1)
    return out


def parse_share(text: str) -> tuple[int, int]:
    """Return (i, n) of ``"i/n"``, or of this task of a SLURM job array for ``"slurm"``.

    Raises
    ------
    Usage
        For anything else; for an array with gaps, or no array.
    """
    if text == "slurm":
        names = [f"SLURM_ARRAY_TASK_{n}" for n in ("ID", "MIN", "MAX", "COUNT")]
        found = [os.environ.get(n, "") for n in names]
        if not all(v.isdecimal() for v in found):
            raise Usage("--share slurm: this is no task of a SLURM job array (sbatch --array=0-7); write I/N")
        at, low, high, n = map(int, found)
        step = int(os.environ.get("SLURM_ARRAY_TASK_STEP") or 1)
        if high - low != step * (n - 1) or (at - low) % step:
            raise Usage(
                f"--share slurm: the array has {n} tasks from {low} to {high}: use one without gaps, or write I/N, "
                "such as $SLURM_ARRAY_TASK_ID/8 where some of 8 tasks run again"
            )
        return (at - low) // step, n
    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise Usage(f"--share {text}: write I/N with I from 0 to N - 1, for example 0/4, or slurm")
    return int(i), int(n)


def parse_settings(texts: Sequence[str]) -> list[tuple[str, str, Any]]:
    """Return (name, setting, value) of each ``NAME.SETTING=VALUE``; the name is empty where only SETTING is given.

    A value is JSON, ``[2,4]``, or else a word; lists of whole numbers may be written ``0,4-8``.

    Raises
    ------
    Usage
        For anything else, and what is given twice.
    """
    out: list[tuple[str, str, Any]] = []
    for text in texts:
        key, equals, value = text.partition("=")
        name, _, setting = key.rpartition(".")
        if not equals or not setting:
            raise Usage(f"--set {text}: write NAME.SETTING=VALUE, or SETTING=VALUE")
        if (name, setting) in [(n, s) for n, s, _ in out]:
            raise Usage(f"--set {text}: {setting} is given twice")
        try:
            out.append((name, setting, json.loads(value)))
        except (json.JSONDecodeError, RecursionError):
            numbers = re.fullmatch(r"[0-9]+([,-][0-9]+)+", value)
            out.append((name, setting, parse_layers(value, f"--set {key}") if numbers else value))
    return out
