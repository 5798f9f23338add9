"""The measurements of the command line: their names, settings, what a command asks of them, and its refusals."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from typer.core import TyperCommand
from typer.models import OptionInfo

from .. import scan
from ..settings import like
from . import erasure as cli_erasure
from .options import parse_layers

if TYPE_CHECKING:
    from ..run.measurement import Measurement


class MeasureCommand(TyperCommand):
    """``tokinterp measure``: its help also says the settings of the measurements that are named before --help."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the settings of each measurement named, or how to see them."""
        names = [n for flag, n in pairwise(asked) if flag in ("-m", "--measurement")]
        for name in [n for n in names if scan.measurement(n)]:
            with formatter.section(f"Settings of {name} (--set {name}.SETTING=VALUE)"):
                formatter.write_dl(settings_of(name))
        if not names:
            formatter.write_paragraph()
            formatter.write_text(
                "The settings of a measurement: tokinterp measurements NAME, or measure -m NAME --help."
            )


asked: list[str] = []
"""The words of the command line, for the help of a command, which comes before they are read."""


def settings_of(name: str) -> list[tuple[str, str]]:
    """Return the settings of a measurement, each with its default and what it may be."""
    made: Any = measurement_class(name).__init__
    out = []
    for parameter in inspect.signature(made).parameters.values():
        if parameter.name != "self":
            needed = parameter.default is parameter.empty
            default = "needed" if needed else f"default: {json.dumps(parameter.default, default=repr)}"
            out.append((parameter.name, f"{made.__kinds__[parameter.name].says}  [{default}]"))
    return out


def measurement_class(name: str) -> type[Measurement]:
    """Return the measurement of that name: ``topic.module``, or ``module`` where only one topic has one.

    Raises
    ------
    ValueError
        If there is none; lists those that there are.
    """
    if found := scan.measurement(name):
        return found
    there = scan.measurements()
    if several := [n for n in there if n.partition(".")[2] == name]:
        raise ValueError(f"measurement={name}: write which one: {' or '.join(several)}")
    short = {n.partition(".")[2]: n for n in there}
    raise ValueError(
        f"measurement={name}: unknown measurement: there are {', '.join(there)}{like(name, [*short, *there])}"
    )


def group_names(names: Sequence[str]) -> dict[str, str]:
    """Return what each measurement's result is called: the last part of its name, or all of it where that is taken.

    Raises
    ------
    ValueError
        If a measurement is named twice.

    Examples
    --------
    >>> group_names(["geometry.dimension", "lens"])
    {'geometry.dimension': 'dimension', 'lens': 'lens'}
    """
    kinds = [measurement_class(name) for name in names]
    if twice := [n for k, n in enumerate(names) if kinds[k] in kinds[:k]]:
        raise ValueError(f"-m {twice[0]} is given twice: name each measurement once")
    last = [name.rpartition(".")[2] for name in names]
    return {n: s if last.count(s) == 1 else n.replace(".", "_") for n, s in zip(names, last, strict=True)}


def make_measurements(
    names: Sequence[str], settings: Sequence[str], layers: str | None, probes: Path | None = None
) -> dict[str, Measurement]:
    """Return measurements by name, with settings given as ``NAME.SETTING=VALUE``, and the probes they need.

    Raises
    ------
    ValueError
        For a measurement that there is not, an option or a setting that it does not have or does not take.
    """
    called = group_names(names)
    kinds = {called[name]: measurement_class(name) for name in names}
    known = {name: list(inspect.signature(kind).parameters) for name, kind in kinds.items()}
    given: dict[str, dict[str, Any]] = {n: {} for n in kinds}
    for text in settings:
        key, equals, value = text.partition("=")
        asked_of, dot, setting = key.rpartition(".")
        name = called.get(asked_of, asked_of)
        if not (equals and dot) or name not in given:
            raise ValueError(f"--set {text}: write NAME.SETTING=VALUE, with a name among {', '.join(given)}")
        if setting not in known[name] or setting in given[name]:
            wrong = "is given twice" if setting in given[name] else f"{name} has no setting {setting}"
            raise ValueError(f"--set {text}: {wrong}; it has {', '.join(known[name])}{like(setting, known[name])}")
        try:
            given[name][setting] = json.loads(value)
        except (json.JSONDecodeError, RecursionError):
            given[name][setting] = value
    chosen_layers = None if layers is None else parse_layers(layers)
    if lacking := [n for n in kinds if "layers" not in known[n] and layers is not None]:
        raise ValueError(
            f"--layers {layers}: {lacking[0]} has no such setting; it has {', '.join(known[lacking[0]])}: measure it "
            "in a run of its own, or give the others --set NAME.layers=[0,4]"
        )
    if probes is not None and not any("probes" in known[n] for n in kinds):
        raise ValueError(f"--probes {probes}: {', '.join(names)} reads no probes; leave it out")
    out = {}
    for name, chosen in given.items():
        defaults: dict[str, Any] = {} if layers is None else {"layers": chosen_layers}
        if "probes" in known[name]:
            defaults["probes"] = cli_erasure.load_probes(name, probes)
        if "small" in known[name]:  # a file of texts has short ones: NaN and counted, where the library would refuse
            defaults["small"] = "nan"
        try:
            out[name] = kinds[name](**{**defaults, **chosen})
        except (TypeError, ValueError) as error:
            of_set = str(error).partition("=")[0] in chosen
            raise ValueError(f"--set {name}.{error}" if of_set else str(error)) from None
    return out


# -- refusals -------------------------------------------------------------------------------------------------
ALSO = {
    "store": ("output",), "path": ("texts", "run", "items"), "name_or_folder": ("model",),
    "save_seconds": ("checkpoint_every",), "measurement": ("name",), "validation": ("val",),
    "max_bytes": ("max_gigabytes",), "offset": ("offsets",),
}  # fmt: skip
"""Parameters of the library that have another name on the command line."""


def about_option(message: str, run: Callable[..., None], given: dict[str, Any]) -> str:
    """Return what the library says of a parameter, ``max_tokens=0: ...``, as said of the command's option.

    A message that begins with neither is said of the option whose value stands in it.
    """
    flags = flags_of(run)
    held = {name: {str(v) for v in (value if isinstance(value, list) else [value])} for name, value in given.items()}
    inner = re.match(r"(path|store|file|folder)='(.*?)': ", message)  # of a function: another option may hold the place
    if inner and inner[2] not in held.get(inner[1], ()) and any(inner[2] in values for values in held.values()):
        message = message[inner.end() :]
    if found := re.match(r"(\w+) ?= ?", message):
        for name in (found[1], found[1].removesuffix("s"), *ALSO.get(found[1], ())):
            if name in flags:
                return f"{flags[name]} {message[found.end() :]}"
    if re.match(r"--?[a-zA-Z]", message) or message.startswith(tuple(f"{flag} " for flag in flags.values())):
        return message
    usual = inspect.signature(run).parameters
    for name, value in given.items():
        if name in flags and value != usual[name].default:
            for one in value if isinstance(value, list) else [value]:
                said = re.escape(" ".join(str(Path(one)).split())) if isinstance(one, str | Path) and str(one) else ""
                if said and re.search(rf"(?<!\w){said}(?!\w)", message):
                    return f"{flags[name]} {one}: {message}"
    return message


def flags_of(run: Callable[..., None]) -> dict[str, str]:
    """Return what each parameter of a command is called on the command line: ``--max-tokens``, or ``RUN``."""
    out = {}
    for name, hint in get_type_hints(run, include_extras=True).items():
        for info in getattr(hint, "__metadata__", ()):
            if not isinstance(info, OptionInfo):
                out[name] = name.upper()
                continue
            written = (info.default, *(info.param_decls or ()))  # typer keeps the first name as the default
            out[name] = [f"--{name.replace('_', '-')}", *(w for w in written if isinstance(w, str))][-1]
    return out
