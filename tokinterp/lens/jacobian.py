"""JacobianLens: what a state makes the model say later, by the mean Jacobian from its layer to the last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch

from ..files.paths import local_path
from ..files.received import pickled_tensors
from ..fitted import Fitted
from ..models.embeddings import embeddings
from ..models.gradients import jacobians
from ..models.steady import steady
from ..run.checkpoint import EVERY, Checkpoint
from ..run.facts import fit_facts
from ..run.signals import at_once
from ..run.sites import resid
from ..run.stream import stream
from ..run.walk import Walk
from ..settings import checked, count, mapping
from ..settings.describe import numbered
from ..text.prompts import Prompts

if TYPE_CHECKING:
    from ..models.base import Model
    from ..models.info import ModelInfo
    from ..run.batch import Batch

GURNEE = "Gurnee et al. 2026, Verbalizable Representations Form a Global Workspace in Language Models"
CUT = 128  # tokens of a text, as published


@checked(facts=mapping())
@dataclass(repr=False, eq=False)
class JacobianLens(Fitted):
    """Mean Jacobians J of the last layer's stream with respect to that of each layer; the read-out is head(norm(J h)).

    Layer n counts the blocks applied, so the reference implementation's l is our l + 1.
    ``LogitLens(variants=("normed", "jacobian"), jacobian=lens)`` measures cross-entropy, entropy, KL, agreement and
    accuracy per layer.

    Attributes
    ----------
    weight : torch.Tensor
        (layer, d, d) float32 J, row i for coordinate i of the last layer.
    facts : dict
        ``model`` and ``weights`` (empty for a file of the reference implementation, which names none), ``layers``,
        ``to``, ``n_prompts``, ``n_layers`` of the model, prompts and settings of the fit.

    Raises
    ------
    ValueError
        For tensors of other shapes, or NaN or infinite numbers.

    References
    ----------
    Gurnee et al. 2026, Verbalizable Representations Form a Global Workspace in Language Models;
    github.com/anthropics/jacobian-lens.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> texts = [t.text[:200] for t in ti.bundled_texts("story")[:2]]
    >>> lens = ti.lens.fit_jacobian_lens(model, texts, layers=[6, 7], progress=False)
    >>> asked = {"lens": ti.lens.LogitLens(layers=[7], variants=("normed", "jacobian"), jacobian=lens)}
    >>> ds = ti.measure(model, texts, asked, progress=False)["lens"]
    >>> ds["kl"].dims
    ('prompt', 'layer', 'variant')
    """

    weight: torch.Tensor
    facts: dict[str, Any]

    KIND, WHAT = "tokinterp Jacobian lens 1", "Jacobian lens"
    NEEDS, FOUND = ("layers", "to", "n_prompts"), ("n_prompts",)

    def __post_init__(self) -> None:
        self.check()

    @property
    def layers(self) -> list[int]:
        """Layers that have a Jacobian."""
        return self.facts["layers"]

    def _shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of each tensor."""
        return {"weight": (len(self.layers), self.weight.shape[-1], self.weight.shape[-1])}

    def _about(self) -> str:
        """Return how many layers and prompts there are."""
        return f"{len(self.layers)} layers, {self.facts['n_prompts']} prompts"

    def check_use(self, info: ModelInfo, layers: Sequence[int]) -> None:
        """Raise ValueError if the lens is of another model, lacks a layer, or does not lead to the last."""
        self.check_model(info)
        if self.weight.shape[1] != info.d_model:
            raise ValueError(f"this Jacobian lens has {self.weight.shape[1]} channels, {info.id} has {info.d_model}")
        if self.facts["to"] != info.n_layers:
            raise ValueError(f"this Jacobian lens leads to layer {self.facts['to']}, the head reads {info.n_layers}")
        if missing := sorted(set(layers) - set(self.layers) - {info.n_layers}):
            raise ValueError(f"the Jacobian lens has no layers {missing}: it has {self.layers}")

    @checked(layer=count())
    def translate(self, resid: torch.Tensor, layer: int) -> torch.Tensor:
        """Return points of the stream at a layer, (..., d), as the last layer would have them, in their dtype.

        Points of a layer that has no Jacobian because it is the last one are returned as they are.
        """
        if layer not in self.layers:
            return resid
        if self.weight.device != resid.device:
            self.weight = self.weight.to(resid.device)
        return (resid.float() @ self.weight[self.layers.index(layer)].T).to(resid.dtype)

    @checked(layer=count())
    def directions(self, model: Model, ids: Sequence[int], layer: int) -> torch.Tensor:
        """Return (id, d) float32 J^T u: the direction at a layer that raises the later logit of each token id.

        ``edits.add(Site("resid", layer), a * direction)`` steers towards the token.

        Raises
        ------
        ValueError
            If the lens lacks the layer or is of another model.
        """
        self.check_use(model.info, [layer])
        rows = embeddings(model, ["output"])["output"][list(ids)]
        if layer not in self.layers:
            return rows
        return rows @ self.weight[self.layers.index(layer)].to(rows.device)

    @classmethod
    @checked()
    def load(cls, path: str | Path, model: Model | None = None) -> JacobianLens:
        """Read a lens that `save` wrote, or a ``.pt`` file of the reference implementation (read as tensors only).

        Parameters
        ----------
        path : path
            The file.
        model : Model, optional
            Refuse a lens of another model at once.  A ``.pt`` file does not say to which layer it leads: that is the
            model's last, and without a model the one after its own last.

        Raises
        ------
        FileNotFoundError
            If there is no file.
        ValueError
            If it is neither, damaged (digest, shapes, NaN), or of another model.
        """
        path = local_path(path)
        if path.suffix != ".pt":
            return super().load(path, model)
        found = pickled_tensors(path)
        matrices = found.get("J") if isinstance(found, dict) else None
        if (
            not isinstance(matrices, dict)
            or not matrices
            or not all(isinstance(b, int) and isinstance(m, torch.Tensor) and m.ndim == 2 for b, m in matrices.items())
        ):
            raise ValueError(f"{path} holds no Jacobian lens: the reference format has matrices by block under 'J'")
        n_prompts = int(found.get("n_prompts", 0))
        layers = sorted(b + 1 for b in matrices)
        weight = torch.stack([matrices[n - 1].float() for n in layers])
        to = layers[-1] + 1 if model is None else model.info.n_layers
        out = cls(weight, {"model": path.stem, "weights": "", "layers": layers, "to": to, "n_prompts": n_prompts})
        if model is not None:
            out.check_use(model.info, layers)
        return out


@at_once()
@checked(to=count(1), skip=count())
@steady
def fit_jacobian_lens(
    model: Model,
    prompts: Prompts | Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    to: int | None = None,
    skip: int = 16,
    **walk: Unpack[Walk],
) -> JacobianLens:
    """Fit the mean Jacobian from layers of the stream to a later one.

    Of each prompt, positions ``skip`` to the last but one take part: J is the mean over sources t of the sum over
    targets t' >= t of d h_to[t'] / d h_layer[t], and the mean of that over prompts.

    Parameters
    ----------
    model : Model
        The model, which is not changed.
    prompts : Prompts or sequence of str
        What to fit on; texts are cut at 128 tokens, as published, Prompts are taken as they are.
    layers : sequence of int, optional
        Layers of the sources; by default all from 1 to the one before ``to``.
    to : int, optional
        Layer of the targets; by default the last, before the final norm.
    skip : int
        Positions at the beginning that are left out, where states are unusual (16 as published).
    **walk
        ``batch_tokens`` (2048 by default: the memory of their backward pass is what a device must have), ``store``
        (LENS.safetensors), ``checkpoint_every``, ``progress``: see `tokinterp.run.walk.Walk`.

    Returns
    -------
    JacobianLens
        On the CPU.

    Raises
    ------
    ValueError
        If a layer is not before ``to``, no prompt has more than ``skip`` + 1 tokens, gradients are NaN or infinite
        (float16), or the store is of another fit.
    KeyboardInterrupt
        After Ctrl-C, once the batch in progress has been finished and kept.

    Notes
    -----
    Costs d_model backward passes per batch, whatever the number of layers.  Sums are in float64.

    References
    ----------
    Gurnee et al. 2026, Verbalizable Representations Form a Global Workspace in Language Models;
    github.com/anthropics/jacobian-lens.

    Examples
    --------
    >>> import tokinterp as ti
    >>> texts = [t.text[:150] for t in ti.bundled_texts("story")[:2]]
    >>> ti.lens.fit_jacobian_lens(ti.load_model(), texts, layers=[7], progress=False).layers
    [7]
    """
    last, batch_tokens = model.info.n_layers, walk.get("batch_tokens") or 2048
    goal = last if to is None else to
    chosen = list(range(1, goal)) if layers is None else sorted(set(layers))
    if goal > last:
        raise ValueError(f"to={to}: {model.info.id} has layers 0 to {last}")
    if not chosen or chosen[0] < 0 or chosen[-1] >= goal:
        raise ValueError(f"layers={chosen}: give layers from 0 to {goal - 1}, before the one they lead to, {goal}")
    if not isinstance(prompts, Prompts):
        prompts = Prompts.from_texts(prompts, model, max_tokens=min(CUT, model.info.max_tokens), progress=False)
    if max(prompts.lengths) < skip + 2:
        raise ValueError(
            f"skip={skip}: the longest prompt has {max(prompts.lengths)} tokens, and its last takes no part: give "
            f"prompts of at least {skip + 2} tokens, or a lower skip"
        )
    facts = {
        **fit_facts(model, prompts), "layers": chosen, "to": goal, "n_layers": last, "skip": skip,
        "batch_tokens": batch_tokens,
    }  # fmt: skip
    with Checkpoint(walk.get("store"), facts, walk.get("checkpoint_every", EVERY)) as keep:
        if keep.finished:
            return keep.read(JacobianLens)
        begin = keep.state()
        read, used = (begin[0]["read"], begin[0]["used"]) if begin else (0, 0)
        total = None if begin is None else begin[1]["sum"].to(model.device)
        bar = walk.get("progress", True)
        source = stream(model, prompts, resid([goal]), batch_tokens=batch_tokens, start=read, progress=bar)
        source.left_out |= dict(begin[0]["left_out"]) if begin else {}
        for n, part in source.each(partial(_of_batch, layers=chosen, to=goal, skip=skip)):
            used, total = used + n, part if total is None else total + part
            notes = {"read": source.read, "used": used, "left_out": [*source.left_out.items()]}
            tensors = {"sum": total}
            keep.step(f"after {source.read} of {len(prompts)} prompts", lambda n=notes, t=tensors: (n, t))
        if total is None or not used:
            raise ValueError(f"skip={skip}: no prompt has positions left: give longer ones, or a lower skip")
        lens = JacobianLens((total / used).float().cpu(), {**facts, "n_prompts": used})
        keep.write(lens)
        return lens


def _of_batch(batch: Batch, layers: Sequence[int], to: int, skip: int) -> tuple[int, torch.Tensor]:
    """Return how many prompts take part, and the sum of their Jacobians."""
    place = torch.arange(batch.ids.shape[1], device=batch.device, dtype=torch.int64)
    valid = (place >= skip) & (place < batch.mask.sum(1, keepdim=True) - 1)
    found = jacobians(batch.model, batch.ids, batch.mask, layers, to, valid)
    if not bool(found.isfinite().all()):
        raise ValueError(
            f"gradients of prompts {numbered(sorted(batch.numbers))} are NaN or infinite in {batch.model.info.dtype}: "
            "load the model with dtype='float32', or leave such prompts out"
        )
    return int(valid.any(1).sum()), found
