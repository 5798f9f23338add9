"""Token probes that Feucht et al. (2024) released, and their scores as published."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..files.paths import local_path
from ..files.received import pickled_tensors
from ..settings import checked, path
from .erasure import ErasureScores
from .token_probes import Tensors, TokenProbes

if TYPE_CHECKING:
    from ..models.base import Model


class Feucht2024Scores(ErasureScores):
    """Erasure scores as the released code of Feucht et al. (2024, arXiv 2406.20086) has them.

    BOS may be in a span and is a target like any other token, although it is easily told from position 1 on and feeds
    psi of the second token; and the delta of a target whose type was never a label of the probes is 0.  For all else
    see `ErasureScores`.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> prompts = ti.Prompts.from_texts(["The Nile flows north.", "The Rhine flows north."], model)
    >>> probes = ti.erasure.fit_probes(model, prompts, layers=[1, 3], offsets=[0, -1, -2], progress=False)
    >>> run = ti.measure(model, prompts, {"erasure": Feucht2024Scores(probes, start=1, end=3)}, progress=False)
    >>> int((run["erasure"]["stop"] - run["erasure"]["start"]).sum()) == prompts.n_tokens
    True
    """

    exclude = ()
    unseen = "zero"


@checked(paths=path)
def read_feucht2024(*paths: str | Path, model: Model | None = None) -> TokenProbes:
    """Read checkpoints released by Feucht et al. (2024): ``layer<l>_tgtidx<i>.ckpt`` with one weight each.

    Their l counts block outputs (-1 the embedding), so layer l + 1 here; l = n_layers is the stream after the final
    norm, which is no layer.  The types of the training text are not known: every type counts as seen.

    Parameters
    ----------
    *paths : path
        Files, or folders with such files; every layer given needs the same offsets.
    model : Model, optional
        To check the shape and to remember the model's hashes.

    Raises
    ------
    ValueError
        For a name that says no layer and offset, a checkpoint of another shape, or missing offsets.

    Examples
    --------
    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save({"fc.weight": torch.zeros(320, 32)}, f"{folder}/layer0_tgtidx0.ckpt")
    ...     read_feucht2024(f"{folder}/layer0_tgtidx0.ckpt").layers
    [1]
    """
    files = [f for p in map(local_path, paths) for f in (sorted(p.glob("*.ckpt")) if p.is_dir() else [p])]
    if not files:
        raise ValueError(f"no checkpoint among {[str(p) for p in paths]}")
    parts: dict[int, Tensors] = {}
    shape: tuple[int, ...] | None = (model.info.d_vocab, model.info.d_model) if model is not None else None
    for file in files:
        name = re.search(r"layer(-?\d+)_tgtidx([+-]?\d+)", file.name)
        if name is None:
            raise ValueError(f"{file.name} says no layer and offset: it should be like layer9_tgtidx-1.ckpt")
        layer, offset = int(name[1]) + 1, int(name[2])
        if layer < 0 or (model is not None and layer > model.info.n_layers):
            raise ValueError(f"{file.name}: layer {name[1]} in their count is no point of the residual stream")
        loaded = pickled_tensors(file)
        loaded = loaded.get("state_dict", loaded)
        weights = [v for k, v in loaded.items() if k.endswith("fc.weight")] if isinstance(loaded, dict) else []
        if len(weights) != 1 or weights[0].ndim != 2 or (shape is not None and tuple(weights[0].shape) != shape):
            found = [tuple(w.shape) for w in weights]
            raise ValueError(f"{file.name} has fc.weight of shape {found}; it should be {shape or '(vocab, d)'}")
        shape = tuple(weights[0].shape)
        parts.setdefault(layer, {})[f"weight.{offset}"] = weights[0].float()
    keys = {frozenset(p) for p in parts.values()}
    if len(keys) > 1:
        found = {n: sorted(p) for n, p in parts.items()}
        raise ValueError(f"not every layer has the same offsets: {found}")
    assert shape is not None
    info = model.info if model is not None else None
    facts: dict[str, Any] = {
        "model": info.id if info else "", "weights": info.identity if info else "",
        "tokenizer": info.tokenizer if info else "", "d_model": shape[1], "d_vocab": shape[0], "prompts": "",
        "method": "feucht2024 checkpoints", "bos": True,
    }  # fmt: skip
    offsets = sorted(int(k.removeprefix("weight.")) for k in next(iter(keys)))
    return TokenProbes(sorted(parts), offsets, torch.arange(shape[0], dtype=torch.int64, device="cpu"), parts, facts)
