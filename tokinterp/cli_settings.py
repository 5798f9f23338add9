"""The measurements of the command line: their names, settings, what a command asks of them, and its refusals."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from typer.core import TyperCommand
from typer.models import OptionInfo

from . import cli_erasure
from .settings import like

if TYPE_CHECKING:
    from .measurements.base import Measurement

MEASUREMENTS = {
    "dimension": "IntrinsicDimension",
    "overlap": "NeighbourOverlap",
    "imbalance": "InformationImbalance",
    "graph": "NeighbourGraph",
    "cosine": "CosineSimilarity",
    "logit_dimension": "LogitDimension",
    "spectrum": "Spectrum",
    "lens": "LogitLens",
    "linearity": "Linearity",
    "nonlinearity": "TokenNonlinearity",
    "recall": "PrefixRecall",
    "piece_attention": "PieceAttention",
    "erasure": "ErasureScores",
    "probe_scores": "ProbeScores",
    "similarity": "LayerSimilarity",
    "entropy": "MatrixEntropy",
    "curvature": "Curvature",
    "norms": "TokenNorms",
    "sinks": "FirstTokenAttention",
    "pooled": "PooledStates",
}
"""Name on the command line, which is that of the module in ``measurements/`` -> class."""


class MeasureCommand(TyperCommand):
    """``tokinterp measure``: its help also says the settings of the measurements that are named before --help."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the settings of each measurement named, or how to see them."""
        names = [n for flag, n in pairwise(asked) if flag in ("-m", "--measurement")]
        for name in [n for n in names if n in MEASUREMENTS]:
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
    """Return the measurement of that name.

    Raises
    ------
    ValueError
        If there is none; lists those that there are.
    """
    if name not in MEASUREMENTS:
        raise ValueError(
            f"measurement={name}: unknown measurement: there are {', '.join(MEASUREMENTS)}{like(name, MEASUREMENTS)}"
        )
    return getattr(import_module(f".measurements.{name}", __package__), MEASUREMENTS[name])


def make_measurements(
    names: Sequence[str], settings: Sequence[str], layers: str | None, probes: Path | None = None
) -> dict[str, Measurement]:
    """Return measurements by name, with settings given as ``NAME.SETTING=VALUE``, and the probes they need.

    Raises
    ------
    ValueError
        For a measurement that there is not, an option or a setting that it does not have or does not take.
    """
    if twice := [n for k, n in enumerate(names) if n in names[:k]]:
        raise ValueError(f"-m {twice[0]} is given twice: name each measurement once")
    kinds = {name: measurement_class(name) for name in names}
    known = {name: list(inspect.signature(kind).parameters) for name, kind in kinds.items()}
    given: dict[str, dict[str, Any]] = {n: {} for n in names}
    for text in settings:
        key, equals, value = text.partition("=")
        name, dot, setting = key.partition(".")
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
    if lacking := [n for n in names if "layers" not in known[n] and layers is not None]:
        raise ValueError(
            f"--layers {layers}: {lacking[0]} has no such setting; it has {', '.join(known[lacking[0]])}: measure it "
            "in a run of its own, or give the others --set NAME.layers=[0,4]"
        )
    if probes is not None and not any("probes" in known[n] for n in names):
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
