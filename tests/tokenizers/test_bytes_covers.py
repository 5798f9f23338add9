"""Sums over cover encodings: perfect token models of Markov sources, where exact and naive are known in closed form."""

import re
from itertools import product

import numpy as np
import pytest

from tokinterp.tokenizers import MarkovSource
from tokinterp.tokenizers.bytes_covers import END, Covers
from tokinterp.tokenizers.bytes_tokens import ByteTokens
from tokinterp.tokenizers.markov import token_model

AB = MarkovSource([[0.6, 0.4], [0.3, 0.7]])


class Perfect:
    """The model of tokens that knows a source of two symbols: of all strings that are encoded so."""

    def __init__(self, source, pieces, encode, letters="ab"):
        self.source, self.pieces, self.encode, self.letters = source, pieces, encode, letters
        self.tokens = ByteTokens([p.encode() for p in pieces], self._encoded)
        self.ahead, self.known = 1 + max(map(len, pieces)), {}

    def _encoded(self, data):
        number = {p: i for i, p in enumerate(self.pieces)}
        found = [[number.get(p) for p in self.encode(d.decode())] for d in data]
        return [None if None in f else tuple(f) for f in found]

    def string(self, text):
        p, state = 1.0, None
        for c in text:
            k = self.letters.index(c)
            row = self.source.stationary if state is None else self.source.rows[state]
            p, state = p * row[k], k
        return p

    def total(self, ids):
        """Probability that the encoding of an endless text begins with these tokens."""
        if ids in self.known:
            return self.known[ids]
        text = "".join(self.pieces[i] for i in ids)
        tails = ["".join(t) for t in product(self.letters, repeat=self.ahead)]
        begins = [t for t in tails if self._encoded([(text + t).encode()])[0][: len(ids)] == ids]
        self.known[ids] = sum(self.string(text + t) for t in begins)
        return self.known[ids]

    def log_probs(self, ids):
        whole = self.total(ids)
        p = np.array([self.total((*ids, i)) if whole else 1 for i in range(len(self.pieces))]) / (whole or 1)
        return np.log(np.maximum(p, 1e-300))

    def read(self, text):
        covers = Covers(self.tokens)
        covers.add(covers.spelling.root, self.log_probs(()))
        yield covers.next()
        for byte in text.encode():
            for node in covers.push(byte):
                covers.add(node, self.log_probs(node.ids))
            yield covers.next()

    def after(self, text):
        *_, last = self.read(text)
        return last


def greedy(pieces):
    def encode(text):
        out = []
        while text:
            out.append(max((p for p in pieces if text.startswith(p)), key=len))
            text = text[len(out[-1]) :]
        return out

    return encode


TOY = Perfect(AB, ["a", "b", "aa"], greedy(["a", "b", "aa"]))


@pytest.mark.parametrize(
    ("text", "naive", "exact"),
    [("ba", 0.0, 0.6), ("baaa", 0.0, 0.6), ("bba", 0.0, 0.6), ("baa", 0.6, 0.6), ("ab", 0.3, 0.3)],
)
def test_the_toy_of_two_letters(text, naive, exact):
    found = TOY.after(text)
    assert found.exact[ord("a")] == pytest.approx(exact, abs=1e-9)
    assert found.naive[ord("a")] == pytest.approx(naive, abs=1e-9)
    assert found.exact.sum() == pytest.approx(1, abs=1e-9)
    assert np.exp(found.log_prob) == pytest.approx(TOY.string(text), rel=1e-9)
    assert found.rejected == pytest.approx(0, abs=1e-9)


def test_bias_of_the_toy_is_the_probability_of_the_token_that_was_cut():
    """After an odd run of a the naive model knows that no a follows: total variation P(a | a); else none."""
    text = "abaabbaaab"
    for n, found in enumerate(TOY.read(text)):
        run = n - len(text[:n].rstrip("a"))
        bias = 0.5 * np.abs(found.exact - found.naive).sum()
        assert bias == pytest.approx(0.6 if run % 2 else 0.0, abs=1e-9), n


@pytest.mark.parametrize("dictionary", ["bpe", "lzw", "blocks"])
def test_a_perfect_token_model_gives_the_source_for_any_dictionary(dictionary):
    train = AB.draw(5, 60, seed=1)
    pieces, encode = token_model(train, 6, 2, dictionary)
    perfect = Perfect(AB, pieces, encode)
    biased = 0
    for found, before in zip(perfect.read("baababbaaabab"), ["", *"baababbaaabab"], strict=True):
        row = AB.stationary if not before else AB.rows[ord(before) - 97]
        np.testing.assert_allclose(found.exact[[97, 98]], row, atol=2e-6)
        biased += 0.5 * np.abs(found.exact - found.naive).sum() > 0.05
    assert biased > 2


def before_words(text):
    """As GPT-2 cuts line breaks: in pairs, but the last one before a letter stands alone."""
    runs = re.findall(r"a|\n+(?!a)|\n+(?=\na)|\n", text)
    return [m for run in runs for m in re.findall(r"a|\n\n|\n", run)]


def test_white_space_that_is_cut_otherwise_before_a_word_is_covered():
    """A text of two line breaks is one token, and two of them once a letter follows: both cover it."""
    assert before_words("a\n\n") == ["a", "\n\n"]
    assert before_words("a\n\na") == ["a", "\n", "\n", "a"]
    perfect = Perfect(AB, ["a", "\n", "\n\n"], before_words, "a\n")
    text = "a\n\na\na\n\n\naa\n\n\n\n"
    for n, found in enumerate(perfect.read(text)):
        row = AB.rows[perfect.letters.index(text[n - 1])] if n else AB.stationary
        np.testing.assert_allclose(found.exact[[97, 10]], row, atol=2e-6, err_msg=str(n))
        assert np.exp(found.log_prob) == pytest.approx(perfect.string(text[:n]), rel=1e-5)
        assert found.rejected == pytest.approx(0, abs=1e-6)
    covers = Covers(perfect.tokens)
    for n, byte in enumerate(b"a\n\n"):
        covers.add(covers.spelling.root, perfect.log_probs(())) if not n else None
        nodes = covers.push(byte)
        for node in nodes:
            covers.add(node, perfect.log_probs(node.ids))
    assert [node.ids for node in nodes] == [(0, 2), (0, 1, 1)], "the encoding of the text itself is the first"
    found = covers.next()
    assert found.log_prob_tokens == pytest.approx(np.log(perfect.total((0, 2))))
    assert found.naive[97] == pytest.approx(0, abs=1e-9)


def bad_model(ids, size=3, end=0.0):
    """Gives every token the same probability, those that no encoding has among them."""
    return np.log(np.full(size, (1 - end) / size))


def test_mass_on_what_is_no_encoding_is_rejected_and_the_sum_rule_holds():
    covers, tokens = Covers(TOY.tokens), ["a", "b", "aa"]
    covers.add(covers.spelling.root, bad_model(()))
    before = covers.next()
    for byte in b"aab":
        for node in covers.push(byte):
            covers.add(node, bad_model(node.ids))
        found = covers.next()
        assert found.log_prob == pytest.approx(before.log_prob + np.log(before.exact[byte]), abs=1e-9)
        assert found.exact.sum() + found.rejected == pytest.approx(1, abs=1e-9)
        before = found
        if byte == 97 and len(covers.spelling.data) == 1:
            # covers of "a": the token a (1/3), after which a and aa are no encodings, and aa (1/3)
            assert found.n_covers == 2
            assert found.rejected == pytest.approx((1 / 3) * (2 / 3) / (2 / 3))
            assert found.exact[97] == pytest.approx(0.5)
    assert tokens[2] == "aa"


def test_special_tokens_are_the_end_and_many_ways_to_the_same_text_are_one():
    tokens = ByteTokens([b"a", b"b", b"aa", b""], TOY._encoded)
    covers = Covers(tokens, (3,))
    covers.add(covers.spelling.root, np.log([0.1, 0.2, 0.3, 0.4]))
    found = covers.next()
    assert found.exact[END] == pytest.approx(0.4)
    assert found.exact[97] == pytest.approx(0.4)
    (node,) = covers.push(98)
    assert node.ids == (3, 1)
    assert covers.next().n_covers == 0, "its distribution was not given yet"
    covers.add(node, np.log([0.25] * 4))
    assert covers.next().log_prob == pytest.approx(np.log(0.2))


def test_rows_without_a_token_are_rejected_and_no_end():
    """Rows of the embedding beyond the vocabulary, and the token for unknown words: neither text nor its end."""
    tokens = ByteTokens([b"a", b"b", b"aa", b"", b"", b""], TOY._encoded, ends=[3])
    covers, p = Covers(tokens, (3,)), np.array([0.1, 0.2, 0.2, 0.1, 0.3, 0.1])
    covers.add(covers.spelling.root, np.log(p))
    found = covers.next()
    assert found.exact[END] == pytest.approx(0.1)
    assert found.rejected == pytest.approx(0.4)
    np.testing.assert_allclose(found.naive[[97, 98, END]], np.array([0.3, 0.2, 0.1]) / 0.6)
    assert found.naive.sum() == pytest.approx(1)
    (node,) = covers.push(98)
    covers.add(node, np.log(p))
    assert covers.next().rejected == pytest.approx(0.4)


def test_a_text_that_cannot_be_written_has_no_probability():
    covers = Covers(TOY.tokens)
    covers.add(covers.spelling.root, bad_model(()))
    assert covers.push(ord("c")) == []
    found = covers.next()
    assert found.log_prob == -np.inf
    assert found.n_covers == 0
    assert not found.exact.any()
