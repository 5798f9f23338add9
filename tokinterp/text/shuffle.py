"""Shuffled prompts: the baseline that keeps the tokens and takes away their order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..settings import checked, count
from .classes import word_range
from .prompts import Prompts
from .tokenise import Tokenised
from .words import find_words

if TYPE_CHECKING:
    from numpy.random import Generator


@checked(level=count(0, 15))
def shuffle_blocks(prompts: Prompts, level: int, seed: int = 0) -> Prompts:
    """Cut each prompt into 4**level blocks of consecutive tokens and put the blocks into random order.

    The order inside a block stays, and so do BOS and other special tokens at the start of a prompt. Where N tokens do
    not divide by K = 4**level, the first N mod K blocks have one token more; with K >= N single tokens are permuted.
    Level 0 changes nothing.

    Parameters
    ----------
    prompts : Prompts
        What to shuffle.
    level : int
        S of the paper, 0 to 5 there: 1,024 tokens make blocks of 1024, 256, 64, 16, 4, 1.
    seed : int
        The order is drawn for each prompt from this seed, the level and the prompt's ids, so that it depends neither on
        the other prompts nor on their order.

    Returns
    -------
    Prompts
        ``origin`` says where each token came from; the text is that of the shuffled ids; each prompt is a document of
        its own.

    References
    ----------
    Viswanathan et al. 2025, arXiv 2501.10573, section "shuffled prompts".

    Examples
    --------
    >>> prompts = Prompts.from_ids([range(16)])
    >>> sorted(shuffle_blocks(prompts, 1).ids(0)) == list(range(16))
    True
    """

    def order(i: int, first: int, n: int, random: Generator) -> np.ndarray:
        sizes = block_lengths(n, level)
        return permute_units(np.repeat(np.arange(len(sizes)), sizes), random)

    return _shuffled(prompts, order, f"shuffle_blocks(level={int(level)}, seed={int(seed)})")


@checked()
def shuffle_words(prompts: Prompts, seed: int = 0) -> Prompts:
    """Put the words of each prompt into random order; the tokens of a word stay together.

    Words are found on the text (see `find_words`). Every token that belongs to no word (punctuation, line breaks) moves
    by itself, but a space that is a token of its own moves with the word after it, a token that touches two words holds
    them together, and so do tokens that share a character. Special tokens at the start stay. The ids are not made anew:
    a first word without a leading space keeps having none.

    Parameters
    ----------
    prompts : Prompts
        What to shuffle; with character offsets.
    seed : int
        See `shuffle_blocks`.

    Examples
    --------
    >>> import tokinterp as ti
    >>> prompts = ti.Prompts.from_texts(["The Nile flows north to the sea."], ti.load_model())
    >>> sorted(shuffle_words(prompts).token_ids) == sorted(prompts.token_ids)
    True
    """

    def order(i: int, first: int, n: int, random: Generator) -> np.ndarray:
        return permute_units(word_units(prompts, i)[first:], random)

    return _shuffled(prompts, order, f"shuffle_words(seed={int(seed)})")


@checked()
def random_ids(prompts: Prompts, seed: int = 0) -> Prompts:
    """Replace the tokens of each prompt by others of the vocabulary, drawn without repetition.

    All ids that are not special are equally likely; BOS and other special tokens stay where they are.

    Parameters
    ----------
    prompts : Prompts
        What to replace; with a vocabulary.
    seed : int
        See `shuffle_blocks`.

    Raises
    ------
    ValueError
        If a prompt is longer than the vocabulary, or the size of the vocabulary is not known.

    References
    ----------
    A control of Viswanathan et al. 2025, arXiv 2501.10573: 1,024 distinct random ids.

    Examples
    --------
    >>> import tokinterp as ti
    >>> prompts = ti.Prompts.from_texts(["The Nile flows north to the sea."], ti.load_model())
    >>> random_ids(prompts).lengths == prompts.lengths
    True
    """
    vocabulary = prompts.vocabulary
    ordinary = vocabulary.ordinary
    longest = max(prompts.lengths)
    if longest > len(ordinary):
        raise ValueError(
            f"a prompt of {longest} tokens cannot have different random ids: the vocabulary has {len(ordinary)} that "
            "are not special; make the prompts with max_tokens=, or from a model that says how large its vocabulary is"
        )
    note = f"random_ids(seed={int(seed)})"
    ids, free = prompts.token_ids.copy(), ~prompts.special_mask
    for i in range(len(prompts)):
        digest = hashlib.sha256(note.encode() + prompts.ids(i).astype("<i4").tobytes()).digest()
        random = np.random.default_rng(int.from_bytes(digest[:16], "little"))
        places = np.flatnonzero(free[prompts.starts[i] : prompts.starts[i + 1]]) + prompts.starts[i]
        ids[places] = random.choice(ordinary, len(places), replace=False)
    parts = Tokenised.bare(ids, prompts.starts, prompts.truncated)
    return Prompts(parts, vocabulary, bos=prompts.bos, note="; ".join(n for n in (prompts.note, note) if n))


def block_lengths(n: int, level: int) -> np.ndarray:
    """Return the lengths of min(4**level, n) blocks of n tokens, differing by at most one, longer ones first.

    Examples
    --------
    >>> block_lengths(10, 1).tolist()
    [3, 3, 2, 2]
    """
    blocks = max(1, min(4**level, n))
    return n // blocks + (np.arange(blocks) < n % blocks)


def permute_units(unit: np.ndarray, random: Generator) -> np.ndarray:
    """Return the order of tokens after permuting units (numbered from 0, tokens of a unit side by side)."""
    if not len(unit):
        return np.zeros(0, np.int64)
    place = np.argsort(random.permutation(int(unit[-1]) + 1))
    return np.argsort(place[unit], kind="stable")


def word_units(prompts: Prompts, i: int) -> np.ndarray:
    """Return (n,) the number of the unit that each token of prompt ``i`` moves with."""
    # Words of the prompt's own text: a word that a window cuts still moves as one.
    edges = find_words(prompts.text(i))[0] + int(prompts.chars[i, 0])
    start, stop, blank, low, high = word_range(prompts, i, edges)
    touches = high > low
    together = np.zeros(len(start), dtype=bool)
    together[1:] = touches[1:] & touches[:-1] & (high[:-1] > low[1:])
    together[1:] |= ~blank[1:] & ~blank[:-1] & (start[1:] < stop[:-1])
    strings = np.array([s.strip(" ") == "" for s in prompts.strings(i)]) & ~prompts.special(i)
    together[1:] |= strings[:-1] & touches[1:]
    return np.cumsum(~together) - 1


def _shuffled(prompts: Prompts, order: Callable[[int, int, int, Generator], np.ndarray], note: str) -> Prompts:
    origin, marked = np.empty(prompts.n_tokens, dtype=np.int32), prompts.special_mask
    for i in range(len(prompts)):
        special = marked[prompts.starts[i] : prompts.starts[i + 1]]
        first = len(special) if special.all() else int(np.argmin(special))
        seed = hashlib.sha256(note.encode() + prompts.ids(i).astype("<i4").tobytes()).digest()
        random = np.random.default_rng(int.from_bytes(seed[:16], "little"))
        moved = order(i, first, len(special) - first, random) + first
        origin[prompts.starts[i] : prompts.starts[i + 1]] = np.concatenate([np.arange(first), moved])
    where = origin + np.repeat(prompts.starts[:-1], np.diff(prompts.starts))
    parts = Tokenised.bare(prompts.token_ids[where], prompts.starts, prompts.truncated)
    if prompts.origin is not None:
        origin = prompts.origin[where]
    notes = "; ".join(n for n in (prompts.note, note) if n)
    return Prompts(parts, prompts.vocabulary, bos=prompts.bos, note=notes, origin=origin)
