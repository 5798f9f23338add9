"""Values as JSON types that are the same in every process, for the record of what decides the numbers of a run.

What is small is written as it is; arrays, long lists, functions, classes and objects are written as a hash of what they
hold. A dictionary whose one key begins with ``!`` says what was hashed, so that no two settings share a description.
"""

from __future__ import annotations

import copyreg
import enum
import functools
import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from .described_code import code_parts, mutated
from .kinds import is_tensor
from .libraries import full_name, in_library, is_found, library_version, top_of

LONG = 2000
"""Characters beyond which a list or dictionary is hashed."""
_NOT_OF_A_CLASS = frozenset(
    ("__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__firstlineno__", "__static_attributes__",
     "__annotations__", "__annotations_cache__", "__annotate__", "__annotate_func__", "__abstractmethods__",
     "_abc_impl", "__dataclass_fields__", "__dataclass_params__", "__match_args__", "__parameters__",
     "__orig_bases__", "__classdictcell__", "__conditional_annotations__", "__hash__", "__slots__")
)  # fmt: skip
OF_NETWORKS: list[Callable[[Any], Any]] = []
"""What describes a network: models/fingerprint.py says it when it is imported."""


def describe(value: Any) -> Any:
    """Return a value as JSON types, so that equal values give equal descriptions in every process, others others.

    Functions and classes of the user are described by their code, defaults, captured values and the globals they use;
    objects by their class and attributes, at any depth. What a function writes to (a counter, a list it appends to) is
    not part of its description.

    Raises
    ------
    TypeError
        For what cannot be described, such as an open file or a generator, named with where it stands.

    Examples
    --------
    >>> describe([1, 2.5, "a"])
    [1, 2.5, 'a']
    >>> describe(slice(2, None))
    {'!slice': [2, None, None]}
    """
    try:
        return _Describer().of(value)
    except RecursionError:
        raise TypeError(f"{type(value).__qualname__} is nested too deeply to be described as a setting") from None


def in_words(value: Any) -> str:
    """Return a description as a short text: a string as it is, a function as its name and hash."""
    found = describe(value)
    return str(next(iter(found.values())) if isinstance(found, dict) and len(found) == 1 else found)


def digest(value: Any) -> str:
    """Return a hash (16 hexadecimal digits) of the description of a value."""
    return hash_json(describe(value))


def hash_json(described: Any) -> str:
    """Return a hash (16 hexadecimal digits) of JSON types."""
    return _hash(json.dumps(described, sort_keys=True).encode("utf-8", "surrogatepass"))


def own_code(kind: type, instance: Any = None) -> str:
    """Return a hash of the code of a class and its bases outside the known packages; empty if all are known.

    With an ``instance``, what it sets in the place of data attributes of the class counts instead of these.
    """
    if in_library(kind):
        return ""
    found = _Describer()
    found.inside.append(id(kind))
    return hash_json(found.code_of_class(kind, instance))


def tokenizer_hash(tokenizer: Any) -> str:
    """Return a hash of all that decides how text becomes ids; empty without a tokenizer."""
    if tokenizer is None:
        return ""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        described = _of_serialised(backend.to_str())
    else:
        described = hash_json([sorted(tokenizer.get_vocab().items()), type(tokenizer).__name__])
    special = getattr(tokenizer, "special_tokens_map", {})
    return hash_json([described, {k: str(v) for k, v in special.items()}])


@functools.lru_cache(8)
def _of_serialised(text: str) -> str:
    # Truncation and padding are settings of a call, not of the tokenizer.
    return hash_json(json.loads(text) | {"truncation": None, "padding": None})


class _Describer:
    """One description: knows what it is inside of, so that cycles end."""

    def __init__(self) -> None:
        self.inside: list[int] = []

    def of(self, value: Any) -> Any:
        """Return the description of any value."""
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"!float": repr(value)}
        if isinstance(value, enum.Enum):
            return {"!enum": [type(value).__qualname__, value.name, self.of(value._value_)]}
        if isinstance(value, np.generic):
            plain = value.item()
            return {"!numpy": [str(value.dtype), repr(plain)]} if isinstance(plain, np.generic) else self.of(plain)
        for kind, parts in _small_kinds(sys.modules.get("torch")):
            if type(value) is kind:
                return {f"!{kind.__name__}": self.of(parts(value))}
        if isinstance(value, PurePath):
            return {"!path": str(value)}
        if id(value) in self.inside:
            return {"!inside": len(self.inside) - self.inside.index(id(value))}
        self.inside.append(id(value))
        try:
            return self.large(value)
        finally:
            self.inside.pop()

    def large(self, value: Any) -> Any:
        """Return the description of what may hold other values."""
        own = getattr(type(value), "__describe__", None)
        if own is not None:
            return {f"!{type(value).__qualname__}": own(value)}
        torch: Any = sys.modules.get("torch")
        if torch is not None and isinstance(value, torch.nn.Module):
            return {"!network": OF_NETWORKS[0](value)}
        if hasattr(value, "get_vocab") and hasattr(value, "special_tokens_map"):
            return {"!tokenizer": tokenizer_hash(value)}
        if is_tensor(value):
            return {"!tensor": f"{tuple(value.shape)} {value.dtype} {_tensor_hash(value)}"}
        if isinstance(value, np.ndarray):
            return {"!array": self.array(value)}
        if type(value) in (list, tuple, range):
            return _short([self.of(v) for v in value])
        if type(value) in (set, frozenset):
            return {"!set": _short(sorted((self.of(v) for v in value), key=_sortable))}
        if type(value) is dict:
            return self.mapping(value)
        if isinstance(value, ModuleType):
            return self.module(value)
        if isinstance(value, type):
            return {"!class": self.named(value, self.code_of_class)}
        if isinstance(value, partial):
            return {"!partial": self.hashed([value.func, value.args, value.keywords, vars(value)])}
        if isinstance(value, MethodType):
            return {"!method": [self.of(value.__func__), self.of(value.__self__)]}
        if isinstance(value, FunctionType):
            return {"!function": self.named(value, self.code_of_function)}
        if isinstance(value, staticmethod | classmethod):
            return {f"!{type(value).__name__}": self.of(value.__func__)}
        if isinstance(value, property):
            return {"!property": self.of([value.fget, value.fset])}
        if isinstance(value, functools.cached_property):
            return {"!property": self.of(value.func)}
        if hasattr(value, "__wrapped__") and callable(value):  # functools.cache
            return {"!wrapped": [type(value).__qualname__, self.of(value.__wrapped__)]}
        if isinstance(value, BuiltinFunctionType | np.ufunc) or type(value).__name__ in _BUILT_IN:
            owner = getattr(value, "__self__", None)
            of = None if owner is None or isinstance(owner, ModuleType) else self.of(owner)
            return {"!builtin": [full_name(value), of]}
        return {"!object": f"{type(value).__qualname__} {hash_json(self.content(value))}"}

    def hashed(self, value: Any) -> str:
        return hash_json(self.of(value))

    def mapping(self, value: dict[Any, Any]) -> Any:
        if all(type(k) is str and not k.startswith("!") for k in value):
            return _short({k: self.of(v) for k, v in value.items()})
        return {"!dict": _short(sorted(([self.of(k), self.of(v)] for k, v in value.items()), key=_sortable))}

    def array(self, value: np.ndarray) -> str:
        if value.dtype.kind in "OTV":
            data = json.dumps([self.of(v) for v in value.ravel().tolist()], sort_keys=True).encode()
        else:
            data = np.ascontiguousarray(value).tobytes()
        hidden = _hash(np.ma.getmaskarray(value).tobytes()) if isinstance(value, np.ma.MaskedArray) else ""
        kind = "object" if value.dtype.kind in "OT" else str(value.dtype)
        return f"{value.shape} {kind} {_hash(data)}{hidden}"

    def module(self, value: ModuleType) -> Any:
        name = value.__name__
        if library_version(name.partition(".")[0]) is not None:
            return {"!module": name}
        file = getattr(value, "__file__", None)
        if not file:
            raise TypeError(f"module {name} is used by a setting as a whole and has no file: use its functions by name")
        with open(file, "rb") as f:
            return {"!module": f"{name} {_hash(f.read())}"}

    def named(self, value: Any, code: Callable[[Any], Any]) -> str:
        """Return the name of something a known package holds under that name, else name and hash of its code."""
        library = library_version(top_of(value))
        if library is not None and is_found(value):
            return f"{full_name(value)} {library}".strip()
        return f"{value.__qualname__} {hash_json(code(value))}"

    def code_of_function(self, f: FunctionType) -> list[Any]:
        """Return what a function of the user does: code, defaults, captured values, globals."""
        left = mutated(f.__code__)
        captured: dict[str, Any] = {}
        for name, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True):
            try:
                captured[name] = None if name in left else self.of(cell.cell_contents)
            except ValueError:  # not yet bound
                captured[name] = "unbound"
        code, used, imported = code_parts(f.__code__)
        found = {}
        for chain in sorted(used):
            if chain[0] in f.__globals__ and chain[0] not in left:
                found[".".join(chain)] = self.of_chain(f.__globals__[chain[0]], chain[1:])
        for name in sorted(imported):
            if library_version(name.partition(".")[0]) is None and name in sys.modules:
                found[f"import {name}"] = self.of(sys.modules[name])
        more = {k: v for k, v in vars(f).items() if k != "__wrapped__"}
        settings = [self.of(v) for v in (f.__defaults__, f.__kwdefaults__, more)]
        return [self.of(code), settings, captured, found]

    def of_chain(self, value: Any, names: tuple[str, ...]) -> Any:
        """Return the description of a global, or of what is read from it if it is a module of the user."""
        while isinstance(value, ModuleType) and library_version(value.__name__.partition(".")[0]) is None and names:
            if not hasattr(value, names[0]):
                return "missing"
            value, names = getattr(value, names[0]), names[1:]
        return self.of(value)

    def code_of_class(self, kind: type, instance: Any = None) -> list[Any]:
        """Return what a class of the user does: its members and those of its bases outside the known packages."""
        members = {}
        own = vars(instance) if instance is not None else {}
        written: set[str] = {"_as_defined"}
        defined = vars(kind).get("_as_defined")
        for value in vars(kind).values():
            inner = getattr(value, "__func__", getattr(value, "fget", value))
            if isinstance(inner, FunctionType):
                written |= {n for n in mutated(inner.__code__, attributes=True) if n in vars(kind)}
        for name, value in vars(kind).items():
            if name in _NOT_OF_A_CLASS or name in written or type(value).__name__ in _DESCRIPTORS:
                continue
            if defined is not None and not callable(value):  # what is set on it later is no code
                if name not in defined:
                    continue
                value = defined[name]
            members[name] = self.of(own.get(name, value))
        bases = [
            [full_name(b), library_version(top_of(b))]
            if in_library(b)
            else [b.__qualname__, self.code_of_class(b, instance)]
            for b in kind.__bases__
        ]
        return [members, bases]

    def content(self, value: Any) -> list[Any]:
        """Return class and attributes of an object; what it holds besides, or how it is pickled without any."""
        kind = type(value)
        out: list[Any] = [self.of(kind)]
        if callable(getattr(value, "fit", None)) and callable(getattr(value, "get_params", None)):
            return [*out, self.of(value.get_params(deep=False))]  # an estimator, not what it was last fitted on
        state = dict(vars(value)) if hasattr(value, "__dict__") else {}
        for c in kind.__mro__:
            names = c.__dict__.get("__slots__", ())
            for name in (names,) if isinstance(names, str) else names:
                own = f"_{c.__name__.lstrip('_')}{name}" if name.startswith("__") and not name.endswith("__") else name
                if name not in ("__dict__", "__weakref__") and hasattr(value, own):
                    state[own] = getattr(value, own)
            state = {k: v for k, v in state.items() if not isinstance(c.__dict__.get(k), functools.cached_property)}
        out.append([[k, self.of(v)] for k, v in sorted(state.items(), key=lambda item: str(item[0]))])
        bases: tuple[Any, ...] = (str, int, float, bytes, list, tuple, set, frozenset, dict)
        for base in bases:
            if isinstance(value, base):
                return [*out, self.of(base(value))]
        bare = not hasattr(value, "__dict__") and not any("__slots__" in c.__dict__ for c in kind.__mro__)
        if not bare and not _pickles_itself(kind):
            return out
        try:
            reduced: Any = (copyreg.dispatch_table[kind](value) if kind in copyreg.dispatch_table
                       else value.__reduce_ex__(4))  # fmt: skip
        except Exception:
            if not bare:
                return out
            raise TypeError(
                f"a setting holds a {kind.__module__}.{kind.__qualname__}, which cannot be described, so that its run "
                "could not be told from others: pass numbers, arrays or functions"
            ) from None
        parts = [reduced] if isinstance(reduced, str) else list(reduced)
        return [*out, self.of([list(p) if i > 2 and p is not None else p for i, p in enumerate(parts)])]


_SMALL: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (slice, lambda s: [s.start, s.stop, s.step]),
    (complex, repr),
    (bytes, lambda b: f"{len(b)} {_hash(b)}"),
    (bytearray, lambda b: f"{len(b)} {_hash(bytes(b))}"),
    (type(Ellipsis), lambda _: ""),
    (type(NotImplemented), lambda _: ""),
)
_BUILT_IN = ("method_descriptor", "wrapper_descriptor", "method-wrapper", "classmethod_descriptor", "builtin_method")
_DESCRIPTORS = ("member_descriptor", "getset_descriptor")


@functools.cache
def _small_kinds(torch: Any) -> tuple[tuple[type, Callable[[Any], Any]], ...]:
    """Return what is written as it is; without torch nothing is of it."""
    return _SMALL if torch is None else (*_SMALL, (torch.dtype, str), (torch.device, str), (torch.Size, list))


def _pickles_itself(kind: type) -> bool:
    return kind.__reduce_ex__ is not object.__reduce_ex__ or kind.__reduce__ is not object.__reduce__


def _short(value: Any) -> Any:
    """Return described things as they are, or a hash of them if they are long."""
    text = json.dumps(value, sort_keys=True)
    if len(text) <= LONG:
        return value
    return {f"!{type(value).__name__}": f"{len(value)} entries {_hash(text.encode('utf-8', 'surrogatepass'))}"}


def _sortable(described: Any) -> str:
    return json.dumps(described, sort_keys=True)


def _tensor_hash(value: Any) -> str:
    import torch

    data = value.detach()
    data = (data.to_dense() if data.layout != torch.strided else data).cpu().contiguous().reshape(-1)
    if data.is_quantized:
        data = data.int_repr()
    return _hash(data.resolve_conj().resolve_neg().view(torch.uint8).numpy().tobytes())


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def numbered(values: Iterable[int]) -> str:
    """Return ascending numbers in words, runs joined.

    Examples
    --------
    >>> numbered([0, 1, 2, 5, 7, 8])
    '0 to 2, 5, 7, 8'
    """
    runs: list[list[int]] = []
    for v in values:
        if runs and v == runs[-1][-1] + 1:
            runs[-1].append(v)
        else:
            runs.append([v])
    return ", ".join(f"{r[0]} to {r[-1]}" if len(r) > 2 else ", ".join(map(str, r)) for r in runs)
