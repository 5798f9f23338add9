"""TunedLens: one affine map per layer that takes the stream to where the last layer would have it, then the head."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..files.paths import local_path
from ..files.received import pickled_tensors
from ..fitted import Fitted
from ..settings import checked, count, instance, mapping

if TYPE_CHECKING:
    from ..models.base import Model
    from ..models.info import ModelInfo


@checked(facts=mapping())
@dataclass(repr=False, eq=False)
class TunedLens(Fitted):
    """Translators h -> h + A h + b of the layers before the last (Belrose et al. 2023, arXiv 2303.08112).

    Layer n counts the blocks applied: the translator of layer n belongs to ``hidden_states[n]``, 0 is the embedding,
    and the last layer has none. ``LogitLens(variants=("normed", "tuned"), tuned=lens)`` measures cross-entropy,
    entropy, KL, agreement and accuracy per layer.

    Attributes
    ----------
    weight : torch.Tensor
        (layer, d, d) float32 A.
    bias : torch.Tensor
        (layer, d) float32 b.
    facts : dict
        ``model`` and ``weights`` (empty for a published checkpoint, which names none), ``layers``, prompts and settings
        of the fit, and ``history``: layer -> how it was fitted, with ``blend`` (share of the closed-form map that was
        taken), and ``kl`` of the identity, of the start and after training, on the tokens that were kept for this.

    Raises
    ------
    ValueError
        For tensors of other shapes, or NaN or infinite numbers.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> texts = [t.text[:300] for t in ti.bundled_texts("story")[:12]]
    >>> lens = ti.lens.fit_tuned_lens(model, texts, layers=[2], steps=0, progress=False)
    >>> asked = {"lens": ti.lens.LogitLens(layers=[2], variants=("normed", "tuned"), tuned=lens)}
    >>> kl = ti.measure(model, texts, asked, progress=False)["lens"]["kl"].mean("prompt")
    >>> bool(kl.sel(layer=2, variant="tuned") < kl.sel(layer=2, variant="normed"))
    True
    """

    weight: torch.Tensor
    bias: torch.Tensor
    facts: dict[str, Any]

    KIND, WHAT = "tokinterp tuned lens 3", "tuned lens"
    NEEDS, FOUND = ("layers",), ("history",)

    def __post_init__(self) -> None:
        self.check()

    @property
    def layers(self) -> list[int]:
        """Layers that have a translator."""
        return self.facts["layers"]

    def _shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of each tensor."""
        n, width = len(self.layers), self.weight.shape[-1]
        return {"weight": (n, width, width), "bias": (n, width)}

    def _about(self) -> str:
        """Return how many layers there are."""
        return f"{len(self.layers)} layers"

    @classmethod
    @checked(info=instance("ModelInfo"))
    def identity(cls, info: ModelInfo, layers: Sequence[int] | None = None) -> TunedLens:
        """Return translators with A = 0 and b = 0: the logit lens."""
        chosen = list(range(info.n_layers)) if layers is None else sorted(layers)
        bad = [n for n in chosen if not 0 <= n < info.n_layers]
        if bad or not chosen:
            raise ValueError(
                f"layers={bad}: layers 0 to {info.n_layers - 1} of {info.id} can have a translator; the "
                f"last, {info.n_layers}, needs none"
            )
        shape = (len(chosen), info.d_model, info.d_model)
        return cls(
            torch.zeros(shape, dtype=torch.float32, device="cpu"),
            torch.zeros(shape[:2], dtype=torch.float32, device="cpu"),
            {"model": info.id, "weights": info.identity, "layers": chosen},
        )

    def check_use(self, info: ModelInfo, layers: Sequence[int]) -> None:
        """Raise ValueError if the lens is of another model or lacks a layer."""
        self.check_model(info)
        if self.weight.shape[1] != info.d_model:
            raise ValueError(f"this tuned lens has {self.weight.shape[1]} channels, {info.id} has {info.d_model}")
        if missing := sorted(set(layers) - set(self.layers) - {info.n_layers}):
            raise ValueError(f"the tuned lens has no translator of layers {missing}: it has {self.layers}")

    @checked(layer=count())
    def translate(self, resid: torch.Tensor, layer: int) -> torch.Tensor:
        """Return points of the stream at a layer, (..., d), as the last layer would have them.

        A layer that has no translator because it is the last one is returned as it is.
        """
        if layer not in self.layers:
            return resid
        if self.weight.device != resid.device:
            self.weight, self.bias = self.weight.to(resid.device), self.bias.to(resid.device)
        i, x = self.layers.index(layer), resid.float()
        return (x + x @ self.weight[i].T + self.bias[i]).to(resid.dtype)

    @classmethod
    @checked()
    def load(cls, path: str | Path, model: Model | None = None) -> TunedLens:
        """Read a lens that `save` wrote, or a published checkpoint of the tuned-lens library.

        Parameters
        ----------
        path : path
            A ``.safetensors`` file, or a folder with ``config.json`` and ``params.pt`` (read as tensors only).
        model : Model, optional
            Refuse a lens of another model at once.

        Raises
        ------
        FileNotFoundError
            If there is nothing.
        ValueError
            If it is neither, or damaged (digest, shapes, NaN), or of another model.
        """
        if not local_path(path).is_dir():
            return super().load(path, model)
        out = cls._published(local_path(path))
        if model is not None:
            out.check_model(model.info)
        return out

    @classmethod
    def _published(cls, folder: Path) -> TunedLens:
        """Read ``config.json`` and ``params.pt`` with a linear layer (weight A, bias b) per layer, 0 first."""
        if not (folder / "config.json").is_file() or not (folder / "params.pt").is_file():
            raise ValueError(f"{folder} has no config.json and params.pt of a published tuned lens")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        params = pickled_tensors(folder / "params.pt")
        n = int(config.get("num_hidden_layers", 0))
        names = [f"{i}.weight" for i in range(n)]
        if not n or any(name not in params for name in names):
            raise ValueError(
                f"{folder}/params.pt has {', '.join(list(params)[:4])}: a published tuned lens has {n or 'n'} layers "
                "named 0.weight, 0.bias, ..."
            )
        weight = torch.stack([params[name].float() for name in names])
        zero = torch.zeros(weight.shape[1], dtype=torch.float32, device="cpu")
        bias = torch.stack([params.get(f"{i}.bias", zero).float() for i in range(n)])
        name = str(config.get("base_model_name_or_path", folder.name))
        return cls(weight, bias, {"model": name, "weights": "", "layers": list(range(n))})
