"""Markov sources of known entropy, and what a model of single tokens loses on them: why tokens help."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import xarray as xr

from ..models.info import ModelInfo
from ..results.dataset import check, variable
from ..results.stamp import stamped
from ..settings import checked, count, instance, number, one_of, refuse, several
from ..settings.describe import hash_json

RAJARAMAN = "Rajaraman et al. 2024, Toward a theory of tokenization in LLMs, arXiv 2404.08335"
DICTIONARIES = ("bpe", "lzw", "blocks")
ALPHABET = "abcdefghijklmnopqrstuvwxyz"


class MarkovSource:
    """A stationary source of symbols whose next one depends on the last ``order`` symbols.

    Parameters
    ----------
    transition : array_like
        (symbols,) * (order + 1) probabilities, the last axis that of the next symbol.

    Attributes
    ----------
    entropy_rate : float
        Bits per symbol given all that came before.
    symbol_entropy : float
        Bits per symbol of a model of single symbols.

    Raises
    ------
    ValueError
        If the probabilities are none, or more than one class of states is never left.

    Examples
    --------
    >>> source = MarkovSource([[0.9, 0.1], [0.1, 0.9]])
    >>> round(source.entropy_rate, 4), round(source.symbol_entropy, 4), source.draw(1, 5, seed=0)
    (0.469, 1.0, ['baaab'])
    """

    @checked()
    def __init__(self, transition: Any) -> None:
        p = np.asarray(transition, dtype=np.float64)
        k = p.shape[-1] if p.ndim else 0
        if p.ndim < 2 or len(set(p.shape)) != 1 or not 2 <= k <= len(ALPHABET):
            refuse("transition", p.shape, "give (symbols,) * (order + 1) probabilities of 2 to 26 symbols")
        if not np.isfinite(p).all() or (p < 0).any() or not np.allclose(p.sum(-1), 1, atol=1e-9):
            refuse("transition", "its rows", "they are no probabilities: each must add up to 1")
        self.order, self.symbols = p.ndim - 1, k
        self.rows = p.reshape(-1, k)
        n = len(self.rows)
        step = np.zeros((n, n))
        following = (np.arange(n)[:, None] * k) % n + np.arange(k)
        np.add.at(step, (np.arange(n)[:, None], following), self.rows)
        system = np.vstack([step.T - np.eye(n), np.ones(n)])
        if np.linalg.matrix_rank(system, tol=1e-10) < n:
            refuse("transition", "its states", "they fall apart into classes that are never left")
        self.stationary = np.linalg.lstsq(system, np.append(np.zeros(n), 1.0), rcond=None)[0].clip(0)
        self.entropy_rate = float(self.stationary @ _entropies(self.rows))
        self.symbol_entropy = float(_entropies((self.stationary @ self.rows)[None])[0])

    def draw(self, n: int, length: int, seed: int = 0) -> list[str]:
        """Return n strings of symbols a, b, ..., begun in the stationary state."""
        rng = np.random.default_rng(seed)
        state = rng.choice(len(self.rows), size=n, p=self.stationary / self.stationary.sum())
        cumulated = self.rows.cumsum(1)
        out = np.zeros((n, length), np.int64)
        for t in range(length):
            out[:, t] = np.minimum((rng.random(n)[:, None] > cumulated[state]).sum(1), self.symbols - 1)
            state = (state * self.symbols) % len(self.rows) + out[:, t]
        return ["".join(ALPHABET[s] for s in row) for row in out]


def _entropies(rows: np.ndarray) -> np.ndarray:
    return -np.where(rows > 0, rows * np.log2(np.where(rows > 0, rows, 1)), 0).sum(1)


@checked(source=instance("MarkovSource"), sizes=several(count(2), 1), n_train=several(count(1), 1), n_test=count(1),
         length=count(2), dictionary=one_of(*DICTIONARIES), smoothing=number(above=0))  # fmt: skip
def token_unigram_loss(
    source: MarkovSource,
    sizes: Sequence[int] = (4, 16, 64, 256),
    *,
    dictionary: str = "bpe",
    n_train: Sequence[int] = (600,),
    n_test: int = 300,
    length: int = 400,
    smoothing: float = 0.5,
    seed: int = 0,
) -> xr.Dataset:
    """Measure what a model of single tokens loses on a Markov source, for dictionaries of growing size.

    Parameters
    ----------
    source : MarkovSource
        Draws training and test strings.
    sizes : sequence of int
        Tokens of the dictionaries, the symbols among them.
    dictionary : {"bpe", "lzw", "blocks"}
        Byte-pair encoding; the first strings of a Lempel-Ziv-Welch code, the longest of which is taken; or all strings
        of the largest length of which there are no more than the size, and the symbols beside them, which only what is
        left at the end of a string is written in.
    n_train : sequence of int
        Training strings, which dictionary and probabilities are of.
    n_test, length : int
        Test strings, and symbols of every string.
    smoothing : float
        Added to the count of each token.
    seed : int
        Of the strings.

    Returns
    -------
    xarray.Dataset
        On ``n_train`` and ``vocab_size``: ``cross_entropy`` in bits per symbol, and ``symbols_per_token``, on the test
        strings; ``entropy_rate`` and ``symbol_entropy`` of the source.

    Raises
    ------
    ValueError
        If a size is less than the number of symbols.

    References
    ----------
    Rajaraman et al. 2024, arXiv 2404.08335.

    Examples
    --------
    >>> source = MarkovSource([[0.9, 0.1], [0.1, 0.9]])
    >>> ds = token_unigram_loss(source, [2, 64], n_train=[100], n_test=50)
    >>> ds["cross_entropy"].round(1).values.tolist()
    [[1.0, 0.6]]
    """
    if min(sizes) < source.symbols:
        refuse("sizes", min(sizes), f"the source has {source.symbols} symbols, all of them tokens: give no less")
    train = source.draw(max(n_train), length, seed)
    test = source.draw(n_test, length, seed + 1)
    loss, per_token = np.zeros((2, len(n_train), len(sizes)))
    for a, n in enumerate(n_train):
        for b, size in enumerate(sizes):
            tokens, encode = token_model(train[:n], size, source.symbols, dictionary)
            counts = Counter(t for text in train[:n] for t in encode(text))
            total = sum(counts.values()) + smoothing * len(tokens)
            used = [t for text in test for t in encode(text)]
            bits = sum(-np.log2((counts[t] + smoothing) / total) for t in used)
            loss[a, b], per_token[a, b] = bits / (n_test * length), n_test * length / len(used)
    dims = ("n_train", "vocab_size")
    ds = xr.Dataset(
        {
            "cross_entropy": variable(dims, loss, "bits per symbol of a model of single tokens", "bit", RAJARAMAN),
            "symbols_per_token": variable(dims, per_token, "symbols per token", "1"),
            "entropy_rate": variable((), source.entropy_rate, "entropy rate of the source", "bit"),
            "symbol_entropy": variable((), source.symbol_entropy, "entropy of its symbols", "bit"),
        },
        {
            "n_train": variable("n_train", list(n_train), "training strings", "1"),
            "vocab_size": variable("vocab_size", list(sizes), "tokens of the dictionary", "token"),
        },
        {"dimensions": "n_train, vocab_size"},
    )
    info = ModelInfo(
        id="MarkovSource", revision="", weights="", architecture="MarkovSource", backend="source", n_layers=0,
        n_heads=0, d_model=0, d_vocab=source.symbols, max_tokens=0, dtype="", device="", tokenizer="",
    )  # fmt: skip
    settings = {"sizes": list(sizes), "dictionary": dictionary, "n_train": list(n_train), "n_test": n_test,
                "length": length, "smoothing": smoothing}  # fmt: skip
    ds = stamped(ds, "token_unigram_loss", info, hash_json([source.order, source.rows.tolist()]), settings, seed)
    check(ds)
    return ds


def token_model(
    train: Sequence[str], size: int, symbols: int, dictionary: str
) -> tuple[list[str], Callable[[str], list[str]]]:
    """Return a dictionary of strings, and the function that cuts a string into them.

    Examples
    --------
    >>> tokens, encode = token_model(["abab"], 3, 2, "lzw")
    >>> tokens, encode("aab")
    (['a', 'b', 'ab'], ['a', 'ab'])
    """
    alphabet = list(ALPHABET[:symbols])
    if dictionary == "bpe":
        from tokenizers import Tokenizer, models, trainers

        inner = Tokenizer(models.BPE())
        trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
        inner.train_from_iterator(train, trainer)
        return list(inner.get_vocab()), lambda text: inner.encode(text).tokens
    if dictionary == "blocks":
        longest = 1
        while symbols ** (longest + 1) <= size:
            longest += 1
        blocks = ["".join(b) for b in product(alphabet, repeat=longest)]
        tokens = [*blocks, *(alphabet if longest > 1 else [])]
    else:
        tokens, known = list(alphabet), set(alphabet)
        for text in train:
            now = ""
            for symbol in text:
                if len(tokens) >= size:
                    break
                if now + symbol in known:
                    now += symbol
                else:
                    tokens.append(now + symbol)
                    known.add(now + symbol)
                    now = symbol
        longest = max(map(len, tokens))
    every = set(tokens)

    def encode(text: str) -> list[str]:
        out, at = [], 0
        while at < len(text):
            sizes = range(min(longest, len(text) - at), 0, -1)
            piece = next(text[at : at + n] for n in sizes if text[at : at + n] in every)
            out.append(piece)
            at += len(piece)
        return out

    return tokens, encode
