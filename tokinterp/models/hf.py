"""Load a Hugging Face causal LM, from the hub or a local folder, and say what it is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..files.bars import watched
from ..files.paths import local_path
from ..files.received import plain_name
from ..kernels.state import passing
from ..settings.describe import tokenizer_hash
from ..settings.kinds import short
from .hooks import HookedLM
from .info import ModelInfo
from .modules import Modules, find_modules, rows_of, size_of, submodule
from .proof import some_ids
from .tokenizer.files import check_tokenizer, hub_message
from .tokenizer.sentencepiece import read_tokenizer

_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length", "n_ctx")


def choose_device(device: str | torch.device | None) -> torch.device:
    """Return the device to load on: the one named, else a GPU if there is one, else the CPU.

    Raises
    ------
    ValueError
        If the device does not exist on this machine.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device {device!r} is no torch device: write 'cpu', 'cuda' or 'cuda:1'") from None
    n_gpus = torch.cuda.device_count()
    if chosen.type == "cuda" and (chosen.index or 0) >= n_gpus:
        raise ValueError(f"device={device!r} does not exist: torch sees {n_gpus} CUDA devices here; use device='cpu'")
    if chosen.type == "meta":
        raise ValueError("device='meta' holds no numbers: use device='cpu' or 'cuda'")
    if chosen.type == "mps":
        raise ValueError("device 'mps' has no float64, which every sum here needs: use device='cpu'")
    try:
        torch.empty(0, device=chosen, dtype=torch.float32)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device={device!r} does not exist here ({str(error).splitlines()[0]}): use 'cpu'") from None
    return chosen


def choose_dtype(dtype: str | torch.dtype | None, device: torch.device | None) -> torch.dtype | str:
    """Return the dtype to load in: the one named, else the checkpoint's on a GPU and float32 on the CPU."""
    if dtype is None:
        return torch.float32 if device is not None and device.type == "cpu" else "auto"
    if dtype == "auto":
        return "auto"
    found = dtype if isinstance(dtype, torch.dtype) else getattr(torch, str(dtype).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype={dtype!r} is no floating-point dtype: write 'float32', 'bfloat16' or 'float16'")
    return found


def read_config(
    name: str | Path,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    device_map: Any = None,
    trust_remote_code: bool = False,
    tokenizer: Any = None,
) -> tuple[torch.device | None, Any, Path, Any]:
    """Check all that can be checked without the weights; return (device, dtype, folder, config)."""
    from transformers import AutoConfig

    if device is not None and device_map is not None:
        raise ValueError(f"device={device!r} and device_map={short(device_map)} exclude each other: give one of them")
    place = choose_device(device) if device_map is None else None
    kind = choose_dtype(dtype, place)
    folder = local_path(name, "model")
    local = folder.is_dir()
    if not local and (str(name).startswith((".", "/", "~")) or folder.is_file() or str(name).count("/") > 1):
        raise ValueError(
            f"name_or_folder={str(name)!r}: there is no such folder: give a folder with config.json, or a name on "
            "the hub"
        )
    source = str(folder) if local else str(name)
    if local:
        if revision is not None:
            raise ValueError(f"revision={revision!r}: a folder has none; leave it out, or give the name on the hub")
        check_folder(folder, need_tokenizer=tokenizer is None)
    common: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(source, **common)
    except OSError as error:
        raise ValueError(hub_message(name, error)) from error
    check_config(config, str(name))
    if getattr(config, "rescale_every", 0):
        config.rescale_every = 0  # RWKV then halves its stream every few blocks, which it was not trained with
    return place, kind, folder, config


@contextmanager
def loading_quietly() -> Iterator[None]:
    """Let the bars of transformers and of the hub be quiet, too, where nobody looks; afterwards they are as before.

    What the user says in ``HF_HUB_DISABLE_PROGRESS_BARS`` is left as it is.
    """
    from transformers.utils import logging

    own = watched() or "HF_HUB_DISABLE_PROGRESS_BARS" in os.environ or not logging.is_progress_bar_enabled()
    if not own:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if not own:
            logging.enable_progress_bar()


def load_hf(
    name: str | Path,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    device_map: Any = None,
    trust_remote_code: bool = False,
    tokenizer: Any = None,
) -> tuple[nn.Module, Any, str, str]:
    """Load a causal LM and its tokenizer; return (model, tokenizer, id, revision)."""
    from transformers import AutoModelForCausalLM

    place, kind, folder, config = read_config(
        name, revision=revision, dtype=dtype, device=device, device_map=device_map,
        trust_remote_code=trust_remote_code, tokenizer=tokenizer,
    )  # fmt: skip
    local = folder.is_dir()
    source = str(folder) if local else str(name)
    common: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if tokenizer is None:
        tokenizer = read_tokenizer(source, **common)
    try:
        with loading_quietly():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source, config=config, dtype=kind, device_map=device_map, output_loading_info=True, **common
            )
    except OSError as error:
        raise ValueError(hub_message(name, error)) from error
    except ValueError as error:
        if "Unrecognized configuration class" in str(error):
            raise ValueError(f"{name}: {type(config).__name__} is no causal language model") from error
        raise
    except Exception as error:
        if type(error).__name__ not in ("UnpicklingError", "SafetensorError"):
            raise
        raise ValueError(
            f"{name}: the weights are damaged or more than tensors ({type(error).__name__}): get them as safetensors"
        ) from error
    lm, loading = loaded
    if missing := sorted(loading["missing_keys"]):
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise ValueError(f"{name}: the checkpoint lacks {shown}, which would be random: get the complete weights")
    lm.eval()
    if place is not None:
        lm.to(place)
    found = "local" if local else (getattr(config, "_commit_hash", None) or revision or "main")
    return lm, tokenizer, folder.resolve().name if local else str(name), found


def check_folder(folder: Path, need_tokenizer: bool) -> None:
    """Refuse a local folder that lacks its config, a shard of its weights, or its tokenizer."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json: is it a Hugging Face model folder?")
    for index in folder.glob("*.index.json"):
        needed = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        missing = sorted(n for n in needed if not plain_name(n, folder).is_file())
        if missing:
            raise ValueError(f"{folder} lacks {', '.join(missing)}, which {index.name} names: copy the missing shards")
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("pytorch_model*.bin")):
        raise ValueError(f"{folder} has no weights: looked for *.safetensors and pytorch_model*.bin")
    if need_tokenizer:
        check_tokenizer(folder)


def check_config(config: Any, name: str) -> None:
    """Refuse models that are not decoder-only."""
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{name} is an encoder-decoder model ({config.model_type}): tokinterp measures decoder-only (causal) "
            "language models"
        )


def make_model(
    lm: nn.Module,
    tokenizer: Any,
    *,
    id: str,
    revision: str = "local",
    backend: str = "hf",
    modules: Modules | None = None,
    source: Any = None,
    before: Mapping[str, Any] | None = None,
) -> HookedLM:
    """Return the hooked model of a Hugging Face causal LM, verified by value.

    ``before`` are the hashes of ``weights`` and ``state`` of its modules before another library changed these.
    """
    before = before or {}
    outer, lm = lm, unwrap(lm)
    check_config(lm.config, id)
    if any(p.is_meta for p in lm.parameters()):
        raise ValueError(
            f"{id}: some weights are not in memory (left on disk or CPU by device_map, or never loaded): use more or "
            "larger GPUs, dtype='bfloat16', or device='cpu'"
        )
    config: Any = lm.config.get_text_config()  # type: ignore[operator,union-attr]
    modules = modules or find_modules(lm)
    blocks = submodule(lm, modules.blocks)
    if blocks is None:
        raise ValueError(f"{type(lm).__name__} has no module {modules.blocks!r}: name the list of blocks")
    head = lm.get_output_embeddings()  # type: ignore[operator]
    embedding = lm.get_input_embeddings()  # type: ignore[operator]
    if head is None:
        raise ValueError(f"{type(lm).__name__} has no output embeddings: load it as a causal language model")
    limit = next((int(v) for n in _CONTEXT if isinstance(v := getattr(config, n, None), int) and v > 0), None)
    if limit is None:
        known = getattr(tokenizer, "model_max_length", 0) or 0
        limit = int(known) if 0 < known < 10**8 else 2**20
    width = int(getattr(config, "hidden_size", None) or size_of(embedding)[2])
    dtype = size_of(head)[0] or next((p.dtype for p in lm.parameters() if p.is_floating_point()), torch.float32)
    heads = getattr(config, "num_attention_heads", None) or 0  # none in a state-space model
    info = ModelInfo(
        id=id,
        revision=revision,
        weights=before.get("weights", ""),
        architecture=type(lm).__name__,
        backend=backend,
        n_layers=len(blocks),
        n_heads=int(max(heads) if isinstance(heads, list | tuple) else heads),
        d_model=width,
        d_vocab=rows_of(head, int(getattr(config, "word_embed_proj_dim", None) or width)),
        max_tokens=limit,
        dtype=str(dtype).removeprefix("torch."),
        device=str(size_of(embedding)[1]),
        tokenizer=tokenizer_hash(tokenizer),
        facts=dict(before),
    )
    model = HookedLM(lm, tokenizer, modules, info, outer if source is None else source)
    if outer is not lm:
        check_same(model, outer)
    return model


def unwrap(obj: Any) -> Any:
    """Return the Hugging Face model inside what torch.compile, DataParallel or PEFT made of it, adapters included."""
    while True:
        if isinstance(inner := getattr(obj, "_orig_mod", None), nn.Module):
            obj = inner
        elif type(obj).__name__ in ("DataParallel", "DistributedDataParallel"):
            obj = obj.module
        elif hasattr(type(obj), "get_base_model"):
            obj = obj.get_base_model()
        else:
            return obj


def check_same(model: HookedLM, outer: nn.Module) -> None:
    """Raise ValueError if what was around a model (prompt tuning, a prefix) changes what it computes."""
    ids = some_ids(model, 2, 8)
    with passing(outer), torch.compiler.set_stance("force_eager"):
        own, theirs = (m(input_ids=ids).logits for m in (model.lm, outer))
    if own.shape != theirs.shape or not torch.allclose(own, theirs.to(own.device), rtol=1e-2, atol=1e-2):
        raise ValueError(
            f"{model.info.id}: {type(outer).__name__} computes other logits than {type(model.lm).__name__} inside it "
            "(prompt tuning and prefixes add tokens that have no place in a prompt): wrap the model without it, or "
            "merge it (merge_and_unload)"
        )


def short_name(lm: nn.Module, name: str | None = None) -> str:
    """Return the hub name of a model, or the last part of its folder: no paths of a machine in results."""
    name = name or str(getattr(lm, "name_or_path", "") or "") or type(lm).__name__
    return Path(name).resolve().name if name.startswith((".", "/", "~")) or Path(name).is_dir() else name
