"""Token probes in a folder: ``probes.json`` (facts), ``text.safetensors``, one safetensors file per layer."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files import whole as files
from ..files.paths import local_path
from ..fitted import Tensors, check_finite, check_shapes, digest_of, load_tensors, read_note, save_tensors
from ..run.facts import fingerprint
from .probe_text import TextStatistics

LAYER = "tokinterp probes of a layer 2"
TEXT = "tokinterp text of probes 2"


def layer_file(layer: int) -> str:
    """Return the name of the file with the probes of a layer."""
    return f"layer-{layer:03d}.safetensors"


def whole_digest(probes: Any) -> str:
    """Return the SHA-256 of facts, text and all layers, the same in memory and on disk."""
    facts = probes.facts
    mark = fingerprint(facts)
    parts = {"text": digest_of(text_tensors(probes), {"fit": mark})}
    for layer in probes.layers:
        part = probes._parts[layer]
        if isinstance(part, Path) and not probes._edited(layer):
            parts[str(layer)] = read_note(part, LAYER, "probes of a layer")["digest"]
        else:
            parts[str(layer)] = digest_of(tensors_of(probes, layer), {"layer": layer, "fit": mark})
    return hashlib.sha256(json.dumps([facts, parts], sort_keys=True).encode()).hexdigest()


def tensors_of(probes: Any, layer: int) -> Tensors:
    """Return the probes of a layer as they are now, in memory or read from disk."""
    part = probes._parts[layer]
    if isinstance(part, dict):
        return part
    return load_tensors(part, LAYER, "probes of a layer", finite=False)[1] | probes._edited(layer)


def text_tensors(probes: Any) -> Tensors:
    """Return what is known of the training text: at least the labels."""
    return probes.text.tensors() if probes.text is not None else {"labels": probes.labels.contiguous()}


def save_facts(probes: Any, folder: Path) -> None:
    """Write everything but the layers."""
    save_tensors(folder / "text.safetensors", text_tensors(probes), TEXT, {"fit": fingerprint(probes.facts)})
    record = {"format": probes.KIND, **probes.facts, "digest": probes.digest}
    files.write_text(folder / "probes.json", json.dumps(record, indent=1, sort_keys=True))


def save(probes: Any, path: str | Path, overwrite: bool) -> Path:
    """Write probes as a folder; see `TokenProbes.save`."""
    path = local_path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists: give another name or overwrite=True")
    if path.exists() and not (path / "probes.json").is_file():
        raise FileExistsError(f"{path} holds something else than probes and is not overwritten: give another name")
    mark = fingerprint(probes.facts)
    new = files.new_folder(path)
    try:
        for layer in probes.layers:
            note = {"layer": layer, "fit": mark}
            save_tensors(new / layer_file(layer), tensors_of(probes, layer), LAYER, note, finite=False)
        save_facts(probes, new)
        files.replace_folder(new, path)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return path


def load(path: str | Path, make: Any) -> Any:
    """Read and check probes, which ``make`` makes; see `TokenProbes.load`."""
    path = local_path(path)
    file = path / "probes.json"
    if not file.is_file():
        there = path.with_name(path.name + ".partial").exists()
        hint = "; their fit is unfinished: call fit_probes() again with the same arguments" if there else ""
        raise FileNotFoundError(f"no finished probes at {path}: probes.json is missing{hint}")
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        if facts.pop("format", None) != make.KIND:
            raise ValueError(f"{path} holds no {make.KIND} data: fit the probes again with this version")
        layers, offsets, digest = facts.pop("layers"), facts.pop("offsets"), facts.pop("digest")
        if not layers or any(type(n) is not int for n in (*layers, *offsets)) or min(layers) < 0:
            raise TypeError("layers and offsets are whole numbers")
        _, tensors = load_tensors(path / "text.safetensors", TEXT, "text of probes", finite=False)
        text = TextStatistics(tensors, offsets, facts["d_vocab"]) if "counts" in tensors else None
        parts: dict[int, Tensors | Path] = {layer: path / layer_file(layer) for layer in layers}
        out = make(layers, offsets, tensors["labels"], parts, facts, text)
        same = digest == out.digest
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}): fit the probes again") from error
    if not same:
        raise ValueError(f"{path} is damaged: its facts or files are not those that were written together: fit again")
    for layer in layers:
        _, found = load_tensors(path / layer_file(layer), LAYER, "probes of a layer", finite=False)
        check_layer(found, offsets, len(out.labels), facts["d_model"], f"{path}, layer {layer}")
    return out


def check_layer(tensors: Tensors, offsets: Sequence[int], n_classes: int, width: int, what: str) -> None:
    """Refuse the probes of a layer that have another shape, or NaN or infinite numbers.

    A class without rows at an offset has no weights there and the bias -inf (`kernels.probes.shrunk_lda`): that stays.

    Raises
    ------
    ValueError
        Names the tensor.
    """
    shapes: dict[str, tuple[int, ...]] = {f"weight.{o}": (n_classes, width) for o in offsets}
    shapes |= {f"bias.{o}": (n_classes,) for o in offsets if f"bias.{o}" in tensors}
    if "mean" in tensors or "scale" in tensors:
        shapes |= {"mean": (width,), "scale": (width,)}
    check_shapes(tensors, shapes, what)
    found = {k: tensors[k] for k in shapes}
    for o in offsets:
        if f"bias.{o}" in found and bool((never := found[f"bias.{o}"].isneginf()).any()):
            never &= ~tensors[f"weight.{o}"][never].any() & ~never.all()
            found[f"bias.{o}"] = found[f"bias.{o}"].masked_fill(never, 0.0)
    check_finite(found, what, "fit them again, with a lower learning rate or in float32")
    if "scale" in tensors and not bool((tensors["scale"] > 0).all()):
        raise ValueError(f"{what} are damaged: a scale is not positive: fit them again")
