"""Models from any of three libraries behind one small interface."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..run.signals import at_once
from ..settings import anything, check, checked, device, instance, mapping, one_of, short
from .bundled import bundled_name, model_source
from .info import ModelInfo
from .tokenizer import load_tokenizer

if TYPE_CHECKING:
    from .base import Activations, Model
    from .hooks import HookedLM
    from .modules import Modules

__all__ = [
    "Activations",
    "HookedLM",
    "Model",
    "ModelInfo",
    "Modules",
    "load_model",
    "load_tokenizer",
    "wrap",
]

MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
WITH_TORCH = {"Activations": "base", "HookedLM": "hooks", "Model": "base", "Modules": "modules"}
"""Names that are loaded when they are first touched, since tokenizers do without torch."""
BACKENDS = ("hf", "transformer_lens", "nnsight")


def __getattr__(name: str) -> Any:
    if name in WITH_TORCH:
        return getattr(import_module(f".{WITH_TORCH[name]}", __package__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@at_once("call it again")
@checked(backend=one_of(*BACKENDS), device_map=one_of(*MAPS) | mapping(anything) | device, modules=instance("Modules"))
def load_model(
    name_or_folder: str | Path | None = None,
    *,
    backend: str = "hf",
    revision: str | None = None,
    dtype: Any = None,
    device: Any = None,
    device_map: Any = None,
    trust_remote_code: bool = False,
    tokenizer: Any = None,
    modules: Modules | None = None,
) -> HookedLM:
    """Load a causal language model and prove by value that its sites are where they should be.

    Parameters
    ----------
    name_or_folder : str or Path, optional
        Name on the Hugging Face hub or local folder; the bundled model when left out or ``"bundled"``, and
        ``"bundled/narrow"`` the one of few coordinates and short pieces (folders of these names are ``"./bundled"``).
    backend : {"hf", "transformer_lens", "nnsight"}
        Library whose object is kept as ``model.source``; the numbers are the same.
    revision : str, optional
        Branch, tag or commit on the hub.
    dtype : str or torch.dtype, optional
        Of the weights; by default float32 on the CPU and that of the checkpoint on a GPU.  Sums are float64 anyway.
    device : str or torch.device, optional
        By default a GPU if there is one.
    device_map : str or dict, optional
        Passed to transformers, for example ``"auto"`` to spread a model over several GPUs.
    trust_remote_code : bool
        Whether to run code from the model's repository.
    tokenizer : optional
        A tokenizer to use in the place of the model's own.
    modules : Modules, optional
        Where blocks, norm, attention and MLP are, for an architecture that is not recognised.

    Returns
    -------
    HookedLM
        The model, in eval mode.

    Raises
    ------
    ValueError
        For a folder without config, tokenizer or a shard, a device that does not exist, an encoder-decoder, an unknown
        architecture, or one whose last layer does not give the model's own logits.
    ImportError
        If the library of the backend is not installed.

    Examples
    --------
    >>> import tokinterp as ti
    >>> model = ti.load_model()
    >>> model.info.backend
    'hf'
    """
    from .hf import load_hf, make_model

    if backend != "hf":
        import_module(f".{backend}", __package__).library()  # a missing library is said before anything is loaded
    bundled = bundled_name(name_or_folder)
    lm, found, id, rev = load_hf(
        model_source(name_or_folder),
        revision=revision, dtype=dtype, device=device, device_map=device_map,
        trust_remote_code=trust_remote_code, tokenizer=tokenizer,
    )  # fmt: skip
    id = f"tokinterp/{bundled}" if bundled else id
    if backend == "transformer_lens":
        from .fingerprint import state_hash, weights_hash
        from .transformer_lens import bridge_from, wrap_bridge

        raw = {"weights": weights_hash(lm), "state": state_hash(lm)}
        bridge = bridge_from(lm, found, id)
        return wrap_bridge(bridge, found, id=id, revision=rev, modules=modules, before=raw)
    if backend == "nnsight":
        from .nnsight import nnsight_from, wrap_nnsight

        return wrap_nnsight(nnsight_from(lm, found), found, id=id, revision=rev, modules=modules)
    return make_model(lm, found, id=id, revision=rev, modules=modules)


def check_source(
    name_or_folder: str | Path | None = None, *, backend: str = "hf", revision: str | None = None, dtype: Any = None,
    device: Any = None, device_map: Any = None, trust_remote_code: bool = False,
) -> None:  # fmt: skip
    """Refuse what `load_model` refuses before it reads the weights: settings, folder, config, missing files."""
    from .hf import read_config

    place = {"dtype": dtype, "device": device, "device_map": device_map}
    check(load_model, name_or_folder=name_or_folder, backend=backend, revision=revision, **place)
    read_config(model_source(name_or_folder), revision=revision, trust_remote_code=trust_remote_code, **place)


@at_once("call it again")
@checked()
def wrap(obj: Any, tokenizer: Any = None, *, id: str | None = None, modules: Modules | None = None) -> HookedLM:
    """Return the tokinterp model of an object that another library loaded.

    Parameters
    ----------
    obj
        A Hugging Face causal LM, a TransformerLens 4 ``TransformerBridge`` with raw weights, or an nnsight
        ``LanguageModel``/``TransformersModel``.
    tokenizer : optional
        For a Hugging Face model, whose tokenizer is a separate object; else in the place of the object's own.
    id : str, optional
        Name to record.
    modules : Modules, optional
        Where blocks, norm, attention and MLP are, for an architecture that is not recognised.

    Raises
    ------
    TypeError
        For any other object.
    ValueError
        For a bridge in compatibility mode, or a model that does not pass the proof by value.

    Examples
    --------
    >>> import tokinterp as ti
    >>> loaded = ti.load_model()
    >>> ti.wrap(loaded.lm, loaded.tokenizer).info.n_layers == loaded.info.n_layers
    True
    """
    from .hf import make_model, short_name, unwrap
    from .hooks import HookedLM

    if isinstance(obj, HookedLM):
        return obj
    names = {c.__name__ for c in type(obj).__mro__}
    if "HookedTransformer" in names:
        raise TypeError(
            "HookedTransformer is gone from transformer_lens 4: use TransformerBridge.boot_transformers(name) and "
            "tokinterp.wrap(bridge), or tokinterp.load_model(name, backend='transformer_lens')"
        )
    if "TransformerBridge" in names or (hasattr(obj, "original_model") and hasattr(obj, "cfg")):
        from .transformer_lens import wrap_bridge

        return wrap_bridge(obj, tokenizer, id=id, modules=modules)
    if hasattr(obj, "_module") and ({"NNsight", "Envoy"} & names):
        from .nnsight import wrap_nnsight

        return wrap_nnsight(obj, tokenizer, id=id, modules=modules)
    if hasattr(obj, "get_output_embeddings") and hasattr(obj, "config"):
        return make_model(obj, tokenizer, id=id or short_name(unwrap(obj)), modules=modules)
    raise TypeError(
        f"obj={short(obj)}: cannot wrap {type(obj).__name__}: give a Hugging Face causal LM, a TransformerBridge or "
        "an nnsight "
        "LanguageModel, or a name or folder to load_model"
    )
