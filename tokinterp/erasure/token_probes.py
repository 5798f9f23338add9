"""TokenProbes: what a fit of token probes leaves, in memory or on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open

from ..fitted import Fitted, Tensors
from ..settings import checked, count, instance, integer, mapping, of, several, short
from . import probe_files
from .kernels import softmax as kernel
from .probe_files import check_layer
from .probe_text import TextStatistics

if TYPE_CHECKING:
    from ..models.base import Model
    from ..models.info import ModelInfo


class TokenProbes(Fitted):
    """Linear maps from the stream at position t of a layer to the token at t + offset.

    Made with `fit_probes`, `TokenProbes.load` or `read_feucht2024`.  The logits of a state h are
    ``((h - mean) / scale) @ weight.T (+ bias)``: mean and scale of the layer are those of the training states (absent
    for states taken raw), the bias belongs to the closed forms only.

    Attributes
    ----------
    layers, offsets : list of int
        What was fitted.
    labels : torch.Tensor
        (class,) int64 types that have a row of weights.
    facts : dict
        Model, tokenizer and data hashes, method and settings, as JSON types.
    text : TextStatistics or None
        Label counts and baselines of the training text; unknown for the released checkpoints.

    Notes
    -----
    Only types that occur as labels have weights.  For the softmax over all types that is the limit that maximum
    likelihood seeks: a type that is never a label enters the training loss only as an addend of the normaliser, so the
    loss falls as its logits go to minus infinity, where its probability is 0, and the weights of the other types then
    have the gradient that they have here.

    Examples
    --------
    >>> import tokinterp as ti
    >>> from tokinterp.erasure.probes import fit_probes
    >>> model = ti.load_model()
    >>> prompts = ti.Prompts.from_texts(["The Nile flows north.", "The Rhine flows north."], model)
    >>> probes = fit_probes(model, prompts, layers=[0, 2], offsets=[0], progress=False)
    >>> probes.weight(2, 0).shape == (len(probes.labels), model.info.d_model)
    True
    """

    @checked(
        layers=several(count()),
        parts=of("a dictionary: layer -> tensors or a path", lambda v: isinstance(v, dict)),
        facts=mapping(),
        text=instance("TextStatistics"),
    )
    def __init__(
        self, layers: Sequence[int], offsets: Sequence[int], labels: torch.Tensor, parts: Mapping[int, Tensors | Path],
        facts: dict[str, Any], text: TextStatistics | None = None,
    ) -> None:  # fmt: skip
        if odd := [k for k in parts if k not in layers]:
            raise ValueError(f"parts={short(parts)}: {short(odd[0])} is none of layers={list(layers)}")
        if lacking := [k for k in ("d_model", "d_vocab") if k not in facts]:
            raise ValueError(f"facts={short(facts)}: it has no {lacking[0]!r}: give the facts of other probes")
        self.layers, self.offsets, self.labels = list(layers), list(offsets), labels
        self.facts, self.text = {**facts, "layers": self.layers, "offsets": self.offsets}, text
        self._parts = dict(parts)
        for layer, part in self._parts.items():
            if isinstance(part, dict):
                there = [o for o in self.offsets if f"weight.{o}" in part]
                check_layer(part, there, len(labels), facts["d_model"], f"the probes of layer {layer}")
        self._near: dict[tuple[int, str, str], tuple[torch.Tensor, int]] = {}  # and how often it had been changed
        self._scratch: kernel.Scratch | None = None
        self._class: torch.Tensor | None = None

    KIND, WHAT = "tokinterp-probes-2", "token probes"

    def _about(self) -> str:
        """Return what was fitted, and how."""
        what = f"layers {self.layers}, offsets {self.offsets}, {len(self.labels)} types"
        return f"{what}, {self.facts.get('method')}"

    # -- weights ----------------------------------------------------------------------------------------------
    def _check(self, layer: int, offset: int) -> None:
        if layer not in self._parts:
            raise ValueError(f"layer={layer}: no probe of layer {layer}: probes were fitted at layers {self.layers}")
        if offset not in self.offsets:
            raise ValueError(
                f"offset={offset}: no probe of offset {offset}: probes were fitted at offsets {self.offsets}"
            )

    @torch.inference_mode(False)  # what is kept is used outside of a pass too
    def _get(self, layer: int, name: str, device: torch.device | str = "cpu") -> torch.Tensor | None:
        """Return a tensor of a layer on a device, float32; what lies on disk or on another device is read once."""
        device = torch.device(device)
        part = self._parts[layer]
        if isinstance(part, dict) and (device.type == "cpu" or name not in part or part[name].device == device):
            return part.get(name)
        key = (layer, name, str(device))
        source = part[name] if isinstance(part, dict) else None
        if key not in self._near or (source is not None and self._near[key][1] != _edits(source)):
            if source is not None:
                value = source
            elif device.type != "cpu":
                value = self._get(layer, name)
            else:
                with safe_open(part, "pt") as file:
                    value = file.get_tensor(name).clone() if name in file.keys() else None  # noqa: SIM118
            if value is None:
                return None
            value = value.float().to(device)
            if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] < 4 * value.nbytes:
                return value
            self._near[key] = value, _edits(value if source is None else source)
        return self._near[key][0]

    def _edited(self, layer: int) -> Tensors:
        """Return the tensors of a layer on disk that were read and then changed in place."""
        near = {name: found for (at, name, place), found in self._near.items() if at == layer and place == "cpu"}
        return {name: value for name, (value, version) in near.items() if _edits(value) != version}

    @checked(layer=count(), offset=integer)
    def weight(self, layer: int, offset: int) -> torch.Tensor:
        """Return (class, d_model) float32 weights, which act on standardised states where the layer has a scale.

        Raises
        ------
        ValueError
            If the layer or the offset was not fitted.
        """
        self._check(layer, offset)
        found = self._get(layer, f"weight.{offset}")
        assert found is not None
        return found

    @checked(layer=count(), offset=integer)
    def bias(self, layer: int, offset: int) -> torch.Tensor | None:
        """Return (class,) float32, or None: softmax and factored probes have no bias."""
        self._check(layer, offset)
        return self._get(layer, f"bias.{offset}")

    @checked(layer=count())
    def standardise(self, resid: torch.Tensor, layer: int) -> torch.Tensor:
        """Return float32 states (row, d_model) as the probes of a layer see them."""
        if layer not in self._parts:
            raise ValueError(f"layer={layer}: no probe of layer {layer}: probes were fitted at layers {self.layers}")
        mean, scale = self._get(layer, "mean", resid.device), self._get(layer, "scale", resid.device)
        resid = resid.float()
        return resid if mean is None or scale is None else (resid - mean) / scale

    # -- reading ----------------------------------------------------------------------------------------------
    @checked(layer=count(), offset=integer)
    def read(
        self, resid: torch.Tensor, layer: int, offset: int, targets: torch.Tensor, *, standardised: bool = False,
        rank: bool = True,
    ) -> kernel.Reading:  # fmt: skip
        """Return log-probability and rank of the targets in one go.

        Parameters
        ----------
        resid : torch.Tensor
            (row, d_model) stream at the layer.
        layer, offset : int
            Which probe.
        targets : torch.Tensor
            (row,) int64 token ids at t + offset, -1 where there is none.
        standardised : bool
            Whether ``resid`` comes from `standardise` (which is the same for all offsets of a layer).
        rank : bool
            Count the greater logits.

        Returns
        -------
        Reading
            ``log_prob`` (row,) float32, NaN, and ``rank`` (row,) int64, -1, where the target was never a label of a row
            that the probe was fitted on.
        """
        self._check(layer, offset)
        if resid.ndim != 2 or resid.shape[1] != self.facts["d_model"]:
            raise ValueError(f"resid: states of shape {tuple(resid.shape)}: give (row, {self.facts['d_model']})")
        x = resid if standardised else self.standardise(resid, layer)
        if self._scratch is None or self._scratch.prob.device != x.device:
            with torch.inference_mode(False):  # it is written to in later calls, outside of a pass too
                self._scratch = kernel.Scratch(len(self.labels), 4096, x.device)
        weight = self._get(layer, f"weight.{offset}", x.device)
        assert weight is not None
        bias = self._get(layer, f"bias.{offset}", x.device)
        return kernel.read_targets(x, weight, self.classes(targets, offset), bias, self._scratch, rank)

    @checked(layer=count(), offset=integer, k=count(1))
    def predict(self, resid: torch.Tensor, layer: int, offset: int, k: int = 1) -> torch.Tensor:
        """Return (row, k) int64 token ids with the greatest logits, greatest first."""
        self._check(layer, offset)
        if k > len(self.labels):
            raise ValueError(f"k={k}: there are {len(self.labels)} types that a probe can say")
        x = self.standardise(resid, layer)
        weight, bias = (self._get(layer, f"{n}.{offset}", x.device) for n in ("weight", "bias"))
        assert weight is not None
        step = max(1, 2**26 // len(weight))
        found = [kernel.top_classes(x[a : a + step], weight, k, bias) for a in range(0, len(x), step)]
        return self.labels.to(x.device)[torch.cat(found)]

    @checked(offset=integer)
    def classes(self, targets: torch.Tensor, offset: int) -> torch.Tensor:
        """Return (row,) int64 class of token ids, -1 where it was never a label at the offset."""
        if offset not in self.offsets:
            raise ValueError(
                f"offset={offset}: no probe of offset {offset}: probes were fitted at offsets {self.offsets}"
            )
        if self._class is None:
            if self.text is not None:
                self._class = self.text.class_of()
            else:
                self._class = torch.full(
                    (len(self.offsets), self.facts["d_vocab"]), -1, dtype=torch.int64, device="cpu"
                )
                self._class[:, self.labels] = torch.arange(len(self.labels), dtype=torch.int64, device="cpu")
        if self._class.device != targets.device:
            self._class = self._class.to(targets.device)
        row = self._class[self.offsets.index(offset)]
        return torch.where(targets >= 0, row[targets.clamp_min(0)], -1)

    # -- belonging --------------------------------------------------------------------------------------------
    def tensors(self) -> Tensors:
        """Return the numbers of all layers by name, ``LAYER/NAME``; those on disk are read."""
        return {f"{n}/{k}": v for n in self.layers for k, v in probe_files.tensors_of(self, n).items()}

    @checked(info=instance("ModelInfo"))
    def check_model(self, info: ModelInfo) -> None:
        """Refuse another model or tokenizer, or one of fewer layers.

        Raises
        ------
        ValueError
            If the hash of the weights or of the tokenizer differs, or the shapes do.
        """
        super().check_model(info)
        if max(self.layers) > info.n_layers:
            raise ValueError(f"probes of layer {max(self.layers)} do not fit {info.id}, which has {info.n_layers}")

    @property
    def digest(self) -> str:
        """SHA-256 of all weights and facts as they are now."""
        return probe_files.whole_digest(self)

    # -- files ------------------------------------------------------------------------------------------------
    @checked()
    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a folder with ``probes.json`` (facts), ``text.safetensors`` and one safetensors file per layer.

        Raises
        ------
        FileExistsError
            If something is there and ``overwrite`` is false, or it is something else than probes.
        """
        return probe_files.save(self, path, overwrite)

    @classmethod
    @checked()
    def load(cls, path: str | Path, model: Model | None = None) -> TokenProbes:
        """Read probes that `save` or `fit_probes(store=...)` wrote; every number is checked once, and read when needed.

        See `tokinterp.fitted.Fitted.load`, of a folder; probes of another tokenizer are refused, too.
        """
        out = probe_files.load(path, cls)
        if model is not None:
            out.check_model(model.info)
        return out


def _edits(tensor: torch.Tensor) -> int:
    """Return how often a tensor was changed in place; inference tensors do not count."""
    return 0 if tensor.is_inference() else tensor._version
