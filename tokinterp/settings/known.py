"""Kinds by name: a seed, a path, texts, layers, a model; and what the name or the class of a parameter stands for."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace as changed
from typing import Any

import numpy as np

from .kinds import (
    LARGEST,
    Kind,
    Refused,
    count,
    has,
    instance,
    is_tensor,
    mapping,
    names,
    number,
    numbered,
    of,
    one_of,
    pair,
    several,
)


def _take_result(value: Any) -> Any:
    kinds = {c.__name__ for c in type(value).__mro__}
    if "DataTree" in kinds:
        held = [value] if len(value.data_vars) else [n for n in value.subtree if len(n.data_vars)]
        measured = [n for n in held if "measurement" in n.attrs]  # beside them: the table of the prompts
        if len(one := measured or held) == 1:
            return one[0].to_dataset()
        inside = ", ".join(repr(n.path.strip("/")) for n in one) or "nothing"
        first = one[0].path.strip("/") if one else "lens"
        raise Refused(f"a whole run holds several results: give one of {inside}, for example run[{first!r}]")
    if "Dataset" not in kinds:
        raise Refused
    if not len(value.variables):
        raise Refused("it is empty: give one result, for example run['lens']")
    return value


def _take_texts(value: Any) -> Any:
    """Take a list of texts; what holds texts among other things says how to get at them."""
    kind = type(value).__name__
    if isinstance(value, str | bytes):
        raise Refused("one string is not a list of texts: write [text] for a single one")
    if isinstance(value, Mapping) or hasattr(value, "columns") or hasattr(value, "column_names"):
        columns: Any = value if isinstance(value, Mapping) else getattr(value, "column_names", None)
        named = [str(c) for c in (getattr(value, "columns", ()) if columns is None else columns)]
        field = "text" if "text" in named or not named else named[0]
        name = "df" if kind == "DataFrame" else "texts"
        raise Refused(f"a {kind} is not a list of texts: give one column of it, {name}[{field!r}]")
    if hasattr(value, "data_vars") or isinstance(value, type):
        raise Refused
    if hasattr(value, "read"):
        raise Refused("an open file is not a list of texts: write Prompts.from_file(path, model)")
    if isinstance(value, set | frozenset):
        raise Refused("a set has no order: give a list of texts")
    if kind == "Prompts" or getattr(value, "ndim", 1) != 1 or not isinstance(value, Iterable):
        raise Refused
    return value.tolist() if isinstance(value, np.ndarray) else value


def _take_string(value: Any) -> str:
    if not isinstance(value, str):
        raise Refused
    check_unicode(value)
    return str(value)


def check_unicode(text: str) -> None:
    """Refuse a text with half of a surrogate pair, which is no character and has no bytes."""
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise Refused(
            f"a lone surrogate ({text[e.start]!a}) at character {e.start} is not Unicode text: repair it with "
            "text.encode('utf-8', 'replace').decode()"
        ) from None


def _take_path(value: Any) -> Any:
    if not isinstance(value, str | os.PathLike) or not str(value).strip() or "\0" in str(value):
        raise Refused
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        raise Refused("the name of a file has no lone surrogates") from None
    return value


def _as_array(value: Any) -> np.ndarray:
    """Return a list as an array; a ragged one, or one of things that are no numbers, is none."""
    try:
        return np.array(value)
    except (ValueError, TypeError, OverflowError):
        raise Refused from None


def _array(kinds: str) -> Callable[[Any], np.ndarray]:
    """Take a one-dimensional array of a kind of number, or a list that is one."""

    def take(value: Any) -> np.ndarray:
        given = _as_array(value) if isinstance(value, list | tuple) and len(value) else value
        if isinstance(value, list | tuple) and not len(value):
            given = np.zeros(0, np.str_ if kinds == "U" else np.int64)
        if not isinstance(given, np.ndarray) or given.ndim != 1 or (given.dtype.kind not in kinds and given.size):
            raise Refused
        return given

    return take


def _take_places(value: Any) -> Any:
    if isinstance(value, slice):
        return value
    given = _as_array(value) if isinstance(value, list | tuple) and len(value) else value
    given = np.asarray(given) if is_tensor(given) else given
    if isinstance(given, list | tuple):
        return np.zeros(0, np.int64)
    if not isinstance(given, np.ndarray) or given.ndim != 1 or given.dtype.kind not in "biu":
        raise Refused
    return given


def _take_positions(value: Any) -> Any:
    if value is None or isinstance(value, slice) or (callable(value) and not isinstance(value, type)):
        return value
    if is_tensor(value) and str(value.dtype) == "torch.bool":
        return value
    if isinstance(value, np.ndarray) and value.dtype == bool and value.ndim == 1:
        return value
    if isinstance(value, str) and value:
        return value
    if isinstance(value, np.ndarray) or is_tensor(value):
        value = value.reshape(-1).tolist()
    single = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return integer.take(value) if single else several(integer).take(value)


def _take_measurements(value: Any) -> Any:
    if not isinstance(value, Mapping) or not value:
        raise Refused("no measurement: give a dictionary such as {'lens': tokinterp.lens.LogitLens()}")
    for name, m in value.items():
        if "Measurement" not in {c.__name__ for c in type(m).__mro__}:
            kind = type(m).__name__
            raise Refused(f"{name!r} is a {kind}, not a measurement: write for example tokinterp.lens.LogitLens()")
        if not isinstance(name, str) or not name.isidentifier() or name.startswith("_") or name == "prompts":
            raise Refused(
                f"measurement name {name!r} becomes a group of the result beside 'prompts': use letters, digits and _"
            )
    return value


def _take_strings(value: Any) -> list[str]:
    given = list(_take_texts(value))
    for n, text in enumerate(given):
        if not isinstance(text, str):
            raise Refused(f"text {n} is {type(text).__name__}, not a string: leave it out")
        try:
            check_unicode(text)
        except Refused as way:
            raise Refused(f"text {n}: {way}") from None
    return given


def _take_kept_texts(value: Any) -> Any:
    given = _take_texts(value)
    if isinstance(given, list | tuple) and not all(isinstance(t, str) for t in given):
        raise Refused(f"text {[isinstance(t, str) for t in given].index(False)} is no string")
    return given


def _take_some_strings(value: Any) -> list[str]:
    if not (given := _take_strings(value)):
        raise Refused("the list of texts is empty: give at least one text")
    return given


def _take_device(value: Any) -> Any:
    import torch

    if isinstance(value, torch.device):
        return value
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Refused
    try:
        torch.device(value)
    except (RuntimeError, ValueError, OverflowError):
        raise Refused from None
    return value


def _is_dtype(value: Any) -> bool:
    import torch

    return isinstance(getattr(torch, value, None) if isinstance(value, str) else value, torch.dtype)


def _take_colours(value: Any) -> str:
    from matplotlib import colormaps

    if not isinstance(value, str) or value not in colormaps:
        raise Refused
    return value


def _encodes(name: str) -> bool:
    try:
        return "a".encode(name) is not None
    except (LookupError, ValueError):
        return False


anything = Kind("anything", lambda value: value)
none = of("None", lambda v: v is None)
flag = of("True or False", lambda v: isinstance(v, bool | np.bool_), bool)
string = Kind("a string", _take_string)
path = Kind("a path", _take_path)
function = Kind("a function", of("", callable).take)
integer = count(-LARGEST, LARGEST)
ascending = several(count(1), ascending=True)
ranks = Kind(
    "ascending numbers from 1 on, such as (1, 10, 30)",
    lambda v: ascending.take([v] if isinstance(v, int | np.integer) else v),
)
scales = Kind(
    "ascending powers of two from 2 on, such as (2, 4, 8)",
    of("", lambda v: all(n > 1 and not n & (n - 1) for n in ascending.take(v)), ascending.take).take,
)
word = of("letters, digits, - and _", lambda v: isinstance(v, str) and re.fullmatch(r"[\w-]+", v), str)
seed = count(0, LARGEST, " from 0 on")
fraction = number(0, 1)
level = number(above=0, below=1)
positive = number(above=0)
result = Kind("a Dataset: one result, for example run['lens']", _take_result, TypeError)
model = of(
    "a model: ti.load_model(name) or ti.wrap(lm)",
    lambda v: hasattr(v, "info") and (hasattr(v, "run") or hasattr(v, "tokenizer")),
    None,
    TypeError,
)
tokenizer = of(
    "a Hugging Face tokenizer: ti.load_tokenizer(name)", has("convert_ids_to_tokens", "get_vocab"), None, TypeError
)
probes = of(
    "probes from ti.erasure.fit_probes or TokenProbes.load", has("layers", "offsets", "labels"), None, TypeError
)
texts = Kind("a list of texts", _take_texts, TypeError)
strings = Kind("a list of texts", _take_strings, TypeError)
kept_texts = Kind("a list of texts", _take_kept_texts, TypeError)
some_strings = Kind("a list of texts", _take_some_strings, TypeError)
question = instance("Question") | pair(string, string)
source = path | several(path, 1) | of("a Hugging Face dataset", has("column_names"))
array = instance("ndarray")
whole = Kind("an array of whole numbers, one for each", _array("iu"), TypeError)
words = Kind("an array of strings, one for each", _array("U"), TypeError)
sequences = several(several(count()))
places = Kind("a bool array, or a list of whole numbers", _take_places, TypeError)
prompts = instance("Prompts")
positions = Kind(
    "a position, a list or slice of them, a bool mask, a bool for each token of the run, the name of a mark, a "
    "function of (ids, mask)",
    _take_positions,
)
measurements = Kind("a dictionary such as {'lens': tokinterp.lens.LogitLens()}", _take_measurements)
device = Kind("a device such as 'cpu', 'cuda' or 'cuda:1'", _take_device)
share = Kind(
    "(i, n): whole numbers, i from 0 to n - 1",
    of("", lambda v: (i := pair(count(), count(1)).take(v))[0] < i[1], pair(count(), count(1)).take).take,
)
dtype = of(
    "'float32', 'bfloat16', 'float16' or 'auto'",
    lambda v: _is_dtype(v) or str(v) == "auto",
)
encoding = of("the name of an encoding, such as 'utf-8' or 'latin-1'", lambda v: isinstance(v, str) and _encodes(v))
colours = Kind("the name of a matplotlib colormap, such as 'viridis'", _take_colours)
layers = numbered("layer")
blocks = numbered("block")
exclude = names("special", "massive")

LIKE: dict[str, Kind] = {
    "layers": layers, "other_layers": layers, "blocks": blocks, "seed": seed, "level": level, "exclude": exclude,
    "batch_tokens": count(1, LARGEST), "max_tokens": count(1, LARGEST), "memory": count(1, 2**53),
    "n_boot": count(1, 10**6), "draws": count(1, 10**6), "tokenizer": tokenizer,
    "offsets": several(integer, once=True),
    "rule": one_of("norm", "sun2024"), "factor": number(above=1), "small": one_of("error", "nan"),
    "encoding": encoding, "scales": scales, "device": device, "dtype": dtype, "texts": texts,
    "questions": several(question), "head_questions": several(question),
    "demonstrations": several(question), "task": instance("Task"),
    "lm": instance("Module"), "trunks": mapping(instance("Module")),
    "store": path, "path": path, "file": path, "folder": path, "checkpoint_every": number(0), "cmap": colours,
    "height": positive,
    "other": result | mapping(result, 1),
}  # fmt: skip
"""Kinds that go with a name wherever it is used."""
ALIASES: dict[str, Kind] = {
    "Any": anything, "object": anything, "int": count(0), "float": number(), "str": string, "bool": flag, "None": none,
    "Path": path, "Callable": function, "Judge": function, "Mapping": mapping(), "dict": mapping(),
    "Model": model, "HookedLM": model,
    "Site": changed(instance("Site"), says="a site, such as tokinterp.Site('resid', 4)"),
    "Dataset": result, "Tensor": instance("Tensor"), "ndarray": instance("ndarray"), "Probes": probes,
    "Axes": instance("Axes", "_AxesBase"), "Positions": positions, "Measurements": measurements, "Tokens": tokenizer,
    "Other": result | mapping(result, 1),
    "Prompts": prompts, "Spelled": prompts, "Prompts | Sequence[str]": prompts | some_strings,
    "Sequence[str] | Prompts": prompts | some_strings,
    "Edit": instance("SiteEdit", "KnockOut", "KeepOnly", "Patch", "Renumber"),
}  # fmt: skip
"""Kinds of annotations; every other name is that of a class."""
