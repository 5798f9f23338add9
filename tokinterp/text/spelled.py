"""Sequences of token ids and the texts that they spell: characters of a token, strings to show."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from ..settings import checked
from .sequences import Sequences
from .vocabulary import decode, extra_space


class Spelled(Sequences):
    """The half of `Prompts` that knows which characters a token stands for; see there for the attributes."""

    window_starts: np.ndarray
    chars: np.ndarray
    half: np.ndarray
    truncated: np.ndarray
    _offsets: np.ndarray | None
    _texts: Sequence[str] | None

    def text(self, i: int) -> str:
        """Return the text of prompt ``i``: the part of the document that its tokens cover.

        Without a text of their own (`from_ids`, shuffles) it is decoded from the ids, special tokens left out; a byte
        that is part of no whole character is U+FFFD.
        """
        if self._texts is None:
            return self._decoded(i)[0]
        self._range(i)
        start, stop = self.chars[i]
        return self._texts[int(self.documents[i])][start:stop]

    def offsets(self, i: int) -> np.ndarray:
        """Return (n, 2) int32 characters of ``text(i)``, start and stop of each token; (-1, -1) for special tokens.

        A token covers the characters whose bytes it holds, a leading space included; with part of a character, or of a
        letter that the tokenizer composed of several, the whole of it.

        Raises
        ------
        ValueError
            If the tokens do not spell the text, so that where they lie in it is not known.
        """
        if self._offsets is None:
            return self._decoded(i)[1]
        out = self._offsets[self._range(i)]
        known = out[:, 0] >= 0
        if not known.any() and not self.special(i).all():
            raise ValueError(
                f"prompt {i}: no character offsets, since its tokens do not spell the text (rewritten or unknown "
                "characters); use the fast version of the tokenizer (use_fast=True), or normalise the text before"
            )
        return np.where(known[:, None], out - np.int32(self.chars[i, 0]), out)

    def _decoded(self, i: int) -> tuple[str, np.ndarray]:
        ids = self.ids(i)
        special = self.vocabulary.special(ids)
        pieces = [b"" if s else b for b, s in zip(self.vocabulary.bytes(ids), special, strict=True)]
        first = int(np.argmin(special)) if len(special) else 0
        if len(pieces) and not special[first] and self.vocabulary.prefix_space and pieces[first].startswith(b" "):
            pieces[first] = pieces[first][1:]
        text, offsets = decode(pieces)
        offsets[special] = -1
        return text, offsets

    def strings(self, i: int) -> list[str]:
        r"""Return a string to show for each token of prompt ``i``.

        Leading spaces are real spaces, bytes that are no whole character are written ``\xe2``, NUL ``\x00``. Where all
        tokens are whole characters and the tokenizer does not normalise, the strings of the tokens that are not special
        join to ``text(i)``.
        """
        ids = self.ids(i)
        out = self.vocabulary.strings(ids)
        content = np.flatnonzero(~self.vocabulary.special(ids))
        if len(content) and self.window_starts[i] == 0 and self.vocabulary.prefix_space:
            # Llama 1 and 2 put a space before the text that is not in the text.
            first = int(content[0])
            if out[first].startswith(" ") and (self._texts is None or extra_space(out[first:], self.text(i))):
                out[first] = out[first][1:]
        return out

    @checked()
    def document_text(self, document: int) -> str:
        """Return the whole text from which prompts were cut, by its number."""
        if self._texts is not None and document < len(self._texts):
            return self._texts[document]
        if document not in self._prompt_of:
            raise IndexError(f"document={document}: document {document}: none of the prompts was cut from it")
        return self.text(self._prompt_of[document])

    @cached_property
    def _prompt_of(self) -> dict[int, int]:
        """Document number -> a prompt cut from it."""
        return {int(d): i for i, d in enumerate(self.documents)}
