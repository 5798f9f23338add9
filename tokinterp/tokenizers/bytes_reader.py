"""Texts read byte by byte by a model of tokens, or by several of different tokenizers at once."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np

from ..models.base import Model
from ..models.continuations import Continuations
from ..settings import refuse
from .bytes_covers import Covers
from .bytes_tokens import ByteTokens, Node, Spelling


class Reader:
    """A model whose predictions are read byte by byte.

    Parameters
    ----------
    model : Model
        With its tokenizer.
    context : sequence of int, optional
        Tokens before each text, the model's BOS by default.

    Raises
    ------
    ValueError
        Without tokenizer or BOS, for ids the model lacks, and for a tokenizer whose tokens spell no text.
    """

    def __init__(self, model: Model, context: Sequence[int] | None = None) -> None:
        info, tokenizer = model.info, model.tokenizer
        if tokenizer is None:
            raise ValueError(f"model={info.id}: it has no tokenizer: load it with one")
        bos = getattr(tokenizer, "bos_token_id", None)
        if context is None and bos is None:
            raise ValueError(f"context=None: {info.id} has no BOS token: give the ids that texts follow")
        self.context = (int(bos),) if context is None else tuple(context)  # pyright: ignore[reportArgumentType]
        if not self.context or max(self.context) >= info.d_vocab:
            refuse("context", context, f"give at least one id, of 0 to {info.d_vocab - 1}")
        self.model, self.tokens, self.after = model, ByteTokens.of(tokenizer, info.d_vocab), Continuations(model)

    def spelled(self, text: str) -> bytes:
        """Return the bytes of a text.

        Raises
        ------
        ValueError
            If its tokens do not spell it, or are too many for the model.
        """
        data = self.tokens.spelled(text)
        n, most = len(self.tokens.encode([data])[0] or ()) + len(self.context), self.model.info.max_tokens
        if n > most:
            refuse("text", text, f"it is {n} tokens, and {self.model.info.id} has a context of {most}: give less of it")
        return data

    def along(self, data: bytes) -> Iterator[Covers]:
        """Yield the covers of each beginning of a text, none of it and the whole among them: one object, which moves.

        Raises
        ------
        FloatingPointError
            If the model gives NaN.
        """
        spelling = Spelling(self.tokens, self.context)
        nodes = [spelling.root, *(node for byte in data for node in spelling.push(byte))]
        self.after.begin(self, max((n.ids for n in nodes), key=len)[:-1])
        found = iter(zip(nodes, self.after.log_probs([(self, n.ids) for n in nodes]), strict=True))
        covers = Covers(self.tokens, self.context)
        fresh = [covers.spelling.root]
        for byte in (*data, None):
            for node in fresh:  # in the order of the nodes
                covers.add(node, checked_log_probs(next(p for n, p in found if n.ids == node.ids)))
            yield covers
            fresh = covers.push(byte) if byte is not None else []
        self.after.end(self)

    def after_all(self, texts: Sequence[str]) -> list[Covers]:
        """Return the covers of texts, each of which can go on."""
        found = {}
        for text in dict.fromkeys(texts):
            *_, found[text] = self.along(self.spelled(text))
        return [found[t].copy() for t in texts]

    def look(self, covers: Sequence[Covers], fresh: Sequence[Sequence[Node]]) -> None:
        """Ask the model what follows the new nodes of several texts, all at once."""
        asked: list[tuple[Hashable, Sequence[int]]] = []
        where = [(c, node) for c, nodes in zip(covers, fresh, strict=True) for node in nodes]
        for c, node in where:
            key = (self, id(c))
            self.after.begin(key, node.ids[: c.spelling.held])
            asked.append((key, node.ids))
        for (c, node), p in zip(where, self.after.log_probs(asked), strict=True):
            c.add(node, checked_log_probs(p))


def checked_log_probs(found: Any) -> np.ndarray:
    """Return log-probabilities as an array; refuse NaN."""
    logp = found.cpu().numpy()
    if np.isnan(logp).any():
        raise FloatingPointError("the model gives NaN")
    return logp
