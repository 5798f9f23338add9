"""Cases of words in their left contexts: cut otherwise, misspelt, or of several tokens as they stand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..settings import (
    checked,
    count,
    names,
    one_of,
    places,
    refuse,
    sequences,
    several,
    words,
)
from ..text.pieces import Pieces
from ..text.vocabulary import Vocabulary
from .spelling import TYPOS, misspell
from .words import Lexicon, word_ids

if TYPE_CHECKING:
    from ..text.prompts import Prompts

PER_WORD = 20  # draws of a typing error before a word is passed over


@checked(**dict.fromkeys(("context", "pieces", "whole", "other"), sequences), kind=words, detail=words)
@dataclass(frozen=True)
class Cases:
    """Words in their left contexts, each spelled in other tokens than the model is used to, or as it is.

    Attributes
    ----------
    context : list of list of int
        (case,) tokens before the word, BOS first where the prompts begin with it.
    pieces : list of tuple of int
        (case,) tokens that stand for the word in this case.
    whole : list of tuple of int
        (case,) the tokens of the word itself: one where it was split or misspelt.
    other : list of tuple of int
        (case,) the tokens of another word, drawn at random.
    text, written : list of str
        (case,) the word, and as it is written in this case.
    kind : numpy.ndarray
        (case,) str: "split", "typo" or "natural".
    detail : numpy.ndarray
        (case,) str: "2 pieces", ..., or the typing error.
    vocabulary : Vocabulary
        What the ids stand for.
    """

    context: list[list[int]]
    pieces: list[tuple[int, ...]]
    whole: list[tuple[int, ...]]
    other: list[tuple[int, ...]]
    text: list[str]
    written: list[str]
    kind: np.ndarray
    detail: np.ndarray
    vocabulary: Vocabulary

    def __len__(self) -> int:
        return len(self.pieces)

    def __repr__(self) -> str:
        names, counts = np.unique(self.detail, return_counts=True)
        return f"Cases({', '.join(f'{n} {k}' for k, n in zip(names, counts, strict=True))})"

    @checked(which=places)
    def __getitem__(self, which: Sequence[int] | np.ndarray | slice) -> Cases:
        """Return some of the cases (places, a slice or a bool array)."""
        try:
            rows = np.arange(len(self))[which].tolist()
        except IndexError:
            refuse("which", which, f"there are {len(self)} cases, with places 0 to {len(self) - 1}")
        names = ("context", "pieces", "whole", "other", "text", "written")
        columns: Any = {n: [getattr(self, n)[r] for r in rows] for n in names}
        return Cases(**columns, kind=self.kind[rows], detail=self.detail[rows], vocabulary=self.vocabulary)

    def __add__(self, other: Cases) -> Cases:
        """Return the cases of both."""
        names = ("context", "pieces", "whole", "other", "text", "written")
        columns: Any = {n: [*getattr(self, n), *getattr(other, n)] for n in names}
        kind, detail = (np.concatenate([getattr(self, n), getattr(other, n)]) for n in ("kind", "detail"))
        return Cases(**columns, kind=kind, detail=detail, vocabulary=self.vocabulary)

    @checked(spelled=one_of("pieces", "whole", "other"))
    def prompts(self, spelled: str = "pieces") -> Prompts:
        """Return context and word as prompts that end with the word: as ``pieces``, as ``whole``, or the ``other``."""
        from ..text.prompts import Prompts

        words = {"pieces": self.pieces, "whole": self.whole, "other": self.other}[spelled]
        return Prompts.from_ids([[*c, *w] for c, w in zip(self.context, words, strict=True)], self.vocabulary.tokenizer)


@checked(sizes=several(count(2), 1), n_words=count(1), min_letters=count(1), context=count(1))
def split_cases(
    lexicon: Lexicon, sizes: Sequence[int] = (2, 3, 4, 5), *, n_words: int | None = 10_000, min_letters: int = 4,
    context: int = 64, min_context: int = 8, seed: int = 0,
) -> Cases:  # fmt: skip
    """Cut words of one token into pieces that are tokens too, in all sizes that the vocabulary allows.

    Parameters
    ----------
    lexicon : Lexicon
        Words of a corpus.
    sizes : sequence of int
        Numbers of pieces; every word gives a case for each size into which it can be cut.  Of all ways to cut it one is
        drawn, all equally likely; the first piece holds at least one letter.
    n_words : int, optional
        Words drawn.
    min_letters : int
        Fewest letters of a word (Kaplan et al.: more than 3).
    context, min_context : int
        Most and fewest tokens before the word, without BOS.
    seed : int
        Of everything that is drawn.

    Returns
    -------
    Cases
        Of kind "split".

    Raises
    ------
    ValueError
        If no word can be cut.

    References
    ----------
    Kaplan et al. 2025, arXiv 2410.05864

    Examples
    --------
    >>> import tokinterp as ti
    >>> prompts = ti.Prompts.from_texts([t.text for t in ti.bundled_texts("story")], ti.load_model(), max_tokens=512)
    >>> cases = split_cases(Lexicon.of(prompts), n_words=5)
    >>> "".join(cases.vocabulary.strings(cases.pieces[0])) == " " + cases.text[0]
    True
    """
    draw = np.random.default_rng(seed)
    words = _single(lexicon, n_words, min_letters, min_context, seed)
    pieces = Pieces(lexicon.prompts.vocabulary)
    rows = []
    for n in words.tolist():
        for size in sizes:
            cut = pieces.cut(" " + lexicon.text[n], size, draw)
            if cut is not None:
                rows.append((n, cut, lexicon.text[n], f"{size} pieces"))
    if not rows:
        raise ValueError(f"sizes={list(sizes)}: no word of one token can be cut into so many pieces of the vocabulary")
    return _cases(lexicon, rows, "split", words, context, draw)


@checked(typos=names(*TYPOS, least=1), n_words=count(1), min_letters=count(1), context=count(1))
def typo_cases(
    lexicon: Lexicon,
    typos: Sequence[str] = TYPOS,
    *,
    n_words: int | None = 10_000,
    min_letters: int = 4,
    context: int = 64,
    min_context: int = 8,
    seed: int = 0,
) -> Cases:
    """Misspell words of one token, so that they are several tokens and no word of the corpus; the first letter stays.

    Parameters
    ----------
    lexicon : Lexicon
        Words of a corpus.
    typos : sequence of {"substitute", "delete", "insert", "swap"}
        Every word gives a case for each of these errors for which a spelling is found.
    n_words, min_letters, context, min_context, seed
        As in `split_cases`.

    Returns
    -------
    Cases
        Of kind "typo".

    Raises
    ------
    ValueError
        For an unknown error, or if no word can be misspelt.

    References
    ----------
    Kaplan et al. 2025, arXiv 2410.05864

    Examples
    --------
    >>> import tokinterp as ti
    >>> texts = [t.text for t in ti.bundled_texts("article")[:8]]
    >>> lexicon = ti.lexicon.Lexicon.of(ti.Prompts.from_texts(texts, ti.load_model(), max_tokens=128))
    >>> cases = ti.lexicon.typo_cases(lexicon, ["swap"], n_words=4)
    >>> all(written[0] == word[0] for written, word in zip(cases.written, cases.text))
    True
    """
    draw = np.random.default_rng(seed)
    words = _single(lexicon, n_words, min_letters, min_context, seed)
    vocabulary, known = lexicon.prompts.vocabulary, {t.lower() for t in lexicon.text}
    letters = _letters(lexicon)
    asked, written = [], []
    for n in words.tolist():
        for typo in typos:
            drawn = {misspell(lexicon.text[n], typo, draw, letters) for _ in range(PER_WORD)} - {None}
            for spelling in sorted(s for s in drawn if s is not None and s.lower() not in known):
                asked.append((n, typo))
                written.append(spelling)
    tokens = word_ids([" " + w for w in written], vocabulary) if written else []
    options: dict[tuple[int, str], list[tuple[tuple[int, ...], str]]] = {}
    for key, ids, spelling in zip(asked, tokens, written, strict=True):
        if len(ids) > 1:
            options.setdefault(key, []).append((ids, spelling))
    rows = []
    for (n, typo), found in options.items():
        ids, spelling = found[int(draw.integers(len(found)))]
        rows.append((n, ids, spelling, typo))
    if not rows:
        raise ValueError("no word of one token can be misspelt so that it becomes several tokens and no other word")
    return _cases(lexicon, rows, "typo", words, context, draw)


@checked(sizes=several(count(2), 1), n_words=count(1), min_letters=count(1), context=count(1))
def natural_cases(
    lexicon: Lexicon, sizes: Sequence[int] = (2, 3, 4, 5), *, n_words: int | None = 10_000, min_letters: int = 4,
    context: int = 64, min_context: int = 8, seed: int = 0,
) -> Cases:  # fmt: skip
    """Return words of several tokens as they stand in the corpus; arguments as in `split_cases`.

    Parameters
    ----------
    lexicon : Lexicon
        The words of a corpus.
    sizes : sequence of int
        Numbers of tokens of a word.
    n_words, min_letters, context, min_context, seed
        As in `split_cases`.

    Returns
    -------
    Cases
        Of kind "natural".

    Raises
    ------
    ValueError
        If the corpus has no such word.

    Examples
    --------
    >>> import tokinterp as ti
    >>> texts = [t.text for t in ti.bundled_texts("article")[:8]]
    >>> lexicon = ti.lexicon.Lexicon.of(ti.Prompts.from_texts(texts, ti.load_model(), max_tokens=128))
    >>> {len(pieces) for pieces in ti.lexicon.natural_cases(lexicon, [2], n_words=4).pieces}
    {2}
    """
    words = lexicon.distinct(
        n_words, n_tokens=sizes, min_letters=min_letters, min_context=min_context + lexicon.prompts.bos, seed=seed
    )
    if not len(words):
        raise ValueError(
            f"sizes={list(sizes)}, min_letters={min_letters}, min_context={min_context}: no word of so many tokens, "
            "letters, and tokens before it: give more text, or smaller limits"
        )
    rows = [(n, lexicon.ids[n], lexicon.text[n], f"{len(lexicon.ids[n])} pieces") for n in words.tolist()]
    return _cases(lexicon, rows, "natural", words, context, np.random.default_rng(seed))


def _letters(lexicon: Lexicon) -> list[str]:
    """Return the small letters (or all, where there is no small one) that make up a thousandth of the text each."""
    counts = Counter("".join(lexicon.text))
    counts = Counter({c: n for c, n in counts.items() if c.islower()}) or counts
    return sorted(c for c, n in counts.items() if n >= 1e-3 * counts.total())


def _single(lexicon: Lexicon, n_words: int | None, min_letters: int, min_context: int, seed: int) -> np.ndarray:
    words = lexicon.distinct(
        n_words, n_tokens=(1,), min_letters=min_letters, min_context=min_context + lexicon.prompts.bos, seed=seed
    )
    if len(words) < 2:
        raise ValueError(
            f"min_letters={min_letters}, min_context={min_context}: the corpus has {len(words)} words of one token "
            "with so many letters, and tokens before them: two are needed; give more text, or smaller limits"
        )
    return words


def _cases(
    lexicon: Lexicon,
    rows: Sequence[tuple[int, tuple[int, ...], str, str]],
    kind: str,
    words: np.ndarray,
    context: int,
    draw: np.random.Generator,
) -> Cases:
    """Return the cases of (occurrence, tokens, spelling, detail), each with the words before it and another word."""
    prompts, before = lexicon.prompts, []
    others = words[draw.integers(len(words), size=len(rows))]
    place = {int(n): k for k, n in enumerate(words)}
    for k, (n, *_) in enumerate(rows):
        ids, stop = prompts.ids(int(lexicon.prompt[n])), int(lexicon.start[n])
        bos = [int(ids[0])] if prompts.bos else []
        before.append(bos + ids[max(len(bos), stop - context) : stop].tolist())
        if others[k] == n:
            others[k] = words[(place[n] + 1) % len(words)]
    return Cases(
        before, [r[1] for r in rows], [lexicon.ids[r[0]] for r in rows], [lexicon.ids[n] for n in others],
        [lexicon.text[r[0]] for r in rows], [r[2] for r in rows], np.full(len(rows), kind),
        np.array([r[3] for r in rows]), prompts.vocabulary,
    )  # fmt: skip
