"""From texts to ids: windows, limits, chunks, and what is refused."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
from text_helpers import MAKERS, TEXTS, byte_tokenizer, tokenizer

from tokinterp.text import Prompts

NAMES = list(MAKERS)


def model(tok, max_tokens=64, d_vocab=None):
    info = SimpleNamespace(id="tiny", max_tokens=max_tokens, d_vocab=d_vocab or len(tok))
    return SimpleNamespace(info=info, tokenizer=tok)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stride", [None, 4])
def test_windows_cover_the_text(name, stride):
    tok = tokenizer(name)
    long = " ".join(TEXTS[:5]) + " naïve" * 20
    whole = Prompts.from_texts([long, "short one"], tok, max_tokens=500)
    cut = Prompts.from_texts([long, "short one"], tok, max_tokens=9, on_long="window", stride=stride)
    bos = int(whole.bos)
    assert max(cut.lengths) == 9
    assert not cut.truncated.any()
    width = 9 - bos
    inside = whole.ids(0)[bos:]
    windows = [i for i in range(len(cut)) if cut.documents[i] == 0]
    assert cut.window_starts[windows].tolist() == [(stride or width) * n for n in range(len(windows))]
    covered = np.zeros(len(inside), bool)
    for i in windows:
        ids, start = cut.ids(i), cut.window_starts[i]
        if bos:
            assert ids[0] == tok.bos_token_id
        assert ids[bos:].tolist() == inside[start : start + width].tolist()
        covered[start : start + width] = True
        here = np.flatnonzero(~cut.special(i))
        for k in here:
            a, b = cut.offsets(i)[k]
            c, d = whole.offsets(0)[start + k]
            assert cut.text(i)[a:b] == whole.text(0)[c:d]
    assert covered.all()
    assert cut.window_starts[windows[-2]] + width < len(inside)
    if stride is None and name != "pythia":
        pieces = cut.chars[windows]
        assert pieces[0, 0] == 0
        assert pieces[-1, 1] == len(long)
        # windows meet, except where a character is shared by two of them
        assert set(pieces[1:, 0] - pieces[:-1, 1]) <= {0, -1}


def test_truncation_is_counted_and_shown():
    prompts = Prompts.from_texts([TEXTS[0], "x"], byte_tokenizer(), max_tokens=6)
    assert prompts.lengths[0] == 6
    assert prompts.truncated.tolist() == [True, False]
    assert TEXTS[0].startswith(prompts.text(0))
    assert 0 < len(prompts.text(0)) < len(TEXTS[0])
    assert "1 truncated" in repr(prompts)
    assert prompts.document_text(0) == TEXTS[0]


def test_short_prompts_are_dropped_and_counted():
    prompts = Prompts.from_texts(["x", TEXTS[0], "y"], byte_tokenizer(), min_tokens=3)
    assert prompts.documents.tolist() == [1]
    assert prompts.dropped.tolist() == [0, 2]
    assert "2 too short and dropped" in repr(prompts)
    both = Prompts.from_texts([TEXTS[0]], byte_tokenizer(), max_tokens=8, on_long="window", min_tokens=8)
    assert set(both.lengths) == {8}


def test_model_limits():
    tok = byte_tokenizer()
    assert Prompts.from_texts(["x"], model(tok)).lengths == [2]
    assert max(Prompts.from_texts(TEXTS, model(tok, 10), on_long="window").lengths) == 10
    assert max(Prompts.from_texts(TEXTS, model(tok, 10), on_long="truncate").lengths) == 10


def test_chunks_make_no_difference(monkeypatch):
    whole = Prompts.from_texts(TEXTS * 3, byte_tokenizer())
    monkeypatch.setattr("tokinterp.text.tokenise.CHUNK_TEXTS", 2)
    assert Prompts.from_texts(TEXTS * 3, byte_tokenizer()).hash == whole.hash
    monkeypatch.setattr("tokinterp.text.tokenise.CHUNK_CHARS", 30)
    assert Prompts.from_texts(TEXTS * 3, byte_tokenizer()).hash == whole.hash


def test_what_a_tokenizer_returns_is_refused_with_the_way_out(bundled):
    tokens = bundled.tokenizer(["The Nile", "Paris"])
    with pytest.raises(ValueError, match=r"ids=a BatchEncoding: give its ids alone, without padding: .*input_ids"):
        Prompts.from_ids(tokens, bundled)
    with pytest.raises(ValueError, match=r"prompt 0 is no list of ids: give .*input_ids"):
        Prompts.from_ids([bundled.tokenizer("The Nile")], bundled)
    with pytest.raises(ValueError, match="input_ids"):
        Prompts.from_ids({"input_ids": [[1, 2]]})
    assert len(Prompts.from_ids(tokens["input_ids"], bundled)) == 2


def test_padding_is_no_text():
    for side in ("right", "left"):
        tok = copy.deepcopy(byte_tokenizer())
        tok.padding_side = side
        padded = tok(["the cat sat", "x"], padding=True)["input_ids"]
        with pytest.raises(ValueError, match=r"prompt 1 begins or ends with the padding token 1 .* without padding"):
            Prompts.from_ids(padded, tok)
    tok.pad_token = tok.bos_token  # a token that is also something else may stand anywhere
    assert Prompts.from_ids([[5, tok.bos_token_id]], tok).lengths == [2]
