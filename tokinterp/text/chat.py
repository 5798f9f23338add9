"""Conversations as the texts that a chat model was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..settings import checked, mapping, model, several, short, string, tokenizer

TURNS = several(mapping(string), 1)


@checked(conversations=several(TURNS, 1), model_or_tokenizer=model | tokenizer)
def chat_texts(
    conversations: Sequence[Sequence[Mapping[str, str]]], model_or_tokenizer: Any, *, reply: bool = False
) -> list[str]:
    """Return each conversation as one text, written with the chat template of the tokenizer.

    `Prompts.from_texts` makes the tokens: markers of turns become the special tokens that they are, and a template that
    writes the BOS itself gets no second one.

    Parameters
    ----------
    conversations : sequence of sequence of mapping
        Turns with ``role`` (system, user, assistant) and ``content``.
    model_or_tokenizer : Model or Hugging Face tokenizer
        Whose template is used.
    reply : bool
        End with the marker after which the assistant's next turn would begin.

    Raises
    ------
    ValueError
        If the tokenizer has no chat template, or the template refuses a conversation.

    Examples
    --------
    >>> import tokinterp as ti
    >>> tokenizer = ti.load_tokenizer()
    >>> tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}"
    >>> chat_texts([[{"role": "user", "content": "Where is the Nile?"}]], tokenizer)
    ['[user] Where is the Nile? ']
    """
    known = getattr(model_or_tokenizer, "tokenizer", None) or model_or_tokenizer
    if not getattr(known, "chat_template", None):
        raise ValueError(
            f"model_or_tokenizer={short(model_or_tokenizer)}: its tokenizer has no chat template: set "
            "tokenizer.chat_template, or write the texts yourself"
        )
    out = []
    for n, turns in enumerate(conversations):
        for turn in turns:
            if {"role", "content"} - {*turn}:
                raise ValueError(f"conversations[{n}]: {short(dict(turn))}: a turn has role and content")
        try:
            out.append(str(known.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=reply)))
        except Exception as error:  # of jinja2: what the template itself raises, and what it cannot read
            raise ValueError(f"conversations[{n}]: the chat template refuses it: {error}") from error
    return out
