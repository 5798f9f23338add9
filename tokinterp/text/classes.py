"""What kind of token stands at each position: special, white space, stop word, piece of a word, ..."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..settings import array, checked, mapping, several, string, whole
from .spans import Spans, TokenSpans
from .words import find_words, trimmed

if TYPE_CHECKING:
    from .spelled import Spelled

CLASSES = (
    "special", "whitespace", "punctuation", "stop word", "digit", "word", "first piece", "middle piece", "last piece",
    "other",
)  # fmt: skip

_FUNCTION_WORDS = """
a about above across after again against all almost alone along already also although always am among an and another
any anybody anyone anything are aren't around as at away be became because been before behind being below beneath
beside besides between beyond both but by can can't cannot could couldn't did didn't do does doesn't doing don't
done down during each either else enough ever every everybody everyone everything except few for from further had
hadn't has hasn't have haven't having he he'd he'll he's hence her here here's hers herself him himself his how
how's however i i'd i'll i'm i've if in indeed inside instead into is isn't it it'd it'll it's its itself just least
less let's like many may maybe me might mine more moreover most much must mustn't my myself near neither never
nevertheless no nobody none nor not nothing now nowhere of off often on once one only onto or other others otherwise
ought our ours ourselves out outside over own per perhaps quite rather really same several shall shan't she she'd
she'll she's should shouldn't since so some somebody someone something sometimes somewhere still such than that
that'll that's the their theirs them themselves then there there's therefore these they they'd they'll they're
they've this those though through throughout thus till to together too toward towards under unless until up upon us
very was wasn't we we'd we'll we're we've were weren't what what's whatever when when's whenever where where's
whereas wherever whether which whichever while who who'd who'll who's whoever whole whom whose why why's will with
within without won't would wouldn't yet you you'd you'll you're you've your yours yourself yourselves
"""
STOP_WORDS = frozenset(_FUNCTION_WORDS.split())


@checked(codes=whole, names=several(string), last=mapping(array))
@dataclass
class TokenClasses:
    """Class of every token of the stream of all prompts.

    Attributes
    ----------
    codes : numpy.ndarray
        (token,) int8, place in ``names``.
    names : tuple of str
        special, whitespace, punctuation (and symbols), stop word, digit, word (one token), first/middle/last piece (of
        a word of several tokens), other (a token that holds parts of two words, or of a word and of punctuation).
    last : dict of str to numpy.ndarray
        Kind of span -> (token,) bool, true on the last token of each span of that kind.
    """

    codes: np.ndarray
    names: tuple[str, ...]
    last: dict[str, np.ndarray]

    @checked()
    def mask(self, *names: str) -> np.ndarray:
        """Return (token,) bool, true on tokens of any of the named classes.

        Raises
        ------
        ValueError
            For a name that is no class.
        """
        unknown = [n for n in names if n not in self.names]
        if unknown:
            raise ValueError(
                f"names={unknown[0]!r}: no class of tokens {unknown[0]!r}: the classes are {', '.join(self.names)}"
            )
        return np.isin(self.codes, [self.names.index(n) for n in names])

    def counts(self) -> dict[str, int]:
        """Return the number of tokens of each class."""
        return dict(zip(self.names, np.bincount(self.codes, minlength=len(self.names)).tolist(), strict=True))


@checked()
def token_classes(prompts: Spelled, spans: Spans | TokenSpans | None = None) -> TokenClasses:
    """Sort every token into one class.

    Words are those of `find_words` on the whole text, so a word that a window cuts keeps its class. A word of one token
    is a stop word, a digit (only digits) or a word; the tokens of a longer one are its first, middle and last piece,
    stop words included, but a number in several tokens is digits.

    Parameters
    ----------
    prompts : Prompts
        With character offsets.
    spans : Spans or TokenSpans, optional
        Spans whose last tokens are marked, one mask per kind.

    Returns
    -------
    TokenClasses
        In the order of the token stream (prompt by prompt; see `Prompts.token_table`).

    Examples
    --------
    >>> import tokinterp as ti
    >>> prompts = ti.Prompts.from_texts(["The Nile flows north."], ti.load_model())
    >>> classes = token_classes(prompts)
    >>> len(classes.codes) == prompts.n_tokens
    True
    """
    codes = prompts.once("classes", lambda: _codes(prompts))
    found = spans.align(prompts) if isinstance(spans, Spans) else spans
    kinds = [] if found is None else sorted(set(found.spans.kind.tolist()))
    last = {k: found.last_tokens(prompts, k) for k in kinds} if found is not None else {}
    return TokenClasses(codes, CLASSES, last)


def _codes(prompts: Spelled) -> np.ndarray:
    """Return (token,) int8 classes."""
    codes = np.full(prompts.n_tokens, CLASSES.index("special"), dtype=np.int8)
    words: tuple[int, np.ndarray, np.ndarray] | None = None
    for i, document in enumerate(prompts.documents.tolist()):
        if words is None or words[0] != document:
            words = (document, *_words(prompts.document_text(document)))
        codes[prompts.starts[i] : prompts.starts[i + 1]] = _classify(prompts, i, words[1], words[2])
    codes.flags.writeable = False
    return codes


def _words(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (word, 2) edges and (word,) the class that each word has if it is one token."""
    edges, words = find_words(text)
    stop, digit, word = (CLASSES.index(n) for n in ("stop word", "digit", "word"))
    plain = (w.lower().replace("’", "'") for w in words)
    return edges, np.array([stop if w in STOP_WORDS else digit if w.isdigit() else word for w in plain], dtype=np.int8)


def word_range(prompts: Spelled, i: int, edges: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return (n,) start, stop (in the document, trimmed), blank, first and past-last word touched by each token."""
    start, stop, blank = trimmed(prompts.text(i), prompts.offsets(i))
    base = int(prompts.chars[i, 0])
    start, stop = start + base, stop + base
    low = np.searchsorted(edges[:, 1], start, side="right")
    high = np.where(blank, low, np.searchsorted(edges[:, 0], stop, side="left"))
    return start, stop, blank, low, high


def _classify(prompts: Spelled, i: int, edges: np.ndarray, single: np.ndarray) -> np.ndarray:
    """Return the (n,) int8 classes of prompt ``i``."""
    code = {name: n for n, name in enumerate(CLASSES)}
    special = prompts.special(i)
    start, stop, blank, low, high = word_range(prompts, i, edges)
    out = np.full(len(special), code["punctuation"], dtype=np.int8)
    out[high > low] = code["other"]
    if len(edges):
        word = np.minimum(low, len(edges) - 1)
        within = (high == low + 1) & (start >= edges[word, 0]) & (stop <= edges[word, 1])
        label = np.where(within, word, -1 - np.arange(len(word)))
        solid = np.flatnonzero(~blank)
        label, where = label[solid], word[solid]
        fresh = np.append(True, label[1:] != label[:-1]) & (start[solid] == edges[where, 0])
        final = np.append(label[1:] != label[:-1], True) & (stop[solid] == edges[where, 1])
        if len(solid):
            lead, tail = prompts.half[i]
            fresh[0] &= not lead
            final[-1] &= not tail
        kind = np.select(
            [single[where] == code["digit"], fresh & final, fresh, final],
            [code["digit"], single[where], code["first piece"], code["last piece"]],
            code["middle piece"],
        )
        inside = within[solid]
        out[solid[inside]] = kind[inside]
    out[blank] = code["whitespace"]
    out[special] = code["special"]
    return out
