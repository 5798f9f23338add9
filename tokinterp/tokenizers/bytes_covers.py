"""The probability of a byte string under a model of tokens: the sum over all encodings that cover it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from .bytes_tokens import ByteTokens, Node, Spelling

LEFT = 1e-6  # share of the probability of tokens that are not looked up, the rarest after a whole encoding
END = 256
"""The outcome after the 256 bytes: no further text (a special token)."""
NONE = 257
"""Ids that stand for nothing: rows of the embedding without a token, and the token for unknown words."""


class Next(NamedTuple):
    """What comes after a byte string.

    Attributes
    ----------
    log_prob : float
        Log-probability of the string itself, given the context.
    n_covers : int
        Encodings that cover it.
    exact : numpy.ndarray
        (257,) probability of each next byte, and of the end; together 1 less ``rejected``.
    naive : numpy.ndarray
        (257,) the same after the encoding of the string itself, of whatever token comes next, sums to 1; NaN inside a
        character.
    rejected : float
        Share of the string's probability that lies on tokens after which no text is encoded so, or that are none.
    log_prob_tokens : float
        Log-probability of the encoding of the string itself; NaN inside a character.
    """

    log_prob: float
    n_covers: int
    exact: np.ndarray
    naive: np.ndarray
    rejected: float
    log_prob_tokens: float


@dataclass(eq=False)
class _Open:
    """Tokens after one node that go on as the text does."""

    node: Node
    total: float
    ids: np.ndarray
    logp: np.ndarray
    known: np.ndarray


class Covers:
    """All encodings whose text begins with a byte string, moved on byte by byte.

    After each byte, ``push`` names the new encodings of the string; their distributions of the next token are then
    given to ``add`` in that order.

    Parameters
    ----------
    tokens : ByteTokens
        The vocabulary.
    context : tuple of int
        Tokens before the string.
    """

    def __init__(self, tokens: ByteTokens, context: tuple[int, ...] = ()) -> None:
        self.tokens, self.spelling = tokens, Spelling(tokens, context)
        self.open: list[_Open] = []
        self.exact: list[tuple[Node, float, np.ndarray]] = []
        self.fresh: dict[Node, float] = {self.spelling.root: 0.0}
        self.first = tokens.table[:, 0].astype(np.int64)
        self.first[self.first < 0] = NONE
        self.first[tokens.ends] = END

    def copy(self) -> Covers:
        """Return the same, which goes on by itself."""
        out = copy.copy(self)
        out.spelling, out.exact = self.spelling.copy(), list(self.exact)
        out.open = [replace(o) for o in self.open]
        return out

    def push(self, byte: int) -> list[Node]:
        """Take one byte more and return the new nodes, whose distributions are to be added."""
        at = len(self.spelling.data)
        for node, total, logp in self.exact:
            ids = np.flatnonzero(self.tokens.table[:, 0] == byte)
            self.open.append(_Open(node, total, ids, logp[ids], np.zeros(len(ids), bool)))
        for o in self.open:
            if o.node.at < at:
                self._keep(o, self.tokens.table[o.ids, at - o.node.at] == byte)
        nodes = self.spelling.push(byte)
        of = {id(o.node): o for o in self.open}
        self.fresh, self.exact = {}, []
        for node in nodes:
            o = of.get(id(node.parent))
            if o is not None and len(own := o.logp[o.ids == node.token]):
                self.fresh[node] = o.total + float(own[0])
        for o in self.open:
            self._keep(o, self.tokens.size[o.ids] > at + 1 - o.node.at)
            fine = self._valid(o.node, o.ids[~o.known])
            keep = np.ones(len(o.ids), bool)
            keep[~o.known] = fine
            o.known[:] = True
            self._keep(o, keep)
        self.open = [o for o in self.open if len(o.ids)]
        return [*self.fresh]

    def add(self, node: Node, logp: np.ndarray) -> None:
        """Take the (vocab,) log-probabilities of the token after a node."""
        self.exact.append((node, self.fresh[node], logp.astype(np.float64)))

    def next(self) -> Next:
        """Return what comes after the string; all new nodes have been added."""
        at = len(self.spelling.data)
        most = max([t for _, t, _ in self.exact] + [o.total + float(o.logp.max()) for o in self.open], default=-np.inf)
        found, rejected, mine = np.zeros(END + 1), 0.0, 0.0
        for o in self.open:
            following = self.tokens.table[o.ids, at - o.node.at]
            found += np.bincount(following, np.exp(o.logp + (o.total - most)), END + 1)
        mine = float(found.sum())
        after: list[np.ndarray] = []
        for node, total, logp in self.exact:
            p = np.exp(logp)
            every = np.bincount(self.first, p, NONE + 1)
            after.append(every[:NONE])
            bad = self._rejected(node, p, LEFT * np.exp(most - total))
            weight = np.exp(total - most)
            mine += weight
            rejected += weight * float(p[bad].sum() + every[NONE])
            found += weight * (after[-1] - np.bincount(self.first[bad], p[bad], END + 1))
        return Next(
            most + float(np.log(mine)) if mine > 0 else -np.inf,
            len(self.exact) + sum(len(o.ids) for o in self.open),
            found / mine if mine > 0 else found, after[0] / after[0].sum() if after else np.full(END + 1, np.nan),
            rejected / mine if mine > 0 else np.nan, self.exact[0][1] if self.exact else np.nan,
        )  # fmt: skip

    def _rejected(self, node: Node, p: np.ndarray, left: float) -> np.ndarray:
        """Return the tokens that make no encoding after a node, the rarest of probability ``left`` not looked up."""
        text = np.flatnonzero(self.first < END)
        order = text[np.argsort(p[text])]
        order = order[np.cumsum(p[order]) > left]
        return order[~self._valid(node, order)]

    def _valid(self, node: Node, ids: np.ndarray) -> np.ndarray:
        before = self.spelling.since(node)
        return self.tokens.valid([(before, i) for i in ids.tolist()])

    @staticmethod
    def _keep(o: _Open, keep: np.ndarray) -> None:
        o.ids, o.logp, o.known = o.ids[keep], o.logp[keep], o.known[keep]
