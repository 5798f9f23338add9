"""Tiny models of many families with seeded random weights, a tokenizer, and small measurements for the tests."""

from __future__ import annotations

import time
from functools import cache

import numpy as np
import torch
import transformers as T
import xarray as xr
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tokinterp.models import wrap
from tokinterp.results.dataset import layer_coords, variable
from tokinterp.run.measurement import Measurement, choose_layers
from tokinterp.run.sites import Site
from tokinterp.text import Prompts

VOCAB = 320
_SIZE = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
_HF = {**_SIZE, "max_position_embeddings": 64, "intermediate_size": 48}
_GQA = {**_HF, "num_key_value_heads": 2}
_GPT = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
_OPT = {**_SIZE, "ffn_dim": 48, "max_position_embeddings": 64}

CONFIGS = {
    "llama": (T.LlamaConfig, _GQA),
    "mistral": (T.MistralConfig, {**_GQA, "sliding_window": 4}),
    "qwen2": (T.Qwen2Config, _GQA),
    "qwen3": (T.Qwen3Config, {**_GQA, "head_dim": 8}),
    "gemma2": (T.Gemma2Config, {**_GQA, "head_dim": 8, "final_logit_softcapping": 2.0}),
    "gemma3": (T.Gemma3TextConfig, {**_GQA, "head_dim": 8}),
    "phi": (T.PhiConfig, _HF),
    "gpt2": (T.GPT2Config, _GPT),
    "gptj": (T.GPTJConfig, {**_GPT, "rotary_dim": 4}),
    "neox": (T.GPTNeoXConfig, {**_HF, "use_parallel_residual": True}),
    "neox_sequential": (T.GPTNeoXConfig, {**_HF, "use_parallel_residual": False}),
    "opt": (T.OPTConfig, {**_OPT, "word_embed_proj_dim": 32}),
    "opt_post_norm": (T.OPTConfig, {**_OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "falcon": (T.FalconConfig, _SIZE),
    "bloom": (T.BloomConfig, {"vocab_size": VOCAB, "hidden_size": 32, "n_layer": 3, "n_head": 4}),
    "mixtral": (T.MixtralConfig, {**_GQA, "num_local_experts": 4}),
    "qwen2_moe": (
        T.Qwen2MoeConfig,
        {**_GQA, "num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
         "num_experts_per_tok": 2},
    ),
    "olmo2": (T.Olmo2Config, _GQA),
    "cohere": (T.CohereConfig, _GQA),
}  # fmt: skip
PARALLEL = {"phi", "gptj", "neox", "falcon", "cohere"}  # attention and MLP read the same stream
FAMILIES = tuple(CONFIGS)


def tiny_lm(family="llama", seed=0, attention=None, **changes):
    """A Hugging Face causal LM; weights, biases and norms all random, so that a forgotten one shows."""
    kind, settings = CONFIGS[family]
    torch.manual_seed(seed)
    config = kind(**{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None, **settings, **changes})
    lm = T.AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in lm.parameters():
            noise = torch.randn(p.shape, generator=draw)
            p.copy_(noise * 0.9 / p.shape[-1] ** 0.5 if p.ndim > 1 else p + 0.1 * noise)
    return lm


@cache
def tiny(family="llama", device="cpu"):
    """The wrapped model of a family, shared by all tests: none of them may change it."""
    return wrap(tiny_lm(family).to(device), byte_tokenizer(), id=f"tiny-{family}")


@cache
def byte_tokenizer():
    """Byte-level BPE: <unk> <s> </s>, 256 bytes, and the merges of a few common words; puts <s> before the text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {t: n for n, t in enumerate(["<unk>", "<s>", "</s>", *alphabet])}
    merges = []
    for word in ("Ġthe", "Ġand", "Ġriver", "ing", "Ġto", "Ġin"):
        left = word[0]
        for right in word[1:]:
            if (left, right) not in merges:
                merges.append((left, right))
            left += right
            vocab.setdefault(left, len(vocab))
    inner = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    assert len(vocab) <= VOCAB
    return T.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>", model_max_length=64
    )


def some_ids(n=9, batch=2, seed=0):
    """(batch, n) ids without special tokens."""
    return torch.randint(3, VOCAB, (batch, n), generator=torch.Generator().manual_seed(seed))


def some_prompts(lengths, seed=0, model=None):
    """Random prompts of these lengths, each beginning with BOS."""
    rng = np.random.default_rng(seed)
    ids = [np.concatenate([[1], rng.integers(3, VOCAB, n - 1)]) for n in lengths]
    return Prompts.from_ids(ids, model or tiny())


class Norms(Measurement):
    """Test measurement with sums and rows: norm of every token, and of the mean, at some layers."""

    tried = False  # tests count what happens in the run

    sleep = 0.0

    def __init__(self, layers=None, per_token=True):
        super().__init__()
        self.layers, self.per_token = layers, per_token

    def sites(self, info):
        return [Site("resid", n) for n in choose_layers(self.layers, info)]

    def update(self, batch):
        time.sleep(self.sleep)
        layers = choose_layers(self.layers, self.info)
        stream = torch.stack([batch.rows(n).double() for n in layers], 1)
        self.add("total", stream.sum(0))
        self.add("count", torch.tensor(len(stream), device=batch.device))
        if self.per_token:
            self.append(
                prompt=batch.tokens.prompt,
                position=batch.tokens.position,
                token_id=batch.tokens.ids,
                norm=stream.norm(dim=-1),
            )

    def result(self):
        layers = choose_layers(self.layers, self.info)
        mean = (self.sums["total"] / self.sums["count"]).norm(dim=-1)
        data = {"mean_norm": variable("layer", mean, "norm of the mean", "1")}
        coords = layer_coords(layers, self.info)
        if self.per_token:
            prompt, position, token_id, norm = self.table("prompt", "position", "token_id", "norm")
            data["norm"] = variable(("token", "layer"), norm, "norm", "1")
            coords |= {
                "prompt": variable("token", prompt, "prompt", "1"),
                "position": variable("token", position, "position", "1"),
                "token_id": variable("token", token_id, "token id", "1"),
            }
        return xr.Dataset(data, coords)


class Spread(Measurement):
    """Test measurement that reads the prompts twice: the mean first, then distances to it."""

    tried = False

    passes = 2

    def sites(self, info):
        return [Site("resid", info.n_layers)]

    def update(self, batch):
        rows = batch.rows(self.info.n_layers).double()
        if self.reading == 0:
            self.add("total", rows.sum(0))
            self.add("count", torch.tensor(len(rows), device=batch.device))
            return
        far = (rows - self.sums["mean"]).pow(2).sum(-1)
        self.add("square", far.sum())
        self.append(prompt=batch.tokens.prompt, position=batch.tokens.position, token_id=batch.tokens.ids, far=far)

    def end_reading(self):
        if self.reading == 0:
            self.sums["mean"] = self.sums.pop("total") / self.sums["count"]

    def result(self):
        prompt, position, token_id, far = self.table("prompt", "position", "token_id", "far")
        v = variable
        return xr.Dataset(
            {
                "variance": v((), self.sums["square"] / self.sums["count"], "variance", "1"),
                "far": v("token", far, "squared distance to the mean", "1"),
            },
            {
                "prompt": v("token", prompt, "prompt", "1"),
                "position": v("token", position, "position", "1"),
                "token_id": v("token", token_id, "token id", "1"),
            },
        )


def unigram_tokenizer(*pieces, scores=None):
    """A tokenizer that cuts words at white space into these pieces, those of the largest sum of scores."""
    known = list(zip(pieces, scores or [-1.0] * len(pieces), strict=True))
    inner = Tokenizer(models.Unigram([*known, ("<unk>", -99.0)], unk_id=len(known)))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return T.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")


def sentencepiece(pieces, prefix="▁"):
    """SentencePiece-like BPE with byte fallback that writes a space before the text."""
    vocab = {p: n for n, p in enumerate(["<unk>", *(f"<0x{b:02X}>" for b in range(256)), *pieces])}
    merges = [(p[:-1], p[-1]) for p in pieces if len(p) > 1]
    inner = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend(prefix), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    inner.decoder = decoders.Sequence(steps)
    return T.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>"), vocab
