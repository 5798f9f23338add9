"""Token probes in a folder: ``probes.json`` (facts), ``text.safetensors``, one safetensors file per layer."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from .. import files
from ..checkpoint import fingerprint
from ..fitted import Tensors, digest_of, load_tensors, read_note, save_tensors
from ..paths import local_path
from .probe_text import TextStatistics
from .token_probes import TokenProbes, check_layer

FORMAT = "tokinterp-probes-2"
LAYER = "tokinterp probes of a layer 2"
TEXT = "tokinterp text of probes 2"


def layer_file(layer: int) -> str:
    """Return the name of the file with the probes of a layer."""
    return f"layer-{layer:03d}.safetensors"


def facts_of(probes: TokenProbes) -> dict[str, Any]:
    """Return all that decides the probes: what a fit of them is known by."""
    return {**probes.facts, "layers": probes.layers, "offsets": probes.offsets}


def whole_digest(probes: TokenProbes) -> str:
    """Return the SHA-256 of facts, text and all layers, the same in memory and on disk."""
    facts = facts_of(probes)
    mark = fingerprint(facts)
    parts = {"text": digest_of(text_tensors(probes), {"fit": mark})}
    for layer in probes.layers:
        part = probes._parts[layer]
        if isinstance(part, Path) and not probes._edited(layer):
            parts[str(layer)] = read_note(part, LAYER, "probes of a layer")["digest"]
        else:
            parts[str(layer)] = digest_of(tensors_of(probes, layer), {"layer": layer, "fit": mark})
    return hashlib.sha256(json.dumps([facts, parts], sort_keys=True).encode()).hexdigest()


def tensors_of(probes: TokenProbes, layer: int) -> Tensors:
    """Return the probes of a layer as they are now, in memory or read from disk."""
    part = probes._parts[layer]
    if isinstance(part, dict):
        return part
    return load_tensors(part, LAYER, "probes of a layer", finite=False)[1] | probes._edited(layer)


def text_tensors(probes: TokenProbes) -> Tensors:
    """Return what is known of the training text: at least the labels."""
    return probes.text.tensors() if probes.text is not None else {"labels": probes.labels.contiguous()}


def save_facts(probes: TokenProbes, folder: Path) -> None:
    """Write everything but the layers."""
    save_tensors(folder / "text.safetensors", text_tensors(probes), TEXT, {"fit": fingerprint(facts_of(probes))})
    record = {"format": FORMAT, **facts_of(probes), "digest": probes.digest}
    files.write_text(folder / "probes.json", json.dumps(record, indent=1, sort_keys=True))


def save(probes: TokenProbes, path: str | Path, overwrite: bool) -> Path:
    """Write probes as a folder; see `TokenProbes.save`."""
    path = local_path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists: give another name or overwrite=True")
    if path.exists() and not (path / "probes.json").is_file():
        raise FileExistsError(f"{path} holds something else than probes and is not overwritten: give another name")
    mark = fingerprint(facts_of(probes))
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


def load(path: str | Path) -> TokenProbes:
    """Read and check probes; see `TokenProbes.load`."""
    path = local_path(path)
    file = path / "probes.json"
    if not file.is_file():
        there = path.with_name(path.name + ".partial").exists()
        hint = "; their fit is unfinished: call fit_probes() again with the same arguments" if there else ""
        raise FileNotFoundError(f"no finished probes at {path}: probes.json is missing{hint}")
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        if facts.pop("format", None) != FORMAT:
            raise ValueError(f"{path} holds no {FORMAT} data: fit the probes again with this version")
        layers, offsets, digest = facts.pop("layers"), facts.pop("offsets"), facts.pop("digest")
        if not layers or any(type(n) is not int for n in (*layers, *offsets)) or min(layers) < 0:
            raise TypeError("layers and offsets are whole numbers")
        _, tensors = load_tensors(path / "text.safetensors", TEXT, "text of probes", finite=False)
        text = TextStatistics(tensors, offsets, facts["d_vocab"]) if "counts" in tensors else None
        parts: dict[int, Tensors | Path] = {layer: path / layer_file(layer) for layer in layers}
        out = TokenProbes(layers, offsets, tensors["labels"], parts, facts, text)
        same = digest == out.digest
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}): fit the probes again") from error
    if not same:
        raise ValueError(f"{path} is damaged: its facts or files are not those that were written together: fit again")
    for layer in layers:
        _, found = load_tensors(path / layer_file(layer), LAYER, "probes of a layer", finite=False)
        check_layer(found, offsets, len(out.labels), facts["d_model"], f"{path}, layer {layer}")
    return out
