"""Which ids text can become: planted tokens of every category, each kind of tokenizer, and the bundled one's counts."""

import numpy as np
import pytest
import transformers as tr
from tiny import byte_tokenizer, sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

import tokinterp as ti
from tokinterp.tokenizers import token_reachability


def fast(inner, **names):
    return tr.PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def byte_level(extra, merges=(), special=(), normalizer=None):
    """Byte-level BPE with further entries; those without merges cannot be made."""
    vocab = {c: n for n, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for entry in extra:
        vocab[entry] = len(vocab)
    inner = Tokenizer(models.BPE(vocab=vocab, merges=list(merges)))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    if normalizer is not None:
        inner.normalizer = normalizer
    inner.add_special_tokens(list(special))
    return fast(inner), vocab


def of(ds, i):
    return ds["reachability"].values[i], int(ds["n_reencoded"][i])


def test_planted_tokens_have_their_categories():
    tok, vocab = byte_level(
        ["ab", "xyz", "<pad>", "Ã©", "Ã©Ã"], merges=[("a", "b"), ("Ã", "©")], special=["<end>"],
        normalizer=normalizers.Replace("Q", "q"),
    )  # fmt: skip
    ds = token_reachability(tok)
    ti.check(ds)
    assert of(ds, vocab["ab"]) == ("ok", 1)
    assert of(ds, tok.convert_tokens_to_ids("<end>")) == ("ok_special", 1)
    assert of(ds, vocab["xyz"]) == ("unreachable_multi", 3)
    assert of(ds, vocab["Q"]) == ("unreachable_single", 1)
    assert of(ds, vocab["<pad>"]) == ("unreachable_special", 5)
    assert of(ds, vocab["Ã"]) == ("undecodable", -1)
    assert of(ds, vocab["Ã©Ã"]) == ("undecodable", -1)
    found = ds["n_ids"].to_series().to_dict()
    assert found["undecodable"] == 128 + 1
    assert found["ok"] == 128 - 1 + 2
    assert sum(found.values()) == ds.sizes["vocab"] == len(tok)
    counted = {c: int((ds["reachability"] == c).sum()) for c in found}
    assert counted == found


def test_the_bundled_tokenizer_has_the_known_counts():
    ds = token_reachability(ti.load_tokenizer(), size=4100)
    known = {"ok": 3960, "undecodable": 133, "ok_special": 3, "no_token": 4}
    assert {k: v for k, v in ds["n_ids"].to_series().to_dict().items() if v} == known
    assert ds["n_bytes"].values[-4:].tolist() == [0] * 4
    assert ds["n_reencoded"].values[-4:].tolist() == [-1] * 4
    assert ds.attrs["tokenizer"] == ti.text.Vocabulary(ti.load_tokenizer()).hash


@pytest.mark.parametrize("pieces", ["▁ « ▁« t ▁t", "▁ t ▁t", "▁ « ▁« t ▁t «t ▁«t"])
def test_a_space_before_the_text_hides_no_token(pieces):
    """With «, without it (several byte tokens), and where « merges with what follows."""
    pieces = pieces.split()
    tok, vocab = sentencepiece(pieces)
    ds = token_reachability(tok)
    for piece in pieces:
        assert of(ds, vocab[piece]) == ("ok", 1), piece
    assert of(ds, vocab["<0x74>"]) == ("unreachable_single", 1)  # the letter t has a token of its own
    assert of(ds, vocab["<0x75>"]) == ("ok", 1)
    assert of(ds, vocab["<0x80>"]) == ("undecodable", -1)


def test_pieces_of_words_are_asked_for_inside_words():
    vocab = {p: n for n, p in enumerate(["[UNK]", "x", "un", "##do", "##ing", "##Q", "[SEP]", "Up", "do", "##undo"])}
    inner = Tokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    ds = token_reachability(fast(inner, unk_token="[UNK]", sep_token="[SEP]"))
    found = {p: ds["reachability"].values[n] for p, n in vocab.items()}
    ok = {"x", "un", "##do", "##ing", "do", "##undo"}
    assert {p for p, c in found.items() if c == "ok"} == ok
    assert found["Up"].startswith("unreachable")
    assert found["##Q"].startswith("unreachable")
    assert found["[SEP]"] == found["[UNK]"] == "ok_special"


def test_slow_tokenizers_and_ids_without_tokens(tmp_path):
    slow = tr.ByT5Tokenizer(extra_ids=2)
    ds = token_reachability(slow)
    known = {"ok": 128, "undecodable": 128}
    found = ds["n_ids"].to_series().to_dict()
    assert {k: found[k] for k in known} == known
    gap = Tokenizer(models.WordLevel({"a": 0, "b": 4, "?": 1}, unk_token="?"))
    gap.pre_tokenizer = pre_tokenizers.Split(Regex(" "), "removed")
    ds = token_reachability(fast(gap, unk_token="?"), size=6)
    assert ds["reachability"].values.tolist() == ["ok", "ok_special", "no_token", "no_token", "ok", "no_token"]


def test_ids_that_some_token_is_encoded_as_are_the_reachable_ones():
    tok = byte_tokenizer()
    ds = token_reachability(tok)
    encoded = tok([t.replace("\\x00", "\0") for t in ds["token"].values], add_special_tokens=False)["input_ids"]
    made = {ids[0] for ids in encoded if len(ids) == 1}
    category = ds["reachability"].values
    assert made == set(np.flatnonzero(np.isin(category, ["ok", "ok_special"])).tolist())


def test_what_cannot_be_read_is_refused():
    with pytest.raises(ValueError, match=r"^size=10: the tokenizer has 4096 ids"):
        token_reachability(ti.load_tokenizer(), size=10)
    inner = Tokenizer(models.BPE(vocab={"a</w>": 0, "b</w>": 1, "a": 2, "b": 3}, merges=[]))
    with pytest.raises(ValueError, match=r"^tokenizer=\w+: its tokens mark ends of words \(</w>\)"):
        token_reachability(fast(inner))
