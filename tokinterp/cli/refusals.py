"""What the library refuses, said of the option of the command line that it is about."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

from typer.models import OptionInfo

asked = SimpleNamespace(words=[], traceback=False)
"""The command line as it was given."""
ALSO = {
    "store": ("output",), "path": ("texts", "run", "items", "output"), "name_or_folder": ("model",),
    "measurement": ("name",), "validation": ("val",),
    "memory": ("max_gigabytes",),
}  # fmt: skip
"""Parameters of the library that have another name on the command line."""


class Usage(ValueError):  # noqa: N818
    """A command that cannot be carried out as it is given."""


def is_usage(error: Exception, message: str, run: Callable[..., None]) -> bool:
    """Whether an error is of the command as it was given, and not of the work: it names an option or an argument."""
    kinds = (ValueError, TypeError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)
    first = message.partition(" ")[0].rstrip(":")
    return isinstance(error, kinds) and (first.startswith("-") or first in flags_of(run).values())


def about_option(message: str, run: Callable[..., None], given: dict[str, Any]) -> str:
    """Return what the library says of a parameter, ``max_tokens=0: ...``, as said of the command's option.

    A message that begins with neither is said of the option whose value stands in it.
    """
    flags = flags_of(run)
    message = re.sub(r"^(--[\w-]+)=", r"\1 ", message)
    return _with_flags(_about(message, run, given, flags), flags)


def _with_flags(message: str, flags: dict[str, str]) -> str:
    """Return a message in which parameters are written as options: ``on_long="window"`` is --on-long window."""
    for name in flags:  # "name one with field="
        message = re.sub(rf"(?<![-\w.]){name}=(?=[,;]|$)", flags[name], message)
    for name in (n for n in flags if "_" in n):
        message = re.sub(rf"""(?<![-\w.]){name}=(["']?)([\w.-]+)\1(?=[\s,;.:]|$)""", rf"{flags[name]} \2", message)
        message = re.sub(rf"(?<![-\w.]){name}(?![\w=.])", flags[name], message)
    return message


def _about(message: str, run: Callable[..., None], given: dict[str, Any], flags: dict[str, str]) -> str:
    held = {name: {str(v) for v in (value if isinstance(value, list) else [value])} for name, value in given.items()}
    inner = re.match(r"(path|store|file|folder)='(.*?)': ", message)  # of a function: another option may hold the place
    if inner and inner[2] not in held.get(inner[1], ()) and any(inner[2] in values for values in held.values()):
        message = message[inner.end() :]
    if found := re.match(r"(\w+)(?: ?= ?|\[\d+\](?:=|: )|: )", message):
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
                    return f"{flags[name]} {one}: {message.removeprefix(f'{one}: ')}"
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
