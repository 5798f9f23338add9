"""Words of a corpus in their left contexts; cases.py makes other splits and typing errors of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..settings import (
    checked,
    count,
    sequences,
    several,
    string,
    whole,
)
from ..text.spans import Spans
from ..text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from ..text.prompts import Prompts


@checked(ids=sequences, text=several(string), prompt=whole, start=whole)
@dataclass(frozen=True)
class Lexicon:
    """Occurrences of the words of a corpus that consist of letters and begin with the space before them.

    Words at the start of a text or after a bracket, and those whose space is a token of its own, are left out.

    Attributes
    ----------
    prompts : Prompts
        The corpus.
    ids : list of tuple of int
        (word,) tokens of each occurrence.
    text : list of str
        (word,) the word, without the space before it.
    prompt, start : numpy.ndarray
        (word,) int64 prompt, and position of the first token, BOS counted.
    """

    prompts: Prompts
    ids: list[tuple[int, ...]]
    text: list[str]
    prompt: np.ndarray
    start: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    @checked()
    def of(cls, prompts: Prompts) -> Lexicon:
        """Find the words of prompts by the offsets of their tokens.

        Raises
        ------
        ValueError
            If there is none.

        Examples
        --------
        >>> import tokinterp as ti
        >>> Lexicon.of(ti.Prompts.from_texts(["The Nile flows north."], ti.load_model())).text
        ['Nile', 'flows', 'north']
        """
        found = Spans.words(prompts).align(prompts)
        rows, ids, text = [], [], []
        for row, (i, a, b) in enumerate(
            zip(found.prompt.tolist(), found.start.tolist(), found.stop.tolist(), strict=True)
        ):
            tokens = prompts.ids(i)[a:b].tolist()
            word = b"".join(prompts.vocabulary.bytes(tokens)).decode("utf-8", "replace")
            if word.startswith(" ") and word[1:].isalpha():
                rows.append(row)
                ids.append(tuple(tokens))
                text.append(word[1:])
        if not rows:
            raise ValueError(
                f"prompts: none of the {len(prompts)} has a word of letters after a space: give running text in a "
                "script that separates words"
            )
        return cls(prompts, ids, text, found.prompt[rows], found.start[rows])

    @checked(n_words=count(1), n_tokens=several(count(1), 1))
    def distinct(
        self,
        n_words: int | None = None,
        *,
        n_tokens: Sequence[int] | None = None,
        min_letters: int = 1,
        min_context: int = 0,
        seed: int = 0,
    ) -> np.ndarray:
        """Return one occurrence each of different words: words and occurrences drawn at random, all equally likely.

        Parameters
        ----------
        n_words : int, optional
            How many; all by default, and where there are fewer.
        n_tokens : sequence of int, optional
            Of how many tokens.
        min_letters, min_context : int
            Fewest letters of the word, and fewest tokens before it, BOS counted.
        seed : int
            Of the draw.

        Returns
        -------
        numpy.ndarray
            (word,) places in this lexicon, in ascending order.
        """
        draw = np.random.default_rng(seed)
        chosen: dict[tuple[int, ...], int] = {}
        for n in draw.permutation(len(self)).tolist():
            fits = len(self.text[n]) >= min_letters and self.start[n] >= min_context
            if fits and (n_tokens is None or len(self.ids[n]) in n_tokens):
                chosen.setdefault(self.ids[n], n)
        words = np.array(sorted(chosen.values()), dtype=np.int64)
        if n_words is not None and len(words) > n_words:
            words = np.sort(draw.choice(words, n_words, replace=False))
        return words


def word_ids(texts: Sequence[str], vocabulary: Vocabulary) -> list[tuple[int, ...]]:
    """Return the tokens of words as in running text; each is written with the space before it."""
    if vocabulary.tokenizer is None:
        raise ValueError("the prompts were made without a tokenizer: give it to Prompts, or load it with the model")
    plain = [t[1:] if vocabulary.prefix_space else t for t in texts]
    return [tuple(ids) for ids in vocabulary.tokenizer(plain, add_special_tokens=False)["input_ids"]]
