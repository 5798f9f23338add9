"""Attention between the pieces of words, against the library's own."""

from functools import cache

import numpy as np
import pytest
import torch
from contract import assert_contract
from tiny import byte_tokenizer, tiny, tiny_lm

import tokinterp as ti
from tokinterp.lexicon.piece_attention import PieceAttention
from tokinterp.lexicon.words import Lexicon
from tokinterp.text import Spans

WORDS = ["the", "and", "river", "to", "in"]  # tokens of their own


OTHERS = ["rocket", "tower", "train", "table", "arrow", "apple", "island", "iron", "robin", "ridge", "animal"]


def some_texts(n=12, words=14, seed=0):
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice([*WORDS, *WORDS, *OTHERS], words)) for _ in range(n)]


@cache
def some_lexicon():
    return Lexicon.of(ti.Prompts.from_texts(some_texts(), byte_tokenizer(), max_tokens=64))


@pytest.fixture(scope="module")
def lexicon():
    return some_lexicon()


# -- attention ----------------------------------------------------------------------------------------------------
def eager_attention(lm, ids):
    lm.set_attn_implementation("eager")
    with torch.no_grad():
        return [a[0].double().numpy() for a in lm(input_ids=torch.tensor([ids]), output_attentions=True).attentions]


@pytest.mark.parametrize("by_head", [True, False])
def test_weights_equal_eager_attention(lexicon, by_head):
    model = ti.wrap(tiny_lm("llama"), byte_tokenizer(), id="tiny")
    prompts = lexicon.prompts
    asked = PieceAttention((2, 3, 5), by_head=by_head, min_position=3)
    found = ti.measure(model, prompts, {"p": asked}, progress=False)["p"].to_dataset(inherit=False)
    spans = Spans.words(prompts).align(prompts)
    for i in range(0, len(prompts), 5):
        weights = eager_attention(model.lm, prompts.ids(i).tolist())
        words = [(a, b) for p, a, b in zip(spans.prompt, spans.start, spans.stop, strict=True) if p == i]
        single = {a for a, b in words if b - a == 1}
        for k, size in enumerate((2, 3, 5)):
            own = [(a, b - 1) for a, b in words if b - a == size and a >= 3]
            runs = [(q + 1 - size, q) for q in single if q + 1 - size >= 3]
            runs = [(a, q) for a, q in runs if all(t in single for t in range(a, q))]
            assert found["n_words"].values[i, k] == len(own)
            assert found["n_control"].values[i, k] == len(runs)
            for name, rows in (("attention", own), ("control", runs)):
                for block in range(3):
                    value = found[name].sel(prompt=i, pieces=size, block=block)
                    if not rows:
                        assert value.isnull().all()
                        continue
                    mass = np.mean([weights[block][:, q, a:q].sum(-1) for a, q in rows], 0)
                    np.testing.assert_allclose(value, mass if by_head else mass.mean(), atol=1e-6)
    assert int(found["n_words"].sel(pieces=5).sum()) > 5
    assert int(found["n_control"].sel(pieces=2).sum()) > 5


@pytest.mark.slow
def test_piece_attention_is_a_measurement(lexicon):
    found = assert_contract(lambda: PieceAttention((4, 5), min_position=2), tiny(), lexicon.prompts)
    assert found["attention"].dims == ("prompt", "pieces", "block")
    assert_contract(lambda: PieceAttention((5,), blocks=[0, 2], by_head=True), tiny(), lexicon.prompts)
