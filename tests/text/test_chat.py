"""Conversations are written with the template of the tokenizer."""

import pytest
from tiny import byte_tokenizer, tiny_lm

import tokinterp as ti
from tokinterp.text import chat_texts

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('system comes first') }}{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TALK = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Here."}]


@pytest.fixture
def model():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return ti.wrap(tiny_lm("llama"), tokenizer, id="tiny")


def test_texts_are_those_of_the_template_and_have_one_bos(model):
    bos = model.tokenizer.bos_token or ""
    (text,) = chat_texts([TALK], model)
    assert text == f"{bos}<user>Where?<assistant>Here."
    (asked,) = chat_texts([TALK[:1]], model.tokenizer, reply=True)
    assert asked.endswith("<user>Where?<assistant>")
    prompts = ti.Prompts.from_texts([text], model)
    if bos:
        assert prompts.ids(0).tolist().count(model.tokenizer.bos_token_id) == 1


def test_what_cannot_be_written_is_named(model):
    with pytest.raises(ValueError, match=r"conversations\[1\]: the chat template refuses it: system comes first"):
        chat_texts([TALK, [*TALK, {"role": "system", "content": "x"}]], model)
    with pytest.raises(ValueError, match=r"conversations\[0\]: .*a turn has role and content"):
        chat_texts([[{"role": "user"}]], model)
    model.tokenizer.chat_template = None
    with pytest.raises(ValueError, match=r"its tokenizer has no chat template: set tokenizer\.chat_template"):
        chat_texts([TALK], model)


@pytest.mark.parametrize("turn", [{"role": "user", "contents": "x"}, {"content": "x", "name": "y"}, {"content": "x"}])
def test_a_turn_whose_content_has_another_name_is_refused(turn, model):
    """A template writes nothing for what it does not find."""
    with pytest.raises(ValueError, match="a turn has role and content"):
        chat_texts([[turn]], model)
