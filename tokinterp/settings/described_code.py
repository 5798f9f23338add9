"""What a compiled function is: its instructions, the globals it reads, and what it writes to."""

from __future__ import annotations

import dis
from collections.abc import Iterator
from types import CodeType
from typing import Any

_CHANGERS = frozenset(
    ("append", "appendleft", "add", "extend", "update", "insert", "remove", "discard", "pop", "popleft", "popitem",
     "clear", "setdefault")
)  # fmt: skip
_READ = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
_CAPTURED = ("LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF")


def code_parts(code: CodeType) -> tuple[list[Any], set[tuple[str, ...]], set[str]]:
    """Return the code as a nested list, the globals it reads (each with the attributes read from it), its imports.

    Examples
    --------
    >>> code_parts((lambda x: np.linalg.norm(x) * K).__code__)[1] == {("np", "linalg", "norm"), ("K",)}
    True
    """
    used: set[tuple[str, ...]] = set()
    imported: set[str] = set()
    for one in walk(code):
        chain: list[str] = []
        for step in dis.get_instructions(one):
            if step.opname in ("LOAD_ATTR", "LOAD_METHOD") and chain:
                chain.append(str(step.argval))
                continue
            if chain:
                used.add(tuple(chain))
            chain = [str(step.argval)] if step.opname in _READ else []
            if step.opname == "IMPORT_NAME":
                imported.add(str(step.argval))
        if chain:
            used.add(tuple(chain))
    return _parts(code), used, imported


def _parts(code: CodeType) -> list[Any]:
    consts = [_parts(c) if isinstance(c, CodeType) else c for c in code.co_consts]
    names = [code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars]
    counts = [code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags]
    return [code.co_code, code.co_exceptiontable, consts, names, counts]


def walk(code: CodeType) -> Iterator[CodeType]:
    """Yield a code object and all those inside it."""
    yield code
    for c in code.co_consts:
        if isinstance(c, CodeType):
            yield from walk(c)


def mutated(code: CodeType, attributes: bool = False) -> set[str]:
    """Return the captured and global names that code assigns or changes by a method; with ``attributes`` also those.

    Such names hold what the code has done so far, not what it will do.

    Examples
    --------
    >>> def count(x):
    ...     seen.append(x)
    >>> mutated(count.__code__)
    {'seen'}
    """
    found: set[str] = set()
    for one in walk(code):
        steps = list(dis.get_instructions(one))
        for before, step in zip([None, *steps], steps, strict=False):
            if step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL") or (
                step.opname in ("STORE_DEREF", "DELETE_DEREF") and step.argval in one.co_freevars
            ):
                found.add(str(step.argval))
            elif step.opname in ("LOAD_ATTR", "LOAD_METHOD") and before is not None and step.argval in _CHANGERS:
                found |= _named(before, attributes)
            elif step.opname in ("STORE_SUBSCR", "DELETE_SUBSCR") and step.positions is not None:
                at = step.positions.lineno, step.positions.col_offset  # where the target begins, the container first
                for other in steps:
                    if other.positions is not None and (other.positions.lineno, other.positions.col_offset) == at:
                        found |= _named(other, attributes)
            elif attributes and step.opname in ("STORE_ATTR", "DELETE_ATTR"):
                found.add(str(step.argval))
    return found


def _named(step: dis.Instruction, attributes: bool) -> set[str]:
    """Return the name that an instruction reads, if it is captured or global (or an attribute)."""
    return {str(step.argval)} if step.opname in (*_READ, *_CAPTURED, *(("LOAD_ATTR",) * attributes)) else set()
