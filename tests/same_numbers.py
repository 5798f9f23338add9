"""Whether a change of shape has changed a number: every call of calls.py, written down and compared.

python tests/same_numbers.py record FILE           # with the code of before
python tests/same_numbers.py compare FILE [NAME]   # with the code of now: what differs, by call and variable
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from calls import CALLS, World, add_measurements, public

import tokinterp as ti

CHANGING = {"created", "versions", "git", "git_commit", "source_commits", "git_dirty", "fingerprint", "seconds",
            "command", "history"}  # fmt: skip
Numbers = dict[str, dict[str, tuple[Any, ...]]]


def flat(value: Any, name: str = "") -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Every array in a result, with its dims and what is said about it."""
    if isinstance(value, xr.DataTree):
        for node in value.subtree:
            yield from flat(node.to_dataset(inherit=False), f"{name}{node.path}:")
    elif isinstance(value, xr.Dataset):
        said = {k: str(v) for k, v in value.attrs.items() if not any(k.startswith(c) for c in CHANGING)}
        yield f"{name}attrs", (said,)
        for key, data in value.variables.items():
            yield f"{name}{key}", (data.dims, np.asarray(data.values), {k: str(v) for k, v in data.attrs.items()})
    elif isinstance(value, xr.DataArray):
        yield from flat(value.to_dataset(name="array"), name)
    elif isinstance(value, torch.Tensor):
        yield name, ((), value.detach().cpu().double().numpy(), {})
    elif isinstance(value, np.ndarray):
        yield name, ((), value, {})
    elif isinstance(value, (list, tuple)):
        for n, one in enumerate(value):
            yield from flat(one, f"{name}[{n}]")
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from flat(one, f"{name}[{key}]")
    elif isinstance(value, (bool, int, float, str, np.generic)):
        yield name, ((), np.asarray(value), {})
    elif isinstance(value, ti.Prompts):
        for n in range(len(value)):
            yield f"{name}[{n}]", ((), np.asarray(value.ids(n)), {})


def results() -> Iterator[tuple[str, Callable[[], Any]]]:
    """What is called, by name: a measurement is measured, anything else is called."""
    world, calls = World(), dict(CALLS)
    add_measurements(calls)
    kinds = dict(public())
    for name, make in calls.items():
        kind = kinds.get(name)
        if getattr(kind, "__module__", "").startswith(("tokinterp.plots", "tokinterp.cli")) or ".plots" in getattr(
            kind, "__module__", ""
        ):
            continue

        def value(make: Any = make, kind: Any = kind) -> Any:
            function, arguments = make(world)
            made = function(**arguments)
            if isinstance(kind, type) and issubclass(kind, ti.Measurement) and kind is not ti.Measurement:
                if kind.__name__ == "DotAttention":
                    return world.dot_attention
                return ti.measure(world.model, world.prompts, {"it": made}, progress=False)
            return made

        yield name, value
    yield "world.run", lambda: world.run

    @cache
    def bundled() -> tuple[Any, ti.Prompts]:
        model = ti.load_model()
        return model, ti.Prompts.from_texts(
            [t.text for t in ti.bundled_texts("story")[:3]], model, max_tokens=280, progress=False
        )

    for name, kind in kinds.items():
        if isinstance(kind, type) and issubclass(kind, ti.Measurement) and name not in CALLS:
            asked = {"AttentionSinks": {"tokens": 64}}.get(name, {})
            yield f"bundled.{name}", lambda k=kind, a=asked: ti.measure(*bundled(), {"it": k(**a)}, progress=False)


def numbers(wanted: list[str]) -> tuple[Numbers, dict[str, str]]:
    """The numbers of each call, and what failed."""
    found, failed = {}, {}
    for name, value in results():
        if wanted and name not in wanted:
            continue
        try:
            torch.manual_seed(0)
            found[name] = dict(flat(value()))
        except Exception as error:
            failed[name] = "".join(traceback.format_exception_only(error)).strip()
    return found, failed


def _plain(value: Any) -> Any:
    """An array as text and JSON's own types."""
    array = np.asarray(value)
    return {
        "dtype": str(array.dtype),
        "values": array.tolist() if array.dtype.kind in "fciub" else array.astype(str).tolist(),
    }


def differs(old: tuple[Any, ...], new: tuple[Any, ...]) -> str:
    """In a few words how two arrays differ; an empty text for equal ones."""
    if len(old) == 1 or len(new) == 1:
        keys = sorted({*old[0], *new[0]}) if len(old) == len(new) == 1 else []
        return "; ".join(f"{k}: {old[0].get(k)!r} -> {new[0].get(k)!r}" for k in keys if old[0].get(k) != new[0].get(k))
    if list(old[0]) != list(new[0]):
        return f"dims {old[0]} -> {new[0]}"
    a, b = (np.asarray(x[1]["values"], x[1]["dtype"] if x[1]["dtype"][0] in "fiub" else str) for x in (old, new))
    if a.shape != b.shape:
        return f"shape {a.shape} -> {b.shape}"
    said = "; ".join(
        f"{k}: {old[2].get(k)!r} -> {new[2].get(k)!r}"
        for k in sorted({*old[2], *new[2]})
        if old[2].get(k) != new[2].get(k)
    )
    if a.dtype.kind in "fciub" and b.dtype.kind in "fciub":
        x, y = a.astype(float), b.astype(float)
        same = np.isclose(x, y, rtol=1e-5, atol=1e-7, equal_nan=True)
        if not same.all():
            return f"{(~same).sum()} of {same.size} values, by {np.nanmax(np.abs(x - y)):.3g}" + (said and f"; {said}")
    elif not np.array_equal(a.astype(str), b.astype(str)):
        return "values" + (said and f"; {said}")
    return said


def main() -> None:
    what, path, *wanted = sys.argv[1:] + ["", ""][: max(0, 3 - len(sys.argv))]
    if what not in ("record", "compare") or not path:
        sys.exit(__doc__)
    found, failed = numbers(wanted)
    if what == "record":
        Path(path).write_text(json.dumps((found, failed), default=_plain))
        print(f"{len(found)} calls written to {path}; {len(failed)} failed: {failed}")
        return
    found = json.loads(json.dumps(found, default=_plain))
    old, old_failed = json.loads(Path(path).read_text())
    for name in wanted or sorted({*old, *found}):
        if name in failed:
            print(f"{name}: fails: {failed[name]}")
        elif name not in found:
            print(f"{name}: no call of this name any more")
        elif name not in old:
            print(f"{name}: " + ("failed before" if name in old_failed else "new"))
        else:
            for key in sorted({*old[name], *found[name]}):
                if key not in found[name] or key not in old[name]:
                    print(f"{name} {key}: " + ("gone" if key in old[name] else "new"))
                elif said := differs(old[name][key], found[name][key]):
                    print(f"{name} {key}: {said}")


if __name__ == "__main__":
    main()
