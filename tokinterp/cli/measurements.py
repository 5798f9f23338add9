"""Measurements and fits by name, found in the topics: their settings, what they mean, and how they are given."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from .. import scan
from ..files.escape import say
from .options import parse_layers, parse_settings
from .refusals import Usage, asked

if TYPE_CHECKING:
    from ..models.base import Model
    from ..run.measurement import Measurement


def measurements(
    name: Annotated[str | None, typer.Argument(help="One of them: all about it.", show_default=False)] = None,
) -> None:
    """List the measurements and fits; or say of one its settings, what they may be and mean, its fields, its source."""
    from ..results.tables import columns

    if name is None:
        say("measurements, for: tokinterp measure -m NAME")
        say(columns([(n, first_line(kind)) for n, kind in scan.measurements().items()]))
        say("\nfits, for: tokinterp fit NAME")
        say(columns([(n, first_line(run)) for n, run in scan.fits().items()]))
        return
    fit = name in scan.fits() or any(n.partition(".")[2] == name for n in scan.fits())
    kind: Any = fit_called(name) if fit else measurement_class(name)
    given = "SETTING" if fit else f"{name}.SETTING"
    say(f"{name} ({kind.__name__}): {first_line(kind)}\n\nsettings, given as --set {given}=VALUE (JSON, or a word):")
    for setting, default, means in settings_of(kind):
        say(f"  {setting}  [{default}]\n      {means}")
    if fields := {n: f for n, f in getattr(kind, "fields", {}).items() if not n.startswith("_")}:
        say("\nfields of the result (dimensions, unit):")
        say(columns([(f"  {n}", f"{f.long_name} ({', '.join(f.dims)}; {f.units})") for n, f in fields.items()]))
        if sources := list(dict.fromkeys(f.references for f in fields.values() if f.references)):
            say("\nsources: " + "\n         ".join(sources))


COMMANDS = (measurements,)


class ShowsSettings(TyperCommand):
    """A command whose help also says the settings of the measurements that are named before --help."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the settings of each measurement named, or which there are and how to see their settings."""
        names = [n for flag, n in pairwise(asked.words) if flag in ("-m", "--measurement")]
        for name in [n for n in names if scan.measurement(n)]:
            with formatter.section(f"Settings of {name} (--set {name}.SETTING=VALUE)"):
                formatter.write_dl([(s, f"{means} [{d}]") for s, d, means in settings_of(measurement_class(name))])
        if not names:
            with formatter.section("Measurements"):
                formatter.write_text(", ".join(scan.measurements()))
                formatter.write_text("The settings of one: tokinterp measurements NAME, or measure -m NAME --help.")
                formatter.write_text("Given as --set NAME.SETTING=VALUE, or SETTING=VALUE for all that have it.")
                formatter.write_text("A VALUE is JSON ('[2,4]', quoted for the shell), 0,4-8, or a word; for what a "
                                     "fit left, its file or folder.")  # fmt: skip


# -- what there is --------------------------------------------------------------------------------------------
def first_line(described: Any) -> str:
    """Return the first line of a docstring."""
    return (inspect.getdoc(described) or "").partition("\n")[0]


def measurement_class(name: str) -> type[Measurement]:
    """Return the measurement of that name: ``topic.module``, or ``module`` where only one topic has one.

    Raises
    ------
    Usage
        If there is none, or several; lists them.
    """
    return scan.measurement(name) or _named("measurement", name, scan.measurements())


def fit_called(name: str) -> Callable[..., Any]:
    """Return the function that fits something, called ``topic.what`` or ``what``; raises as `measurement_class`."""
    return _named("kind", name.replace("-", "_"), scan.fits())


def _named(option: str, name: str, there: Mapping[str, Any]) -> Any:
    from ..settings import like

    found = [n for n in there if name in (n, n.partition(".")[2])]
    if len(found) == 1:
        return there[found[0]]
    if found:
        raise Usage(f"{option}={name}: write which one: {' or '.join(found)}")
    short = [n.partition(".")[2] for n in there]
    raise Usage(f"{option}={name}: unknown {option}: there are {', '.join(there)}{like(name, [*short, *there])}")


def parameters_of(made: Any) -> dict[str, inspect.Parameter]:
    """Return the settings of a measurement or a fit by name."""
    from ..settings import options_of

    own = {n: p for n, p in inspect.signature(made).parameters.items() if p.kind is not p.VAR_KEYWORD}
    return own | options_of(made)


GIVEN = ("model", "prompts", "validation", "store", "checkpoint_every", "batch_tokens", "progress", "memory")
"""Arguments of a fit that are options of ``tokinterp fit``."""


USUAL = {"small": "nan"}
"""Settings whose default is another on the command line: a file of texts has short ones, whose values are missing."""


def settings_of(made: Any) -> list[tuple[str, str, str]]:
    """Return the settings of a measurement or a fit: name, default, and what it means and may be."""
    kinds = getattr(made.__init__ if inspect.isclass(made) else made, "__kinds__", {})  # of one's own: perhaps none
    means, out = meanings(inspect.getdoc(made) or ""), []
    for name, p in parameters_of(made).items():
        if name in GIVEN and not inspect.isclass(made):
            continue
        usual = USUAL.get(name, p.default) if inspect.isclass(made) else p.default
        default = "needed" if usual is p.empty else f"default: {json.dumps(usual, default=repr)}"
        said = " ".join(x for x in (means.get(name, ""), f"Give {kinds[name].says}." if name in kinds else "") if x)
        out.append((name, default, said))
    return out


def meanings(doc: str) -> dict[str, str]:
    r"""Return what a numpy docstring says of each parameter.

    Examples
    --------
    >>> meanings("Do.\n\nParameters\n----------\na, b : int\n    Two\n    numbers.\n\nNotes\n-----\nNone.")
    {'a': 'Two numbers.', 'b': 'Two numbers.'}
    """
    part = re.search(r"^Parameters\n-+\n(.*?)(?=\n\n\w+\n-+\n|\Z)", doc, re.S | re.M)
    out: dict[str, str] = {}
    for block in re.split(r"\n(?=\S)", part[1]) if part else ():
        head, _, body = block.partition("\n")
        text = " ".join(body.replace("``", "").replace("`", "").split())
        out.update(dict.fromkeys((n.strip("* ") for n in head.partition(" :")[0].split(",")), text))
    return out


# -- how they are made ----------------------------------------------------------------------------------------
def group_names(names: Sequence[str]) -> dict[str, str]:
    """Return what each measurement's result is called: the last part of its name, or all of it where that is taken.

    Raises
    ------
    Usage
        If a measurement is named twice.

    Examples
    --------
    >>> group_names(["geometry.dimension", "lens"])
    {'geometry.dimension': 'dimension', 'lens': 'lens'}
    """
    kinds = [measurement_class(name) for name in names]
    if twice := [n for k, n in enumerate(names) if kinds[k] in kinds[:k]]:
        raise Usage(f"-m {twice[0]} is given twice: name each measurement once")
    last = [name.rpartition(".")[2] for name in names]
    return {n: s if last.count(s) == 1 else n.replace(".", "_") for n, s in zip(names, last, strict=True)}


def make_measurements(
    names: Sequence[str], settings: Sequence[str], layers: str | None = None, seed: int | None = None,
    load: Callable[[], Model] | None = None,
) -> dict[str, Measurement]:  # fmt: skip
    """Return measurements by name, with their settings; what a fit left is read from the file or folder given.

    Raises
    ------
    Usage
        For a measurement that there is not, an option or a setting that it does not have or does not take.
    """
    called = group_names(names)
    kinds = {called[name]: measurement_class(name) for name in names}
    known = {name: list(parameters_of(kind)) for name, kind in kinds.items()}
    given: dict[str, dict[str, Any]] = {n: {} for n in kinds}
    for of, setting, value in sorted(parse_settings(settings), key=lambda s: bool(s[0])):  # what names one wins
        has = [n for n in kinds if setting in known[n]]
        if of and called.get(of, of) not in kinds:
            raise Usage(f"--set {of}.{setting}: write NAME.SETTING=VALUE, with a name among {', '.join(kinds)}")
        on = [called.get(of, of)] if of else has
        if not {*on} <= {*has} or not on:
            raise _unknown(f"--set {of}.{setting}" if of else f"--set {setting}", setting, on or [*kinds], known)
        for n in on:
            given[n][setting] = value
    chosen = {} if layers is None else {"layers": parse_layers(layers)}
    if lacking := [n for n in kinds if layers is not None and "layers" not in known[n]]:
        raise Usage(
            f"--layers {layers}: {lacking[0]} has no such setting; it has {', '.join(known[lacking[0]])}: measure it "
            "in a run of its own, or give the others --set NAME.layers=0,4"
        )
    if seed is not None and not any("seed" in known[n] for n in kinds):
        raise Usage(f"--seed {seed}: {', '.join(kinds)} draws nothing; leave it out")
    out = {}
    for name, own in given.items():
        start = {**chosen, **({"seed": seed} if seed is not None and "seed" in known[name] else {})}
        start |= {s: v for s, v in USUAL.items() if s in known[name]}
        own = {s: read_fitted(kinds[name], s, v, load) for s, v in own.items()}
        needed = [s for s, p in parameters_of(kinds[name]).items() if p.default is p.empty and s not in own]
        if needed:
            raise Usage(
                f"-m {name} needs its setting {needed[0]}: --set {needed[0]}=VALUE{_made_by(kinds[name], needed[0])}"
            )
        try:
            out[name] = kinds[name](**{**start, **own})
        except (TypeError, ValueError) as error:
            of_set = str(error).partition("=")[0] in own
            raise Usage(f"--set {name}.{error}" if of_set else f"-m {name}: {error}") from None
    return out


def _unknown(said: str, setting: str, on: Sequence[str], known: Mapping[str, Sequence[str]]) -> Usage:
    from ..settings import like

    there = list(dict.fromkeys(s for n in on for s in known[n]))
    who = on[0] if len(on) == 1 else "none of these"
    has = f"{who} has no setting {setting}" if len(on) == 1 else f"{who} ({', '.join(on)}) has a setting {setting}"
    return Usage(f"{said}: {has}; there are {', '.join(there)}{like(setting, there)}")


def fitted_kinds() -> dict[str, tuple[str, Any]]:
    """Return, by the name of its class, what can be fitted: by which fit, and the class, which can load it."""
    out = {}
    for name, run in scan.fits().items():
        plain: Any = inspect.unwrap(run)
        out[str(plain.__annotations__["return"])] = (name, plain.__globals__[plain.__annotations__["return"]])
    return out


def fit_of(kind: type, setting: str) -> tuple[str, Any] | None:
    """Return which fit makes what a setting of a measurement takes, and its class; None for other settings."""
    words = re.findall(r"[A-Z]\w{3,}", str(parameters_of(kind)[setting].annotation))
    return next((found for name, found in fitted_kinds().items() if any(map(name.endswith, words))), None)


def _made_by(kind: type, setting: str) -> str:
    fit = fit_of(kind, setting)
    return f", with what tokinterp fit {fit[0].partition('.')[2]} wrote" if fit else ""


def read_fitted(kind: type, setting: str, value: Any, load: Callable[[], Model] | None = None) -> Any:
    """Return the value of a setting; what a fit left is read from where it was written.

    Raises
    ------
    Usage
        If nothing that was fitted is there.
    """
    fit = fit_of(kind, setting) if isinstance(value, str) else None
    if fit is None:
        return value
    there = Path(value).expanduser().exists()  # else said before a model is loaded
    try:
        return fit[1].load(value, load() if load and there else None)
    except (OSError, ValueError) as error:
        raise Usage(
            f"--set {setting}={value}: {error}: make one with tokinterp fit {fit[0].partition('.')[2]}"
        ) from error
