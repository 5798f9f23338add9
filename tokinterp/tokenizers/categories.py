"""What a vocabulary is made of: kind and script of every token (Qtok)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from ..results.dataset import check, variable
from ..results.stamp import stamped_tokenizers
from ..settings import checked, count, instance, none, tokenizer
from ..stats.resample import ratio
from ..text.prompts import Prompts
from ..text.vocabulary import ALPHABET, Vocabulary
from .reachability import check_supported, encode

CLASSES = (
    "control", "pure_byte", "char_alpha", "spaced_alpha", "inner_alpha", "char_other", "spaced_other", "inner_other",
    "fragment", "char_error", "spaced_error", "inner_error", "no_token",
)  # fmt: skip
PLACES = ("char", "spaced", "inner")
CUTS = ("whole", "threes", "right", "left", "single", "other")
DIGITS, NUMBERS = 12, 50  # longest numbers, and how many of each length are cut
SCRIPTS = frozenset(
    re.split(
        r"\s+",
        """ADLAM ARABIC ARABIC-INDIC ARMENIAN BALINESE BAMUM BATAK BENGALI BLACK-LETTER BOPOMOFO BRAILLE BUGINESE
CANADIAN CHAKMA CHAM CHEROKEE CJK COPTIC CYRILLIC DESERET DEVANAGARI DINGBAT EGYPTIAN ETHIOPIC GEORGIAN
GLAGOLITIC GOTHIC GREEK GUJARATI GURMUKHI HALFWIDTH HANGUL HEBREW HIRAGANA INSCRIPTIONAL JAVANESE KAITHI
KANGXI KANNADA KATAKANA KHMER LAO LATIN LEPCHA LIMBU LISU MALAYALAM MANDAIC MEETEI MODI MONGOLIAN MYANMAR NKO
OGHAM OL OLD ORIYA PHAGS-PA PHOENICIAN RUNIC SAMARITAN SHAVIAN SINHALA SUNDANESE SYRIAC TAGALOG TAGBANWA TAI
TAMIL TELUGU THAANA THAI TIBETAN TIFINAGH YI""",
    )
)
"""First words of Unicode names that count as scripts."""
_TAGS = frozenset(["br", "h1", "h2", "h3", "h4", "h5", "h6", "b", "img", "li", "tr", "td", "p", "th", "u", "em"])
_SINGH = "Singh and Strouse 2024, Tokenization counts, arXiv 2402.14903"
_QTOK = "Chelombitko and Komissarov 2024, Qtok, arXiv 2410.12989"


@checked(tokenizer=tokenizer, prompts=instance("Prompts") | none, size=count(1))
def token_categories(tokenizer: Any, prompts: Prompts | None = None, *, size: int | None = None) -> xr.Dataset:
    """Sort every token into twelve classes by its characters, and say its script.

    Parameters
    ----------
    tokenizer : Hugging Face tokenizer
        Fast or slow.
    prompts : Prompts, optional
        Made with this tokenizer: adds the shares among the tokens that are used in them.
    size : int, optional
        Rows of the model's embedding, where they are more than the tokenizer's ids.

    Returns
    -------
    xarray.Dataset
        On ``vocab`` (token id): ``token_kind`` and ``token_script``, empty where there is none.  On ``kind``:
        ``n_ids`` and ``share`` of all ids that have a token; with prompts ``share_used`` of the distinct ids that occur
        and ``share_text`` of the tokens of the text.  On ``script`` and ``place``: ``n_ids_script``, ``share_script``
        (of all ids that have a token) and ``share_script_alpha`` (of those with a script).  On ``digits``, of 50 random
        numbers of so many digits after a space: ``number_tokens``, mean tokens, and by ``cut`` ``number_cut``, the
        share that are one token (whole), cut into threes (the same from the right and the left), into threes from the
        right, or from the left, with the rest at the other end, into single digits, or otherwise; a space of its own is
        no part of a number, and numbers that their tokens do not spell are left out.

    Raises
    ------
    ValueError
        If the prompts are of another tokenizer, ``size`` is less than the number of ids, or the tokenizer marks the
        ends of words (``</w>``).

    Notes
    -----
    In this order: ``fragment``, not whole characters or U+FFFD; ``pure_byte``, a single character by which byte-level
    BPE writes a byte, or a byte token of SentencePiece; ``char`` (other single characters), ``spaced`` (begin with a
    space) and ``inner``, each ``alpha`` (all characters after the space have names that begin with the same script),
    ``other``, or ``error`` (a character without a name, such as a line break); ``control``, marks in angle or square
    brackets that are no tags of HTML.  ``no_token``: ids without a token.  A script is the first word of the Unicode
    name if it is one of 75.

    References
    ----------
    Chelombitko and Komissarov 2024, arXiv 2410.12989; github.com/nup-csai/Qtok.

    Examples
    --------
    >>> import tokinterp as ti
    >>> ds = ti.tokenizers.token_categories(ti.load_tokenizer())
    >>> int(ds["n_ids"].sel(kind="control")), str(ds["token_script"].sel(vocab=1611).item())
    (3, 'LATIN')
    """
    vocabulary = Vocabulary(tokenizer, size)
    check_supported(vocabulary, size)
    if prompts is not None and prompts.vocabulary.hash != vocabulary.hash:
        raise ValueError(f"prompts={prompts!r}: they were made with another tokenizer: tokenise with this one")
    ids, there = np.arange(vocabulary.size), vocabulary.there
    raw = vocabulary.bytes(ids)
    pairs = [
        classify(piece, byte_token(vocabulary, i)) if t else ("no_token", "")
        for i, (piece, t) in enumerate(zip(raw, there.tolist(), strict=True))
    ]
    kinds, found = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    number = np.array([CLASSES.index(k) for k in kinds])
    n = np.bincount(number, minlength=len(CLASSES))
    real = np.array(CLASSES) != "no_token"
    scripts = sorted({*found.tolist()} - {""})
    table = np.array([[((found == s) & (kinds == f"{p}_alpha")).sum() for p in PLACES] for s in scripts])
    table = table.reshape(len(scripts), len(PLACES))
    data = {
        "token_kind": variable("vocab", kinds, "class of the token", "1", _QTOK),
        "token_script": variable("vocab", found, "script that all characters share", "1", _QTOK),
        "n_ids": variable("kind", n, "token ids", "token", _QTOK),
        "share": variable("kind", np.where(real, n / there.sum(), np.nan), "share of the vocabulary", "1", _QTOK),
        "n_ids_script": variable(("script", "place"), table, "token ids", "token", _QTOK),
        "share_script": variable(("script", "place"), table / there.sum(), "share of the vocabulary", "1", _QTOK),
        "share_script_alpha": variable(
            ("script", "place"), ratio(table, np.array(table.sum())), "share of the ids with a script", "1", _QTOK
        ),
    }
    tokens, cuts = _numbers(vocabulary)
    data["number_tokens"] = variable("digits", tokens, "tokens of a number", "token", _SINGH, range=(0, None))
    data["number_cut"] = variable(("digits", "cut"), cuts, "share of numbers cut so", "1", _SINGH, range=(0, 1))
    if prompts is not None:
        uses = np.bincount(prompts.token_ids, minlength=vocabulary.size)
        for name, weight, words in (
            ("share_used", (uses > 0).astype(float), "share of the ids that occur"),
            ("share_text", uses.astype(float), "share of the tokens of the text"),
        ):
            part = np.bincount(number, weight, minlength=len(CLASSES)) / weight.sum()
            data[name] = variable("kind", np.where(real, part, np.nan), words, "1")
    coords = {
        "vocab": variable("vocab", ids, "token id", "1"),
        "token": variable("vocab", np.array(vocabulary.strings(ids)), "token", "1"),
        "kind": variable("kind", np.array(CLASSES), "class of tokens", "1"),
        "script": variable("script", np.array(scripts, dtype=object), "script", "1"),
        "place": variable("place", np.array(PLACES), "single character, after a space, or inside of a word", "1"),
        "digits": variable("digits", np.arange(1, DIGITS + 1), "digits of a number", "1"),
        "cut": variable("cut", np.array(CUTS), "how a number is cut into tokens", "1"),
    }
    ds = xr.Dataset(data, coords, {"dimensions": "kind, script, place, digits, cut"})
    mark = "" if prompts is None else prompts.hash
    ds = stamped_tokenizers(ds, "token_categories", [tokenizer], {"size": vocabulary.size}, mark)
    check(ds)
    return ds


def cut_of(lengths: Sequence[int]) -> str:
    """Return how a number is cut, by the digits of each of its tokens.

    Examples
    --------
    >>> [cut_of(n) for n in ([3], [1, 3], [3, 1], [3, 3], [1, 1, 1, 1], [2, 2])]
    ['whole', 'right', 'left', 'threes', 'single', 'other']
    """
    n = sum(lengths)
    threes = [3] * (n // 3)
    rest = [n % 3] if n % 3 else []
    known = {"whole": [n], "right": rest + threes, "left": threes + rest, "single": [1] * n}
    cut = next((name for name, cut in known.items() if list(lengths) == cut), "other")
    return "threes" if cut == "right" and not rest else cut


def _numbers(vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """Return (digits,) the mean tokens of numbers that these spell, and (digits, cut) shares of how they are cut."""
    rng, tokens, cuts = np.random.default_rng(0), np.zeros(DIGITS), np.zeros((DIGITS, len(CUTS)))
    for n in range(DIGITS):
        drawn = rng.integers(0, 10, (NUMBERS, n + 1))
        drawn[:, 0] = rng.integers(1, 10, NUMBERS)
        rows = encode(vocabulary.tokenizer, [" " + "".join(map(str, d)) for d in drawn.tolist()])
        for row in rows:
            lengths = [sum(c in b"0123456789" for c in piece) for piece in vocabulary.bytes(row)]
            lengths = [k for k in lengths if k]
            if sum(lengths) == n + 1:
                tokens[n] += len(lengths)
                cuts[n, CUTS.index(cut_of(lengths))] += 1
    spelt = cuts.sum(1)
    return ratio(tokens, spelt), ratio(cuts, spelt[:, None])


def byte_token(vocabulary: Vocabulary, i: int) -> bool:
    """Return whether an id is one of SentencePiece's byte tokens ``<0x41>``."""
    if vocabulary.kind != "sentencepiece":
        return False
    token = vocabulary.tokenizer.convert_ids_to_tokens(i)
    return isinstance(token, str) and len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def classify(piece: bytes, is_byte: bool = False) -> tuple[str, str]:
    """Return the class and the script of a token's bytes.

    Examples
    --------
    >>> classify(" été".encode()), classify(b"a1"), classify(b"</s>"), classify(b"<br/>"), classify(b"a")
    (('spaced_alpha', 'LATIN'), ('inner_other', ''), ('control', ''), ('inner_other', ''), ('pure_byte', ''))
    """
    text = piece.decode("utf-8", "replace")
    if is_byte:
        return "pure_byte", ""
    if "�" in text:
        return "fragment", ""
    if len(text) == 1 and text in ALPHABET:
        return "pure_byte", ""
    place = "char" if len(text) == 1 else "spaced" if text.startswith(" ") else "inner"
    bracketed = (text.startswith("<") and text.endswith(">")) or (text.startswith("[") and text.endswith("]"))
    if place == "inner" and bracketed and text[1:-1].lower().replace("/", "") not in _TAGS:
        return "control", ""
    names = [unicodedata.name(c, "") for c in text]
    if not all(names):
        return f"{place}_error", ""
    first = {name.split()[0] for name in (names[1:] if place == "spaced" else names)}
    script = first.pop() if len(first) == 1 else ""
    return (f"{place}_alpha", script) if script in SCRIPTS else (f"{place}_other", "")
