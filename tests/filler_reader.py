"""A planted network that answers by way of its fillers: block 0 copies the question to them, block 1 reads them."""

from __future__ import annotations

import torch
import transformers as T
from tiny import VOCAB, byte_tokenizer

import tokinterp as ti

FILLER, CUE = "x", "?"
PAIRS = (("A", "a"), ("B", "b"))
QUESTIONS = [("z" * k + q, a) for k in (1, 2, 3) for q, a in PAIRS]
"""Of different length, so that not all items are alike."""


def token(text: str) -> int:
    """The id of a character."""
    (out,) = byte_tokenizer()(text, add_special_tokens=False)["input_ids"]
    return out


def filler_reader() -> ti.Model:
    """Llama of two blocks of one head and no MLP; what is not written below is zero.

    Stream: 0 question A, 1 question B, 2 filler, 3 cue, 4 first token, 5 any token; 8, 9 what block 0 read; 10, 11 what
    block 1 read, which the head turns into the answer. Queries without a purpose, and the cue without fillers, find the
    first token, which holds nothing. The scores lie in a pair of channels that rotary positions hardly turn.
    """
    config = T.LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=1,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=64, rope_theta=1e12, bos_token_id=1,
        eos_token_id=2, pad_token_id=None,
    )  # fmt: skip
    lm = T.AutoModelForCausalLM.from_config(config).eval()
    slow = 7  # of the 8 pairs of channels of a head
    with torch.no_grad():
        for name, p in lm.named_parameters():
            if "norm" not in name:
                p.zero_()
        table = lm.model.embed_tokens.weight
        table[:, 5] = 1.0
        for channel, text in enumerate(("A", "B", FILLER, CUE)):
            table[token(text), channel] = 2.0
        table[1, 4] = 2.0
        one, two = (block.self_attn for block in lm.model.layers)
        for block, asker in ((one, 2), (two, 3)):
            block.q_proj.weight[slow, 5] = 4.0  # whoever asks finds the first token,
            block.k_proj.weight[slow, 4] = 1.0
            block.q_proj.weight[slow, asker] = 8.0  # the asker its goal even more
        one.k_proj.weight[slow, [0, 1]] = 8.0
        two.k_proj.weight[slow, 2] = 8.0
        for block, source, to, gain in ((one, 0, 8, 1.0), (two, 8, 10, 4.0)):
            for c in (0, 1):
                block.v_proj.weight[c, source + c] = 1.0
                block.o_proj.weight[to + c, c] = gain
        lm.lm_head.weight[token("a"), 10] = lm.lm_head.weight[token("b"), 11] = 6.0
    return ti.wrap(lm, byte_tokenizer(), id="filler reader")
