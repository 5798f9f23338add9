"""The small Llama that learns a task, and the same network as a tokinterp model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...kernels.state import neutral, seeded
from ...models import HookedLM, ModelInfo
from ...models.fingerprint import module_facts
from ...settings import checked, count
from .task import Task
from .words import Words

NEVER = -60.0
"""Logit of row words in the tokinterp model: the network has no output for them."""
MOST_ROWS = 20_000


@checked(n_layers=count(1), d_model=count(1), n_heads=count(1), d_mlp=count(1))
@dataclass(frozen=True)
class Network:
    """Shape of the Llama; the defaults are those of Pfau et al. 2024 (9.4 M parameters in the blocks).

    Examples
    --------
    >>> Network(n_layers=2, d_model=64, n_heads=4, d_mlp=256).d_model
    64
    """

    n_layers: int = 4
    d_model: int = 384
    n_heads: int = 6
    d_mlp: int = 1536

    def __post_init__(self) -> None:
        if self.d_model % (2 * self.n_heads):
            raise ValueError(
                f"d_model={self.d_model}, n_heads={self.n_heads}: d_model={self.d_model} cannot be split into "
                f"{self.n_heads} heads of even width"
            )


class WordEmbedding(nn.Module):
    """One linear map of the multi-hot vectors of words, for inputs, chain of thought and fillers alike."""

    def __init__(self, words: Words, d_model: int) -> None:
        super().__init__()
        self.words = words
        self.linear = nn.Linear(len(words), d_model, device="cpu", dtype=torch.float32)

    @property
    def weight(self) -> torch.Tensor:
        """(d_model, column) weights."""
        return self.linear.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return (batch, position, d_model) embeddings of words."""
        # Under autocast a linear map gives bfloat16; the stream that begins here stays in the dtype of the weights.
        return self.linear(self.words.multi_hot(ids, self.linear.weight.dtype)).to(self.linear.weight.dtype)


def build(task: Task, network: Network, seed: int = 0) -> Any:
    """Return an untrained network for a task, in float32 on the CPU.

    The head has one row for each column of the vocabulary instead of 32,000: the same computation with a smaller
    denominator of the softmax.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(task.words), hidden_size=network.d_model, num_hidden_layers=network.n_layers,
        num_attention_heads=network.n_heads, num_key_value_heads=network.n_heads, intermediate_size=network.d_mlp,
        max_position_embeddings=2048, rms_norm_eps=1e-6, initializer_range=0.02, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=task.words.eos, pad_token_id=None, use_cache=False,
    )  # fmt: skip
    with neutral(), seeded(seed):
        lm: Any = LlamaForCausalLM(config)
        lm.set_input_embeddings(WordEmbedding(task.words, network.d_model))
    return lm.eval()


def parameters_hash(module: nn.Module, names: set[str] | None = None) -> str:
    """Return a hash of every value of the parameters (of those named)."""
    digest = hashlib.sha256()
    for name, p in sorted(module.named_parameters()):
        if names is None or name in names:
            flat = p.detach().to("cpu").contiguous().reshape(-1)
            digest.update(name.encode() + flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def flops_per_example(task: Task, network: Network, form: str) -> float:
    """Return the operations of one training example: 3 (2 (N_blocks + N_head) T + 2 L d T**2), a product counted as 2.

    T is the number of words.  Embedding and attention masks are left out.

    Examples
    --------
    >>> round(flops_per_example(Task(n=8), Network(), "filler") / 1e9, 1)
    4.3
    """
    t, d = task.length(form), network.d_model
    blocks = network.n_layers * (4 * d * d + 3 * d * network.d_mlp)
    return 3.0 * (2.0 * (blocks + d * len(task.words)) * t + 2.0 * network.n_layers * d * t * t)


def network_info(lm: Any, task: Task, weights: str, name: str | None = None) -> ModelInfo:
    """Return the facts of a network that was built here."""
    p = next(lm.parameters())
    return ModelInfo(
        id=name or f"{task.name}-llama", revision="local", weights=weights, architecture=type(lm).__name__,
        backend="hf",
        n_layers=lm.config.num_hidden_layers, n_heads=lm.config.num_attention_heads, d_model=lm.config.hidden_size,
        d_vocab=lm.config.vocab_size, max_tokens=lm.config.max_position_embeddings,
        dtype=str(p.dtype).removeprefix("torch."), device=str(p.device), tokenizer=task.hash,
        facts={k: v for k, v in module_facts(lm).items() if k != "weights"},
    )  # fmt: skip


def task_tokenizer(task: Task) -> Any:
    """Return a tokenizer of the words of a task; all but the filler are special, so that ``exclude`` leaves them out.

    Examples
    --------
    >>> task_tokenizer(Task(n=4, d=1)).convert_ids_to_tokens([3, 4])
    ['.', 'A']
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = task.words
    # A row of one digit and a row of several never look alike to the tokenizer: rows are written in brackets.
    names = [words.name(i) if i < len(words) else f"[{words.name(i)}]" for i in range(len(words) + words.n_rows)]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(names)}, unk_token="EOS"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    others = [w for w in names if w != "."]
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="EOS", additional_special_tokens=others)


def as_model(lm: Any, task: Task, name: str | None = None, device: torch.device | str | None = None) -> HookedLM:
    """Return a trained network as a tokinterp model, to measure its filler positions.

    Row words get ids, and outputs that say "never" (logit -60), because the network was not trained to predict them:
    read nothing into values at the rows whose next word is a row.  All words but the filler are special tokens, so that
    measurements with ``exclude=("special",)`` see the dots alone.

    Parameters
    ----------
    lm : LlamaForCausalLM
        From `build` or `train`; it is copied.
    task : Task
        On which it was trained.
    name : str, optional
        Name to record.
    device : torch.device or str, optional
        Where the copy is put.

    Raises
    ------
    ValueError
        If there are too many row words (m**d above 20,000).

    Examples
    --------
    >>> task = Task(n=4, d=1)
    >>> as_model(build(task, Network(2, 32, 2, 64)), task).info.n_layers
    2
    """
    import copy

    from ...models import wrap

    words = task.words
    if words.n_rows > MOST_ROWS:
        raise ValueError(
            f"{task.name}: m**d = {words.n_rows} row words make too large a head (at most {MOST_ROWS}); measure a task "
            "with fewer coordinates"
        )
    full = copy.deepcopy(lm).to(device=device).eval()
    old = full.lm_head
    size = len(words) + words.n_rows
    like = {"device": old.weight.device, "dtype": old.weight.dtype}
    head: Any = nn.utils.skip_init(nn.Linear, old.in_features, size, **like)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.fill_(NEVER)
        head.weight[: len(words)] = old.weight
        head.bias[: len(words)] = 0.0
    full.lm_head = head
    full.config.vocab_size = head.out_features
    return wrap(full, task_tokenizer(task), id=name or f"{task.name}-llama")
