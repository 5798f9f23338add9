"""Prompts: ids, offsets, token strings, limits, batches, files, and errors."""

import copy
import hashlib
import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_helpers import MAKERS, TEXTS, PieceTokenizer, byte_tokenizer, space_tokenizer, tokenizer
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.geometry.clouds import cloud_sizes
from tokinterp.text import Prompts, Vocabulary
from tokinterp.text.tokenise import Tokenised
from tokinterp.text.vocabulary import decode, show

NAMES = list(MAKERS)
UNICODE = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


def model(tok, max_tokens=64, d_vocab=None):
    info = SimpleNamespace(id="tiny", max_tokens=max_tokens, d_vocab=d_vocab or len(tok))
    return SimpleNamespace(info=info, tokenizer=tok)


def content(prompts, i, strings=None):
    return [s for s, special in zip(strings or prompts.strings(i), prompts.special(i), strict=True) if not special]


# -- ids and BOS ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_auto_gives_what_the_tokenizer_gives_by_itself(name):
    tok = tokenizer(name)
    prompts = Prompts.from_texts(TEXTS, tok, max_tokens=400)
    for i, text in enumerate(TEXTS):
        assert prompts.ids(i).tolist() == tok(text)["input_ids"]
        assert prompts.text(i) == text
    assert prompts.token_ids.dtype == np.int32


@pytest.mark.parametrize("make", [byte_tokenizer, space_tokenizer])
def test_bos_policy(make):
    tok = make()
    with_bos, without = (Prompts.from_texts(TEXTS, tok, bos=b) for b in (True, False))
    assert with_bos.bos
    assert not without.bos
    assert with_bos.hash == Prompts.from_texts(TEXTS, tok).hash != without.hash
    for i in range(len(TEXTS)):
        assert with_bos.ids(i).tolist() == [tok.bos_token_id, *without.ids(i)]
        assert with_bos.special(i).tolist() == [True] + [False] * len(without.ids(i))
        assert with_bos.offsets(i)[0].tolist() == [-1, -1]
        np.testing.assert_array_equal(with_bos.offsets(i)[1:], without.offsets(i))


def test_auto_adds_no_bos_where_the_tokenizer_adds_none():
    assert not Prompts.from_texts(TEXTS, byte_tokenizer(bos=False)).bos
    assert Prompts.from_texts(TEXTS, byte_tokenizer(bos=False), bos=True).bos


def test_bos_written_in_the_text_is_not_doubled():
    prompts = Prompts.from_texts(["<|bos|>the cat"], byte_tokenizer())
    assert (prompts.ids(0) == 0).sum() == 1
    assert prompts.offsets(0)[0].tolist() == [-1, -1]
    assert Prompts.from_ids([[0, 5], [5]], byte_tokenizer(), bos=True).lengths == [2, 2]


def test_unknown_word_token_is_not_special():
    tok = space_tokenizer()
    prompts = Prompts.from_ids([[1, tok.unk_token_id, 70]], tok)
    assert prompts.special(0).tolist() == [True, False, False]


# -- strings and offsets --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_strings_are_safe_and_join_to_the_text(name):
    tok = tokenizer(name)
    words = ["plain words, with spaces  and\nlines", " leading", "x"]
    prompts = Prompts.from_texts([*words, *TEXTS], tok, max_tokens=400)
    for i in range(len(prompts)):
        joined = "".join(content(prompts, i))
        assert "\0" not in joined
        joined.encode()  # would fail on lone surrogates
        if i < len(words):
            assert joined == words[i]


@pytest.mark.parametrize("name", NAMES)
def test_bytes_of_tokens_join_to_the_bytes_of_the_text(name):
    tok = tokenizer(name)
    prompts = Prompts.from_texts(TEXTS, tok, max_tokens=400)
    for i, text in enumerate(TEXTS):
        joined = b"".join(content(prompts, i, prompts.vocabulary.bytes(prompts.ids(i))))
        # Llama 2 puts a space before a text that does not begin with one
        assert joined in (text.encode(), b" " * prompts.vocabulary.prefix_space + text.encode())


@settings(max_examples=60, deadline=None)
@given(st.lists(UNICODE, min_size=1, max_size=4))
def test_any_text_survives_byte_level_tokens(texts):
    prompts = Prompts.from_texts(texts, byte_tokenizer(), max_tokens=500)
    again = Prompts.from_ids([prompts.ids(i) for i in range(len(prompts))], byte_tokenizer())
    if not any("<|" in text for text in texts):  # text that looks like a special token is not told by its ids
        assert again.hash == prompts.hash
    for i, text in enumerate(texts):
        if "<|" in text:
            continue
        assert again.text(i) == prompts.text(i) == text
        np.testing.assert_array_equal(again.offsets(i), prompts.offsets(i))
        strings = prompts.strings(i)
        assert all("\0" not in s for s in strings)
        for string, (a, b) in zip(strings[1:], prompts.offsets(i)[1:], strict=True):
            assert "\\x" in string or string == text[a:b]


def test_partial_characters_are_written_as_bytes():
    tok = byte_tokenizer()
    face = "😀".encode()
    ids = [tok.convert_tokens_to_ids(c) for c in ("ð", "Ł", "ĺ", "Ģ")]
    prompts = Prompts.from_ids([ids, ids[:2]], tok)
    assert prompts.vocabulary.bytes(ids) == [face[n : n + 1] for n in range(4)]
    assert prompts.strings(0) == ["\\xf0", "\\x9f", "\\x98", "\\x80"]
    assert prompts.text(0) == "😀"
    assert prompts.offsets(0).tolist() == [[0, 1]] * 4
    assert prompts.text(1) == "��"


GOLDEN = [
    ("space", "the 日\n", ["the", " ", "\\xe6", "\\x97", "\\xa5", "\n"]),
    ("bare", "the 😀", ["the", " \\xf0\\x9f", "\\x98\\x80"]),
]


@pytest.mark.parametrize(("name", "text", "strings"), GOLDEN)
def test_strings_of_known_vocabularies(name, text, strings):
    assert content(Prompts.from_texts([text], tokenizer(name)), 0) == strings


@pytest.mark.parametrize("name", NAMES)
def test_offsets_point_at_the_tokens(name):
    prompts = Prompts.from_texts(TEXTS[:5], tokenizer(name), max_tokens=400)
    for i in range(5):
        offsets, text = prompts.offsets(i), prompts.text(i)
        assert offsets.shape == (prompts.lengths[i], 2)
        for string, (a, b), special in zip(prompts.strings(i), offsets, prompts.special(i), strict=True):
            if special:
                assert (a, b) == (-1, -1)
            elif "\\x" not in string:
                assert text[a:b].strip() == string.strip()


def test_space_that_the_tokenizer_puts_before_a_text_is_no_character_of_it():
    prompts = Prompts.from_texts(["Zebra", "the end", " the end"], space_tokenizer())
    assert prompts.strings(0) == ["<s>", "", "Z", "e", "b", "r", "a"]
    assert prompts.offsets(0)[:3].tolist() == [[-1, -1], [0, 0], [0, 1]]
    assert prompts.strings(1)[:2] == ["<s>", "the"]
    assert "".join(content(prompts, 2)) == " the end"


def test_tokenizer_without_offsets_is_aligned_by_its_strings():
    marked = "The| cat|'s| mat|."
    fast, slow = (Prompts.from_texts(["The cat's mat."], PieceTokenizer(marked, fast=f)) for f in (True, False))
    np.testing.assert_array_equal(fast.offsets(0), slow.offsets(0))
    broken = PieceTokenizer(marked, fast=False)
    broken.vocab = {k.upper(): v for k, v in broken.vocab.items()}
    broken.cuts = {k: [p.upper() for p in v] for k, v in broken.cuts.items()}
    with pytest.raises(ValueError, match=r"no character offsets.*use_fast=True"):
        Prompts.from_texts(["The cat's mat."], broken).offsets(0)


def test_ids_without_tokenizer_have_strings_too():
    prompts = Prompts.from_ids([[5, 12], [7]])
    assert prompts.strings(0) == ["<5>", "<12>"]
    assert prompts.text(0) == "<5><12>"
    assert prompts.offsets(0).tolist() == [[0, 3], [3, 7]]


def test_ids_beyond_the_tokenizer_but_in_the_model():
    tok = byte_tokenizer()
    assert Prompts.from_ids([[3, len(tok) + 2]], model(tok, d_vocab=len(tok) + 8)).strings(0)[1] == f"<{len(tok) + 2}>"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=5), max_size=12))
def test_decode_covers_all_bytes(pieces):
    text, offsets = decode(pieces)
    joined = b"".join(pieces)
    assert len(offsets) == len(pieces)
    assert (np.diff(offsets.ravel()[0::2]) >= 0).all()
    if joined == joined.decode("utf-8", "ignore").encode():
        assert text == joined.decode()
    for piece, (a, b) in zip(pieces, offsets, strict=True):
        whole = piece == piece.decode("utf-8", "ignore").encode()
        if whole and piece and text.count("�") == 0:
            assert text[a:b] == piece.decode() or len(text[a:b].encode()) > len(piece)
    show(joined).encode()


# -- length ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: Prompts.from_texts([], t), "list of texts is empty"),
        (lambda t: Prompts.from_texts(["a", ""], t), r"text 1 is empty.*on_empty"),
        (lambda t: Prompts.from_texts(["a", "b\ud800c"], t), r"texts\[1\]='b\\ud800c': a lone surrogate.*character 1"),
        (lambda t: Prompts.from_texts(["x", TEXTS[0] * 4], model(t, 50)), r"text 1 has \d+ tokens.*50.*on_long"),
        (lambda t: Prompts.from_texts(["a"], model(t, 50), max_tokens=51), "max_tokens=51.*tiny, 50"),
        (lambda t: Prompts.from_texts(["a"], t, max_tokens=1), "no room for text after BOS"),
        (lambda t: Prompts.from_texts(["a"], t, on_long="window"), "needs max_tokens"),
        (lambda t: Prompts.from_texts(["a"], t, max_tokens=9, on_long="cut"), "'cut'.*window"),
        (lambda t: Prompts.from_texts(["a"], t, max_tokens=9, stride=3), "stride=3.*on_long"),
        (lambda t: Prompts.from_texts(["a"], t, max_tokens=9, on_long="window", stride=9), "stride=9.*1 and 8"),
        (lambda t: Prompts.from_texts(["a"], t, max_tokens=9, min_tokens=10), "min_tokens=10"),
        (lambda t: Prompts.from_texts(["a"], t, min_tokens=50), "none of the 1 texts.*50"),
        (lambda t: Prompts.from_texts(["a"], t, bos="yes"), "bos='yes'"),
        (lambda t: Prompts.from_texts(["a"], PieceTokenizer("a"), bos=True), "no BOS token"),
        (lambda t: Prompts.from_texts(["a"], SimpleNamespace(info=model(t).info, tokenizer=None)), "tiny has no token"),
        (lambda t: Prompts.from_texts(["zzz"], model(t, d_vocab=20)), r"text 0 has token id \d+.*tiny has ids 0 to 19"),
        (lambda t: Prompts.from_ids([], t), "list of prompts is empty"),
        (lambda t: Prompts.from_ids([[3], []], t), r"prompt 1 has shape \(0,\)"),
        (lambda t: Prompts.from_ids([[1.5]], t), "float64"),
        (lambda t: Prompts.from_ids([[3], [2, 9999]], t), r"prompt 1 has token id 9999 at position 1.*0 to \d+"),
        (lambda t: Prompts.from_ids([[-1]], t), "prompt 0 has token id -1"),
        (lambda t: Prompts.from_ids([[3] * 51], model(t, 50)), "prompt 0 has 51 tokens.*tiny, 50"),
        (lambda t: Prompts.from_ids([[3]], bos=True), "no BOS token"),
        (lambda t: next(Prompts.from_ids([[3]]).batches(0)), "batch_tokens=0: give a whole number"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call(byte_tokenizer())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: Prompts.from_texts("one text", t), r"one string.*\[text\]"),
        (lambda t: Prompts.from_texts(["a", 3], t), "text 1 is int"),
        (lambda t: Prompts.from_texts(["a"], "gpt2"), "model_or_tokenizer='gpt2': give a model.*ti.load_model"),
    ],
)
def test_wrong_types(call, message):
    with pytest.raises(TypeError, match=message):
        call(byte_tokenizer())


# -- hash, choosing, batches ----------------------------------------------------------------------------------------


def test_hash_of_ids_depends_on_ids_starts_and_bos_only():
    one = Prompts.from_ids([[1, 2], [3]])
    assert one.hash == Prompts.from_ids([np.array([1, 2]), np.array([3], np.int16)]).hash
    assert len({one.hash, Prompts.from_ids([[1], [2, 3]]).hash, Prompts.from_ids([[1, 2], [4]]).hash}) == 3
    expected = hashlib.sha256(
        b"bos=False note=\n" + np.array([0, 2, 3], "<i8").tobytes() + np.array([1, 2, 3], "<i4").tobytes()
    )
    assert one.hash == expected.hexdigest()


def test_every_column_text_and_note_is_part_of_the_hash():
    texts, tok = ["the cat", "a dog sat"], space_tokenizer()
    base = Prompts.from_texts(texts, tok)
    names = ("documents", "window_starts", "chars", "half", "truncated", "dropped")
    parts = Tokenised(base.token_ids, base.starts, offsets=base._offsets, **{n: getattr(base, n) for n in names})
    other = copy.deepcopy(tok)
    other.add_tokens(["zebra"])

    def made(texts=texts, tokenizer=tok, bos=True, note="", origin=None, **changes):
        vocabulary = Vocabulary(tokenizer, len(tok) + 9)
        return Prompts(replace(parts, **changes), vocabulary, texts, bos=bos, note=note, origin=origin).hash

    found = {"base": made(), "note": made(note="x"), "bos": made(bos=False), "texts": made(["the cat", "a dog sat."])}
    found |= {"tokenizer": made(tokenizer=other), "documents": made(documents=base.documents[::-1].copy())}
    for name in ("ids", "window_starts", "chars", "half", "offsets", "truncated"):
        column = getattr(parts, name).copy()
        column.flat[1] = 1 - column.flat[1]
        found[name] = made(**{name: column})
    found["origin"] = made(origin=np.arange(base.n_tokens))
    assert made() == found["base"]
    assert len(set(found.values())) == len(found)


def test_the_id_just_beyond_the_vocabulary_is_refused():
    tok = byte_tokenizer()
    assert Prompts.from_ids([[len(tok) - 1]], tok).lengths == [1]
    for owner in (tok, model(tok)):
        with pytest.raises(ValueError, match=f"token id {len(tok)} at position 1"):
            Prompts.from_ids([[3, len(tok)]], owner)


def test_choosing_prompts():
    prompts = Prompts.from_texts(TEXTS, byte_tokenizer())
    for which in (slice(1, 4), [1, 2, 3], np.array([False, True, True, True, False, False])):
        some = prompts[which]
        assert some.documents.tolist() == [1, 2, 3]
        for n in range(3):
            assert some.text(n) == TEXTS[n + 1]
            assert some.strings(n) == prompts.strings(n + 1)
            np.testing.assert_array_equal(some.offsets(n), prompts.offsets(n + 1))
    assert prompts[2].text(0) == TEXTS[2]
    assert prompts[[3, 0]].text(1) == TEXTS[0]
    assert len(prompts[:0]) == 0
    assert "0 prompts" in repr(prompts[:0])
    assert prompts[:].hash == prompts.hash != prompts[::-1].hash
    assert sum(len(p) for p in prompts) == len(prompts)
    for bad in (6, -1):
        with pytest.raises(IndexError, match=f"prompt {bad}: there are 6 prompts"):
            prompts[[bad]]
        with pytest.raises(IndexError, match="6 prompts"):
            prompts.ids(bad)
    assert pickle.loads(pickle.dumps(prompts)).hash == prompts.hash


def test_texts_are_kept_once():
    text = TEXTS[0] * 30
    prompts = Prompts.from_texts([text], byte_tokenizer(), max_tokens=16, on_long="window", stride=1)
    assert prompts.document_text(0) is text
    arrays = (prompts.token_ids, prompts._offsets, prompts.starts, prompts.documents, prompts.chars)
    assert sum(a.nbytes for a in arrays) < 16 * prompts.n_tokens
    assert prompts.token_ids.nbytes + prompts._offsets.nbytes == 12 * prompts.n_tokens


def test_vocabulary_of_a_whole_tokenizer_is_safe():
    for name in NAMES:
        tok = tokenizer(name)
        strings = Vocabulary(tok).strings(np.arange(len(tok)))
        assert "\0" not in "".join(strings)
        "".join(strings).encode()


@pytest.mark.parametrize("n", [3, 30])
def test_special_tokens_are_looked_up_for_all_prompts_at_once(n, monkeypatch):
    """However many prompts there are."""
    model, rng = tiny(), np.random.default_rng(0)
    prompts = ti.Prompts.from_ids([np.append(1, rng.integers(3, 200, 12)) for _ in range(n)], model)
    looked, looks = [], 0
    special = Vocabulary.special
    monkeypatch.setattr(Vocabulary, "special", lambda self, ids: looked.append(len(ids)) or special(self, ids))
    uses = {
        "sizes": lambda: cloud_sizes(prompts, ("special",)),
        "recall": lambda: ti.memory.PrefixRecall().begin(model.info, prompts),
        "similarity": lambda: ti.geometry.LayerSimilarity().begin(model.info, prompts),
        "covariates": lambda: ti.geometry.prompt_covariates(prompts),
        "shuffled": lambda: ti.text.shuffle_blocks(prompts, 1),
        "random": lambda: ti.text.random_ids(prompts),
        "augmented": lambda: ti.text.augment_prompts(prompts, q=1, rate=0.3),
    }
    for name, use in uses.items():
        looked.clear()
        use()
        assert len(looked) <= 1, name
        looks += len(looked)
    assert looks >= 1


def test_the_longest_of_all_prompts_is_looked_for_where_edits_need_it_alone():
    """A pass over all prompts for every batch would be as many steps as prompts times batches."""

    class Watched(list):
        passes = 0

        def __iter__(self):
            self.passes += 1
            return super().__iter__()

    model, prompts = tiny(), some_prompts([5, 7, 6])
    prompts.__dict__["lengths"] = Watched(prompts.lengths)
    for i in range(3):
        ti.capture(model, prompts, [i], ti.resid([1]))
    assert prompts.lengths.passes == 0  # pyright: ignore[reportAttributeAccessIssue]
    beyond = ti.edits.zero(ti.Site("resid", 0), [6])  # only longer ones have that position
    ti.capture(model, prompts, [0], ti.resid([1]), [beyond])
    assert prompts.lengths.passes == 1  # pyright: ignore[reportAttributeAccessIssue]


def test_the_last_prompt_is_minus_one():
    prompts = Prompts.from_ids([[5, 6], [7, 8, 9]])
    assert prompts[-1].ids(0).tolist() == [7, 8, 9]
    for beyond in (-3, 2):
        with pytest.raises(IndexError, match="numbered from 0"):
            prompts[beyond]
