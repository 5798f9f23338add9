"""What a model computes, as facts that can be compared: weights, config, state of its modules, hooks, tokenizer."""

from __future__ import annotations

import hashlib
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from ..kernels.state import passing
from ..settings.describe import OF_NETWORKS, describe, hash_json, own_code, tokenizer_hash
from ..settings.libraries import KNOWN
from .info import ModelInfo
from .modules import numbers_of
from .rope import as_found, run_plain

COLUMNS = 1021  # a prime, so that equal places in rows of a matrix fall into different columns
BLOCK = COLUMNS * 4096
NOT_ACTING = frozenset(
    ("name_or_path", "_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "_commit_hash",
     "_attn_implementation", "attn_implementation", "_attn_implementation_internal", "_attn_implementation_autoset",
     "_experts_implementation", "_experts_implementation_internal", "use_cache", "output_attentions",
     "output_hidden_states", "return_dict", "auto_map")
) | {"chunk_size_feed_forward", "problem_type", "id2label", "label2id", "is_encoder_decoder"}  # fmt: skip
"""Entries of a config that do not decide a model's numbers, or are recorded by themselves."""
_OWN = frozenset(vars(nn.Module())) | frozenset(
    ("config", "generation_config", "name_or_path", "warnings_issued", "gradient_checkpointing", "training",
     "_gradient_checkpointing_func", "supports_gradient_checkpointing", "_hf_hook", "_old_forward", "hf_device_map",
     "_hf_peft_config_loaded", "peft_config", "_tied_weights_keys", "all_tied_weights_keys", "quantization_method",
     "_keys_to_ignore_on_save", "_modules_to_not_convert", "_compiled_call_impl", "hf_quantizer", "_hook_registry",
     "original_component", "hook_dict", "_hook_cache", "kernel_config", "loss_type")
)  # fmt: skip
"""Attributes of modules that do not act by themselves, or are looked at elsewhere."""
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_LIBRARIES = ("accelerate.", "transformers.", "torch.", "transformer_lens.model_bridge.")
"""Where hooks come from that only move data or keep outputs."""
_WRAPPERS = ("transformer_lens.", "nnsight.", "torch._dynamo.")
"""Where modules come from that only wrap others."""
_BUSY: ContextVar[frozenset[int]] = ContextVar("modules being described", default=frozenset())


def weights_hash(module: nn.Module) -> str:
    """Return a hash of shape, dtype and every value of every parameter.

    A change of one value is seen: the bits are added up as whole numbers over rows and over columns of a table, which
    is exact, costs two readings of the memory, and gives the same on every device.  Names are left out, because
    backends wrap modules.
    """
    return _tensors_hash(module.parameters())


def _tensors_hash(tensors: Any) -> str:
    hashed = hashlib.sha256()
    for t in tensors:
        hashed.update(f"{tuple(t.shape)} {t.dtype}".encode())
        for part in _sums(t):
            hashed.update(part.cpu().numpy().tobytes())
    return hashed.hexdigest()[:16]


def _sums(t: torch.Tensor) -> list[torch.Tensor]:
    """Return whole-number sums of the bits of a tensor over rows and columns of a table of 1,021 columns."""
    flat = t.detach()
    flat = (flat.to_dense() if flat.layout != torch.strided else flat).contiguous().reshape(-1)
    if flat.is_quantized:
        flat = flat.int_repr()
    out = []
    bits = flat.view(torch.uint8)
    words = bits[: len(bits) // 8 * 8]
    # an odd start in memory cannot be read as 64-bit numbers
    words = (words.clone() if words.storage_offset() % 8 else words).view(torch.int64)
    for start in range(0, len(words), BLOCK):
        block = words[start : start + BLOCK]
        table = block[: len(block) // COLUMNS * COLUMNS].view(-1, COLUMNS)
        out += [table.sum(0), table.sum(1), block[table.numel() :]]
    return [*out, bits[len(words) * 8 :]]


def config_facts(config: Any) -> dict[str, Any]:
    """Return every entry of a config that may decide the numbers, as JSON types."""
    found = config.to_dict() if hasattr(config, "to_dict") else dict(vars(config))
    return {str(k): _plain(v) for k, v in sorted(found.items()) if k not in NOT_ACTING}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items() if k not in NOT_ACTING}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return describe(value)


def module_facts(module: nn.Module) -> dict[str, Any]:
    """Return all of a network that decides what it computes: weights, config, state, hooks."""
    busy = _BUSY.get()
    if id(module) in busy:  # a hook that holds the module it hangs on
        return {}
    token = _BUSY.set(busy | {id(m) for m in module.modules()})
    try:
        with as_found(module):
            return _module_facts(module)
    finally:
        _BUSY.reset(token)


def _module_facts(module: nn.Module) -> dict[str, Any]:
    config = getattr(module, "config", None)
    return {
        "weights": weights_hash(module),
        "config": config_facts(config) if hasattr(config, "to_dict") else {},
        "state": state_hash(module),
        "hooks": hooks_facts(module),
    }


def state_hash(module: nn.Module) -> str:
    """Return a hash of buffers and plain attributes of all modules, and of the code of those that are not well known.

    Adapters say there which of them acts and how strongly; a replaced ``forward`` stands there too.
    """
    parts: list[Any] = []
    for m in module.modules():
        kind = type(m)
        top = kind.__module__.partition(".")[0]
        if f"{kind.__module__}.".startswith(_WRAPPERS):
            continue
        whole = hasattr(m, "get_output_embeddings")  # plans of how to load and spread it
        own = {
            k: _attribute(v) for k, v in vars(m).items()
            if k not in _OWN and not k.startswith("_is_") and not (whole and k.startswith("_"))
        }  # fmt: skip
        if getattr(m, "_hf_hook", None) is not None:
            own.pop("forward", None)
        forward = kind.forward
        patched = getattr(forward, "__module__", "").partition(".")[0] not in KNOWN and top in KNOWN
        code = own_code(kind) or (describe(forward) if patched else "")
        own = {k: v for k, v in own.items() if v is not _SKIP}
        buffers = [b for n, b in m.named_buffers(recurse=False) if not n.startswith("long_")]
        parts.append([kind.__qualname__, code, own, _tensors_hash(buffers)])
    return hash_json(parts)


_SKIP = object()


def _attribute(value: Any) -> Any:
    """Return a plain attribute of a module as JSON types; what only points to other things is skipped."""
    if value is None or isinstance(value, bool | int | float | str | torch.dtype):
        return describe(value)
    if isinstance(value, torch.Tensor):
        return _tensors_hash([value])
    if isinstance(value, set | frozenset):
        return sorted(str(_attribute(v)) for v in value)
    if isinstance(value, list | tuple):
        return [v for v in map(_attribute, value) if v is not _SKIP]
    if isinstance(value, dict):
        return {str(k): found for k, v in value.items() if (found := _attribute(v)) is not _SKIP}
    if isinstance(value, nn.Module) or hasattr(value, "to_dict") or type(value).__module__.startswith("nnsight."):
        return _SKIP
    if callable(value):
        if type(value).__module__.partition(".")[0] in KNOWN and not hasattr(value, "__code__"):
            return f"{type(value).__qualname__} {getattr(value, '__qualname__', '')}"
        owner = getattr(value, "__self__", None)
        if isinstance(owner, nn.Module):
            value = value.__func__
        try:
            return describe(value)
        except TypeError:
            return getattr(value, "__qualname__", type(value).__qualname__)
    return type(value).__qualname__


def hooks_facts(module: nn.Module) -> list[Any]:
    """Return the hooks that others have put on the modules, by their code and what they captured."""
    found = []
    for n, m in enumerate(module.modules()):
        found += [[n, name, described] for name in _HOOKS for described in _foreign(getattr(m, name).values())]
    for name in ("_global_forward_pre_hooks", "_global_forward_hooks"):
        found += [["all", name, described] for described in _foreign(getattr(torch_module, name).values())]
    return found


def _foreign(hooks: Any) -> list[Any]:
    return [
        _hook(hook) for hook in hooks
        if not f"{getattr(hook, '__module__', '') or ''}.".startswith(_LIBRARIES)
    ]  # fmt: skip


def _hook(hook: Any) -> Any:
    try:
        return describe(hook)
    except TypeError as error:
        raise ValueError(
            f"a hook on the model, {getattr(hook, '__qualname__', type(hook).__qualname__)}, cannot be described, so "
            f"that its numbers could not be told from others ({error}): remove it, or give it plain tensors and numbers"
        ) from None


def fixed_ids(size: int, longest: int, device: Any = None) -> torch.Tensor:
    """Return (3, position) ids, always the same, on which models are compared: mixed, periodic, all the same."""
    n = torch.arange(min(48, longest), dtype=torch.int64, device=device)
    return torch.stack([n * 7919 + 11, n % 5 + 3, torch.full_like(n, 7)]) % size


def fixed_logits(logits: torch.Tensor) -> list[float | str]:
    """Return some of the logits (3, position, d_vocab) of fixed ids, and their spread, rounded to 6 digits."""
    n, size = logits.shape[1:]
    places = sorted({n // 3, n - 1})
    some = torch.arange(8, dtype=torch.int64, device=logits.device) * (size // 8 or 1) % size
    values = logits[:, places][..., some].double().reshape(-1)
    spread = logits[:, places].double().std(-1).reshape(-1)
    return [float(f"{v:.6g}") if abs(v) < float("inf") else str(v) for v in torch.cat([values, spread]).tolist()]


class Identified:
    """A model that can say what it computes, as it is now.

    ``passes`` is how a pass went when it was last looked at: ``attention`` implementation, ``logits`` of fixed ids.
    """

    lm: nn.Module
    tokenizer: Any
    info: ModelInfo
    passes: dict[str, Any]
    _renamed: dict[tuple[str, str], tuple[str, str]]

    def identify(self) -> ModelInfo:
        """Look anew at what decides the numbers, keep it as ``info`` and return it; every run begins with this.

        Weights, config, buffers, adapters and hooks of others are taken as they are now, and fixed ids are run through
        the model.
        """
        device = numbers_of(self.lm.get_input_embeddings()).device  # type: ignore[operator,union-attr]
        facts, self.passes = look(self.lm, self.info.d_vocab, self.info.max_tokens, device)
        same = (facts.pop("weights"), facts["state"])
        weights, facts["state"] = self._renamed.get(same, same)
        self.info = replace(
            self.info, weights=weights, facts=facts, tokenizer=tokenizer_hash(self.tokenizer), device=str(device)
        )
        return self.info

    def changed(self, since: ModelInfo | None = None) -> list[str]:
        """Return what is not as `identify` found it last, or then, without a pass: weights, config, state, hooks."""
        now = module_facts(self.lm)
        same = (now.pop("weights"), now["state"])
        weights, now["state"] = self._renamed.get(same, same)
        found = since or self.info
        then = {"weights": found.weights, **found.facts}
        return [name for name, value in {"weights": weights, **now}.items() if then.get(name) != value]

    def _begin(self) -> None:
        """Look for the first time; a bridge changes the modules, but not what they compute: they keep their hashes."""
        given, self._renamed, self.passes = self.info, {}, {}
        own = self.identify()
        if given.weights:
            self._renamed[own.weights, own.facts["state"]] = (given.weights, given.facts["state"])
            self.identify()

    def __describe__(self) -> str:
        return self.identify().identity


def look(lm: nn.Module, size: int, longest: int, device: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a causal LM computes as it is now: `module_facts`, and how a pass over fixed ids went.

    The model is left as it was found, and what it ran before plays no part.
    """
    with as_found(lm):
        with passing(lm):
            logits: Any = run_plain(lm, {"input_ids": fixed_ids(size, longest, device), "use_cache": False}).logits
        attention = str(getattr(lm.config, "_attn_implementation", "") or "")
        # after the pass, which brings states that follow the length of a text to their start
        return module_facts(lm), {"attention": attention, "logits": fixed_logits(logits)}


def logits_agree(a: list[Any], b: list[Any], dtype: str) -> bool:
    """Return whether two records of `fixed_logits` are those of one model, up to the rounding of its dtype."""
    if len(a) != len(b):
        return False
    tolerance = {"float64": 1e-5, "float32": 1e-3}.get(dtype, 6e-2)
    room = tolerance * max((abs(v) for v in (*a, *b) if not isinstance(v, str)), default=0)
    return all(
        x == y if isinstance(x, str) or isinstance(y, str) else abs(x - y) <= room
        for x, y in zip(a, b, strict=True)
    )  # fmt: skip


OF_NETWORKS.append(module_facts)
