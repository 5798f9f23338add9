"""All that decides the numbers of a run, and the folder in which what it has finished is kept under these facts."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files.owner import discard, is_owned, private_name, sweep
from ..files.whole import naming, write_text
from ..models.fingerprint import logits_agree
from ..models.steady import current
from ..results import dataset
from ..settings.describe import hash_json

if TYPE_CHECKING:
    from ..models.base import Model
    from ..text.prompts import Prompts

Facts = dict[str, Any]
FORMAT = 3
"""Of the folder; one of another format is refused."""


class OtherRunError(ValueError):
    """What is stored belongs to another run."""


def fit_facts(model: Model, prompts: Prompts) -> Facts:
    """Return what decides the numbers of every fit: model as it is at the start, and prompts."""
    prompts.check_tokenizer(model)
    info = current(model)
    return {
        "tokinterp": dataset.numbers_version(),
        "model": info.id, "weights": info.identity, "tokenizer": info.tokenizer, "dtype": info.dtype,
        "backend": info.backend, "device": info.device.split(":")[0], "prompts": prompts.hash,
    }  # fmt: skip


def claim(root: Path, facts: Facts, shares: int = 1) -> None:
    """Make the folder of a run, with its ``run.json`` from the first moment, or check that the one there is the run's.

    A folder of another run in which nothing was finished, and which nobody is writing, makes room.

    Raises
    ------
    ValueError
        If the folder belongs to another run (names what differs), or does not say which.
    OSError
        If it cannot be made.
    """
    facts = {**facts, "format": FORMAT, "shares": shares}
    if not os.path.lexists(root):
        new = private_name(root, "new")
        with naming(root):
            new.mkdir(parents=True)
        try:
            write_text(new / "run.json", json.dumps(facts, sort_keys=True, indent=1))
            os.rename(new, root)
        except OSError:
            shutil.rmtree(new, ignore_errors=True)
            if not (root / "run.json").exists():  # else another process was faster
                raise
    then = read_facts(root)
    try:
        compare_facts(then, facts, root)
    except ValueError:
        if then.get("format") != FORMAT or something_finished(root) or in_use(root):
            raise
        discard(root)
        claim(root, facts, shares)


def something_finished(root: Path) -> bool:
    """Whether anything is kept in the folder of a run or of one of its shares."""
    return any(found for kind in ("*.safetensors", "*/*.safetensors", "*.zarr*") for found in root.glob(kind))


def in_use(root: Path) -> bool:
    """Whether somebody may be writing a folder or any of those in it."""
    return any(is_owned(p) for p in (root, *root.iterdir()) if p.is_dir())


def read_facts(root: Path) -> Facts:
    """Return what the folder of a run says that it is of.

    Raises
    ------
    ValueError
        If it does not say.
    """
    file = root / "run.json"
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(record, dict):
            return record
        problem = "no record"
    except FileNotFoundError:
        problem = "missing, so that nothing says which run this is of"
    except (NotADirectoryError, ValueError) as error:
        problem = f"damaged: {error}"
    raise ValueError(f"{file} is {problem}; delete {root} and start the run anew, or choose another store")


def partial_folder(store: Path) -> Path:
    """Return the folder in which an unfinished run is kept."""
    return store.with_name(store.name + ".partial")


def unfinished_folder(store: Path) -> Path | None:
    """Return the folder in which a result that is not there yet is kept: of a run, or of several."""
    there = [store.with_name(f"{store.name}.{kind}") for kind in ("partial", "conditions", "nulls")]
    return None if store.exists() else next((f for f in there if f.is_dir()), None)


def remove_partial(store: Path, facts: Facts, root: Path | None = None) -> None:
    """Delete what is left of an unfinished run, in its folder, whose finished result is there."""
    sweep(store)
    root = root or partial_folder(store)
    with suppress(OSError, ValueError):
        if in_use(root):
            return
        then = read_facts(root)
        compare_facts({k: v for k, v in then.items() if k not in ("format", "shares")}, facts, root)
        discard(root)


def fingerprint(facts: Facts) -> str:
    """Return the hash of all that decides the numbers.

    Logits take no part: they are compared with a tolerance, since a rounded number could flip.
    """
    return hash_json({k: v for k, v in facts.items() if k != "logits"})


def compare_facts(then: Facts, now: Facts, where: Path) -> None:
    """Raise ValueError, naming what differs, if a store belongs to another run."""
    differing = []
    for key in sorted(then.keys() | now.keys()):
        a, b = then.get(key), json.loads(json.dumps(now.get(key)))
        if _text(a) == _text(b):
            continue
        if key == "logits" and a and b and logits_agree(a, b, str(now.get("dtype"))):
            continue
        name = _WORDS.get(key, key)
        if isinstance(a, dict) and isinstance(b, dict):
            inner = [k for k in sorted(a.keys() | b.keys()) if _text(a.get(k)) != _text(b.get(k))]
            told = [f"{k} {_short(a.get(k))} there, {_short(b.get(k))} now" for k in inner]
            differing.append(f"{name} ({'; '.join(told)})" if key == "config" else f"{name} ({', '.join(inner)})")
        elif key == "logits":
            differing.append(name)
        else:
            differing.append(f"{name} ({_short(a)} there, {_short(b)} now)")
    if differing:
        raise OtherRunError(
            f"{where} belongs to another run; it differs in: {'; '.join(differing)}. Choose another store, or delete "
            "that one"
        )


_WORDS = {
    "state": "state of the modules: buffers, adapters, replaced methods",
    "hooks": "hooks on the model",
    "logits": "logits of fixed ids, beyond rounding",
    "attention": "attention implementation",
}


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else text[:57] + "..."
