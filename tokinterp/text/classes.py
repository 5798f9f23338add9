"""What kind of token stands at each position: special, white space, stop word, piece of a word, ..."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..settings import array, checked, mapping, several, string, whole
from .spans import Spans, TokenSpans
from .tokenise import CHUNK_CHARS
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
    codes = np.concatenate([np.zeros(0, np.int8), *(_classify(prompts, *part) for part in _chunks(prompts))])
    codes.flags.writeable = False
    return codes


def _chunks(prompts: Spelled) -> Iterator[tuple[range, dict[int, str]]]:
    """Yield runs of prompts with the texts of their documents: so many characters, or one document."""
    start = size = 0
    texts: dict[int, str] = {}
    documents = prompts.documents.tolist()
    for i, document in enumerate(documents):
        if document in texts:
            continue
        text = prompts.document_text(document)
        if texts and size + len(text) > CHUNK_CHARS:
            yield range(start, i), texts
            start, size, texts = i, 0, {}
        texts[document] = text
        size += len(text)
    if texts:
        yield range(start, len(documents)), texts


def _joined(texts: list[str]) -> tuple[str, np.ndarray]:
    """Return texts one behind the other, NUL (no white space, in no word) behind each, and where each begins."""
    begins = np.cumsum([0, *(len(t) + 1 for t in texts)])
    return "".join(t + "\0" for t in texts), begins[:-1]


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
    return start, stop, blank, *_touched(start, stop, blank, edges)


def _touched(start: np.ndarray, stop: np.ndarray, blank: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return (n,) first and past-last word touched by each token."""
    low = np.searchsorted(edges[:, 1], start, side="right")
    return low, np.where(blank, low, np.searchsorted(edges[:, 0], stop, side="left"))


def _trimmed(prompts: Spelled, some: range) -> tuple[np.ndarray, ...]:
    """Return (token,) start, stop (in the text of the prompt, trimmed), blank and prompt, counted from the first.

    As `trimmed` of each prompt, in one go.
    """
    texts = [prompts.text(i) for i in some]
    text, begins = _joined(texts)
    of = np.repeat(np.arange(len(some)), np.diff(prompts.starts[some.start : some.stop + 1]))
    offsets = np.concatenate([prompts.offsets(i) for i in some]).astype(np.int64)
    inside = np.clip(offsets, 0, np.array([len(t) for t in texts])[of][:, None]) + begins[of][:, None]
    start, stop, blank = trimmed(text, np.where(offsets[:, :1] < 0, -1, inside))
    # A blank token before all others of its prompt has the place that the prompt before it has reached.
    return np.maximum(start - begins[of], 0), np.maximum(stop - begins[of], 0), blank, of


def _classify(prompts: Spelled, some: range, texts: dict[int, str]) -> np.ndarray:
    """Return the (token,) int8 classes of a run of prompts, cut from these documents."""
    code = {name: n for n, name in enumerate(CLASSES)}
    here = slice(prompts.starts[some.start], prompts.starts[some.stop])
    special = prompts.special_mask[here]
    text, begins = _joined(list(texts.values()))
    place = dict(zip(texts, begins.tolist(), strict=True))
    edges, single = _words(text)
    start, stop, blank, of = _trimmed(prompts, some)
    before = np.array([place[d] for d in prompts.documents[some.start : some.stop].tolist()], dtype=np.int64)
    base = (before + prompts.chars[some.start : some.stop, 0])[of]
    start, stop = start + base, stop + base
    low, high = _touched(start, stop, blank, edges)
    out = np.full(len(special), code["punctuation"], dtype=np.int8)
    out[high > low] = code["other"]
    if len(edges):
        word = np.minimum(low, len(edges) - 1)
        within = (high == low + 1) & (start >= edges[word, 0]) & (stop <= edges[word, 1])
        label = np.where(within, word, -1 - np.arange(len(word)))
        solid = np.flatnonzero(~blank)
        label, where, prompt = label[solid], word[solid], of[solid]
        first = np.append(True, prompt[1:] != prompt[:-1])[: len(solid)]  # of its prompt
        last = np.append(prompt[1:] != prompt[:-1], True)[: len(solid)]
        other = label[1:] != label[:-1]
        lead, tail = prompts.half[some.start : some.stop][prompt].T
        fresh = (first | np.append(True, other)[: len(solid)]) & (start[solid] == edges[where, 0]) & ~(first & lead)
        final = (last | np.append(other, True)[: len(solid)]) & (stop[solid] == edges[where, 1]) & ~(last & tail)
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
