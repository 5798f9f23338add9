"""What is refused inside a function, said of the argument that it was given."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .kinds import like, short


def said_of(error: Exception, given: Mapping[str, Any], places: set[str]) -> Exception:
    """Return an error as said of one of the arguments given: what some function inside says, it says of its own.

    Parameters
    ----------
    error : KeyError, ValueError, TypeError or OSError
        What was raised.
    given : mapping of str to object
        The arguments.
    places : set of str
        Those that are paths.

    Returns
    -------
    Exception
        The error itself, if it is in its own words already.
    """
    if isinstance(error, KeyError):
        return _lacking(error, given)
    if type(error) in (ValueError, TypeError) and re.match(NO_ARRAY, str(error)):
        for name, value in given.items():
            inside = list(value.values()) if isinstance(value, Mapping) else [value]
            if not hasattr(value, "data_vars") and not all(map(_is_array, inside)):
                return type(error)(f"{name}={short(value)}: give an array, or lists of one length")
    if isinstance(error, OSError):
        return _of_place(error, {n: given[n] for n in given if n in places})
    if type(error) is ValueError:
        said = _of_place(error, {n: given[n] for n in given if n in places})
        if said is error and (message := _of_value(str(error), given)) != str(error):
            error.args = (message,)
        error = said
    if type(error) in (ValueError, TypeError) and "\n" in str(error):
        error.args = (_one_line(str(error), given),)
    return error


NO_ARRAY = "setting an array element with a sequence|cannot directly convert an xarray.Dataset"
"""What numpy and xarray say of what is no array."""


def _is_array(value: Any) -> bool:
    try:
        return np.asarray(value) is not None
    except (ValueError, TypeError):
        return False


def _one_line(message: str, given: Mapping[str, Any]) -> str:
    """Return a message with the strings that were given written as Python writes them."""
    for value in given.values():
        for text in value if isinstance(value, list | tuple) else [value]:
            if isinstance(text, str | os.PathLike) and len(str(text).splitlines()) > 1:
                message = message.replace(str(text), repr(str(text))[1:-1])
    return message


def _of_place(error: Exception, given: Mapping[str, Any]) -> Any:
    """Return an error as said of the path that it shows."""
    number = [error.errno] if isinstance(error, OSError) and error.errno is not None else []
    message = str((isinstance(error, OSError) and error.strerror) or error)
    shown = f"{message} {getattr(error, 'filename', None) or ''}"
    if type(error).__module__ != "builtins" or _names(message, given):
        return error
    for name, value in given.items():
        if not isinstance(value, str | os.PathLike) or not any(_shows(shown, p) for p in _written(value)):
            continue
        place = f"={short(str(value), 240)}: "
        own = re.match(rf"\w+{re.escape(place)}", message)
        said = f"{name}{place}{_one_line(message.removeprefix(own[0] if own else ''), given)}"
        return type(error)(*number, said)
    return error


def _written(path: Any) -> set[str]:
    """Return the ways in which messages write a path."""
    try:
        whole = Path(path).expanduser()
        return {os.fspath(path), str(Path(path)), str(whole), str(whole.absolute()), str(whole.resolve())}
    except (OSError, RuntimeError, ValueError):
        return {os.fspath(path)}


def _shows(message: str, path: str) -> bool:
    return bool(re.search(rf"(?<![\w.]){re.escape(path)}(?![\w.])", message))


def _names(message: str, given: Mapping[str, Any]) -> bool:
    return any(re.search(rf"\b{name}(\[.*?\])?=", message) for name in given)


def _results(given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield every result among the arguments, alone or inside a list or a dictionary, and what it is called."""
    for name, value in given.items():
        inside = value.items() if isinstance(value, Mapping) and not hasattr(value, "data_vars") else ()
        inside = enumerate(value) if isinstance(value, list | tuple) else inside
        for called, one in ((name, value), *((f"{name}[{k!r}]", v) for k, v in inside)):
            if hasattr(one, "data_vars"):
                yield called, one


def _lacking(error: KeyError, given: Mapping[str, Any]) -> Exception:
    """Return the error for a name that a result does not have: what it is said of, and what there is."""
    missing = error.args[0] if error.args else None
    if among := re.search(r"not all values found in index '(\w+)'", str(missing)):
        return _absent(among[1], given) or error
    quoted = re.match(r"No variable named '(.*)'\. |'(.*)' is not a valid dimension or coordinate", str(missing))
    wanted = next((g for g in quoted.groups() if g is not None), missing) if quoted else missing
    results = dict(_results(given))
    others = [n for n, ds in results.items() if isinstance(wanted, str) and wanted not in ds.variables]
    for name, value in given.items() if len(others) in (0, len(results)) else ():
        forms = (value, value.partition(".")[0], repr(value)[1:-1]) if isinstance(value, str) else (value,)
        if type(value) is type(wanted) and wanted in forms:  # xarray quotes names, and reads a dot as a part
            known = [str(n) for ds in results.values() for n in ds.variables] if isinstance(wanted, str) else []
            there = f"; there are {', '.join(known)}{like(wanted, known)}" if known else ""
            return ValueError(f"{name}={short(value)}: the result has no such value{there}")
    for name in others:
        ds = results[name]
        kind = ds.attrs.get("measurement", "another measurement")
        return ValueError(
            f"{name}={short(ds)}: it is a result of {kind} and has no {wanted!r}; there are "
            f"{', '.join(map(str, ds.variables)) or 'no variables'}: give the result that this function draws or reads"
        )
    return error


def _absent(dim: str, given: Mapping[str, Any]) -> ValueError | None:
    """Return the error for a value that a dimension of a result does not have, said of the argument that asks."""
    held = (ds[dim].values.tolist() for _, ds in _results(given) if dim in ds.coords)
    known = next(held, [])
    for name, value in given.items():
        plain = _plain(value)
        asked = plain if isinstance(plain, list) else [plain]
        alike = {type(v) for v in asked} & {type(v) for v in known}
        if alike and not {*map(repr, asked)} <= {*map(repr, known)}:
            way = like(asked[0], known) if isinstance(asked[0], str) else ""
            return ValueError(f"{name}={short(plain)}: there are {dim} {', '.join(map(str, known))}{way}")
    return None


def _of_value(message: str, given: Mapping[str, Any]) -> str:
    """Return a refusal as said of the argument whose value it shows, or of the result that lacks something."""
    results = list(_results(given))
    lost = re.search(r"no variable '(\w+)'", message)
    lacking = [(n, ds) for n, ds in results if lost and lost[1] not in ds.variables]
    alone = lacking if len(lacking) < len(results) else []  # another result has it
    if message.startswith(f"{alone[0][0]}=") if alone else _names(message, given):
        return message
    head = re.match(r"\w+=", message)
    for name, value in given.items() if not alone else ():
        shown = short(plain := _plain(value))
        parts = [v for v in plain if isinstance(v, str)] if isinstance(plain, list) else []
        if any(repr(part) in message for part in parts) or (isinstance(plain, str | list | dict) and shown in message):
            return f"{name}={shown}: {message.removeprefix(f'{head[0]}{shown}: ' if head else '')}"
    listed = [(n, ds) for n, ds in results if _lists(message, ds)]
    for name, ds in (lacking or listed or (results if len(results) == 1 and not head else []))[:1]:
        return f"{name}={short(ds)}: {message.removeprefix(f'name={lost[1]!r}: ' if lost else '')}"
    return message


def _lists(message: str, ds: Any) -> bool:
    """Whether a message says what a result has."""
    ends = (", ".join(map(str, names)) for names in (ds.variables, ds.data_vars, ds.dims))
    return any(names and (f"there are {names}" in message or f"in {names}" in message) for names in ends)


def _plain(value: Any) -> Any:
    return value.tolist() if type(value).__name__ == "ndarray" else list(value) if isinstance(value, tuple) else value
