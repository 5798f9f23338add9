"""Which sequences of tokens are encodings: byte-level and SentencePiece tokenizers, inside characters, at borders."""

import pytest
import transformers
from tiny import byte_tokenizer, sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import tokinterp as ti
from tokinterp.tokenizers.bytes_tokens import ByteTokens, Spelling, completed

BUNDLED = ti.load_tokenizer()


def bundled():
    return ByteTokens.of(BUNDLED, len(BUNDLED))


def ids_of(text):
    return tuple(BUNDLED(text, add_special_tokens=False)["input_ids"])


def test_tokens_are_bytes_and_special_ones_are_no_text():
    t = bundled()
    assert t.pieces[0] == b""
    assert t.size[0] == 0
    assert t.table[0, 0] == -1
    (i,) = t.ids[b" the"]
    assert t.table[i, :5].tolist() == [*b" the", -1]
    assert t.spelled("The é") == "The é".encode()


def test_only_what_the_tokenizer_itself_gives_is_an_encoding():
    t = bundled()
    st, a, ates = ids_of(" St"), ids_of("a"), ids_of("ates")
    asked = [(st, a[0]), (st, ates[0]), ((), st[0]), (a, ids_of(" the")[0]), (a, ids_of("t")[0])]
    want = [ids_of(" Sta") == st + a, ids_of(" States") == st + ates, True, True, ids_of("at") == a + ids_of("t")]
    assert t.valid(asked).tolist() == want
    assert want[1:] == [False, True, True, False]


def test_tokens_that_end_inside_a_character_are_judged_by_what_may_follow():
    t = bundled()
    ids = ids_of("é“")
    pieces = [t.pieces[i] for i in ids]
    assert b"".join(pieces) == "é“".encode()
    before = ()
    for i in ids:
        assert t.valid([(before, i)])[0]
        before += (i,)
    lone = t.ids[b"\xff"][0]
    assert not t.valid([((), lone)])[0]
    assert completed(b"a\x80") == []
    assert all(c.decode().startswith("a") for c in completed(b"a\xf0\x9f"))


@pytest.mark.parametrize("text", ["The city of Lon", " two  spaces\n\nand lines", "“naïve” 日本語 🙂 ok"])
def test_the_spelling_that_grows_is_that_of_the_tokenizer(text):
    t = bundled()
    s, data = Spelling(t, (0,)), text.encode()
    for n, byte in enumerate(data, 1):
        made = s.push(byte)
        try:
            sofar = data[:n].decode()
        except UnicodeDecodeError:
            continue
        assert [m.ids for m in made] == [(0, *ids_of(sofar))], sofar
    assert s.base > 0
    assert s.held == 1 + len(ids_of(data[: s.base].decode()))


def test_line_breaks_before_a_word_are_other_tokens_than_at_the_end_of_a_text():
    """With the pre-tokenizer of GPT-2, whose white space is cut off before what follows it."""
    names = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ĊĊ"]
    inner = Tokenizer(models.BPE(vocab={t: n for n, t in enumerate(names)}, merges=[("Ċ", "Ċ")]))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tok = transformers.PreTrainedTokenizerFast(tokenizer_object=inner)
    t = ByteTokens.of(tok, len(tok))
    two, one, a, b = names.index("ĊĊ"), names.index("Ċ"), names.index("a"), names.index("b")
    spelling, text = Spelling(t), b"a\n\nb\n\n\nb"
    made = [[m.ids for m in spelling.push(byte)] for byte in text]
    assert made[2] == [(a, two), (a, one, one)]
    assert made[3] == [(a, one, one, b)]
    assert made[-1] == [(a, one, one, b, two, one, b)] == [tuple(tok(text.decode())["input_ids"])]


def test_a_border_is_where_no_token_reaches_over():
    t = bundled()
    assert t.border(b"the city", 3)
    assert not t.border(b"the city", 2)
    assert not t.border("é a".encode(), 1)


def test_sentencepiece_with_a_space_before_the_text_and_two_ways_to_write_a_byte():
    tok, vocab = sentencepiece(["▁", "t", "a", "▁t", "▁ta", "at"])
    t = ByteTokens.of(tok, len(tok))
    assert t.spaced
    assert t.spelled("ta") == b" ta"
    assert t.valid([((), vocab["▁ta"])])[0]
    assert not t.valid([((vocab["▁t"],), vocab["a"])])[0]
    assert not t.valid([((), vocab["<0x20>"])])[0]
    assert not t.valid([((vocab["▁"],), vocab["<0x74>"])])[0]
    assert t.valid([((vocab["▁"],), vocab["<0x75>"])])[0]
    spelling = Spelling(t)
    for byte in b" ta u":
        made = spelling.push(byte)
    assert [m.ids for m in made] == [(vocab["▁ta"], vocab["▁"], vocab["<0x75>"])]


def test_texts_and_tokenizers_that_spell_nothing_are_refused():
    with pytest.raises(ValueError, match=r"^text='a<bos>': its tokens do not spell it"):
        bundled().spelled("a<bos>")
    inner = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    inner.decoder = decoders.WordPiece()
    with pytest.raises(ValueError, match="WordPiece marks no spaces"):
        ByteTokens.of(transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]"), 3)
    assert ByteTokens.of(byte_tokenizer(), 320).size[3:].min() >= 0
