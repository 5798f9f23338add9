"""Rows of embedding and head: of every backend's model, tied or not, and a model that has none."""

from types import SimpleNamespace

import pytest
import torch
from tiny import byte_tokenizer, tiny_lm

import tokinterp as ti
from tokinterp.models.embeddings import embeddings, head_bias, tied


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi", "opt_post_norm"])
def test_rows_are_the_weights(family):
    lm = tiny_lm(family)
    found = embeddings(ti.wrap(lm, byte_tokenizer(), id="a"))
    assert torch.equal(found["input"], lm.get_input_embeddings().weight)
    assert torch.equal(found["output"], lm.get_output_embeddings().weight)
    assert list(embeddings(ti.wrap(lm, byte_tokenizer(), id="a"), ["output"])) == ["output"]


def test_a_head_is_tied_when_its_numbers_are_those_of_the_embedding():
    for value in (True, False):
        assert tied(ti.wrap(tiny_lm("llama", tie_word_embeddings=value), byte_tokenizer(), id="a")) is value
    copied = tiny_lm("llama", tie_word_embeddings=False)
    copied.lm_head.weight = torch.nn.Parameter(copied.model.embed_tokens.weight.detach().clone())
    assert tied(ti.wrap(copied, byte_tokenizer(), id="a"))


@pytest.mark.parametrize("value", [True, False])
def test_an_embedding_that_scales_its_rows_is_tied_all_the_same(value):
    model = ti.wrap(tiny_lm("gemma3", tie_word_embeddings=value), byte_tokenizer(), id="scaled")
    found = embeddings(model)
    assert tied(model) is value
    if value:
        torch.testing.assert_close(found["input"], found["output"] * found["input"].shape[1] ** 0.5, rtol=1e-3, atol=0)


def test_a_bias_is_none_where_there_is_none():
    assert head_bias(ti.wrap(tiny_lm("llama"), byte_tokenizer(), id="a")) is None
    lm = tiny_lm("phi")
    assert torch.equal(head_bias(ti.wrap(lm, byte_tokenizer(), id="a")), lm.lm_head.bias)


def test_a_model_without_a_module_is_refused():
    with pytest.raises(ValueError, match="stranger does not say where its embeddings are"):
        embeddings(SimpleNamespace(info=SimpleNamespace(id="stranger")))
