"""Exact bytes of real tokenizers: golden values of the bundled model, sums, strings, averages, draws, refusals."""

import numpy as np
import pytest
import torch
from tiny import VOCAB, byte_tokenizer, sentencepiece, tiny, tiny_lm

import tokinterp as ti
from tokinterp.tokenizers import byte_probabilities, next_bytes, sample_bytes
from tokinterp.tokenizers.bytes_reader import Reader

BUNDLED = ti.load_model()
ENDS = ["The city is the capital of the United Sta", "He was born in Lon", "The temper"]


@pytest.mark.slow
def test_the_bundled_model_gives_the_known_values():
    ds = next_bytes(BUNDLED, [*ENDS, "The city is the capital of the United States"])
    ti.check(ds)
    p, q = ds["prob"].values, ds["prob_naive"].values
    assert [chr(k) for k in p[:2].argmax(1)] == ["t", "d"]
    assert [chr(k) for k in q[:2].argmax(1)] == ["i", "a"]
    np.testing.assert_allclose(p[:2].max(1), [0.99981, 0.97470], atol=2e-5)
    np.testing.assert_allclose(q[:2].max(1), [0.41852, 0.41598], atol=2e-5)
    np.testing.assert_allclose(ds["total_variation"], [0.998, 0.959, 0.096, 0.0002], atol=5e-4)
    assert ds["n_covers"].values[:2].tolist() == [227, 17]
    assert float(ds["rejected"][2]) == pytest.approx(0.012172, abs=5e-6)
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-9)


def test_rejected_is_the_share_of_the_text_that_lies_on_what_is_no_encoding():
    """By hand, of every token; what counts all but whole characters, in parts of the rest, is 1.24 %."""
    (covers,) = Reader(BUNDLED).after_all(["The temper"])
    found, ((node, total, logp),) = covers.next(), covers.exact
    share = np.exp(logp + total - found.log_prob)
    pieces = ti.text.Vocabulary(BUNDLED.tokenizer).bytes(np.arange(len(logp)))
    kinds = {"wrong": 0.0, "part": 0.0, "end": 0.0}
    for i, p in enumerate(pieces):
        try:
            own = BUNDLED.tokenizer("The temper" + p.decode(), add_special_tokens=False)["input_ids"]
        except UnicodeDecodeError:
            kinds["part"] += share[i]
            continue
        kind = "end" if i in BUNDLED.tokenizer.all_special_ids else "wrong" if own != [*node.ids[1:], i] else ""
        if kind:
            kinds[kind] += share[i]
    assert kinds["wrong"] < found.rejected < kinds["wrong"] + kinds["part"]
    assert found.exact[256] == pytest.approx(kinds["end"])
    assert sum(kinds.values()) / (1 - sum(kinds.values())) == pytest.approx(0.0124, abs=5e-5)


@pytest.fixture(scope="module")
def along():
    return byte_probabilities(BUNDLED, ["born in Lon", "“é”"])


def test_along_a_text_bytes_add_up_to_the_text(along):
    ti.check(along)
    total = along["log_prob"].sum("place").values
    bits = -total / np.log(2) / along["n_bytes"].values
    np.testing.assert_allclose(along["bits_per_byte"], bits)
    more = (along["bits_per_byte_tokens"] - along["bits_per_byte"]).values  # one encoding of many
    assert more[0] > 0.1
    assert more[1] > -1e-9
    assert along["total_variation"].notnull().sum("place").values[0] == 11
    assert along["character"].values[1, :8].tolist() == ["“"] * 3 + ["é"] * 2 + ["”"] * 3
    inside = along["is_inside_token"].values[0, :11]
    ids = BUNDLED.tokenizer("born in Lon", add_special_tokens=False)["input_ids"]
    ends = np.cumsum([len(s) for s in BUNDLED.tokenizer.convert_ids_to_tokens(ids)])
    assert np.flatnonzero(~inside).tolist() == [0, *ends[:-1].tolist()]
    tv = along["total_variation"].values[0, :11]
    np.testing.assert_allclose(along["bias"].values[0], [tv[~inside].mean(), tv[inside].mean()])
    assert 0 < along.attrs["passes_per_byte"] <= 3
    assert along.attrs["cached"] == 1


def test_what_is_along_a_text_is_what_a_prompt_that_ends_there_gives(along):
    one = next_bytes(BUNDLED, ["born in"])
    for name in ("total_variation", "rejected", "n_covers"):
        assert float(one[name][0]) == pytest.approx(float(along[name][0, 7]), abs=1e-6)
    here = float(np.log(one["prob"][0, 32]) + np.log(1 - one["rejected"][0]))
    assert here == pytest.approx(float(along["log_prob"][0, 7]), abs=1e-4)
    assert float(np.log(one["prob_naive"][0, 32])) == pytest.approx(float(along["log_prob_naive"][0, 7]), abs=1e-4)


def test_the_probability_of_a_string_is_the_sum_over_all_its_encodings():
    """By hand, of two bytes: the whole vocabulary after BOS, and after the one encoding of the first byte."""
    model = tiny("llama")
    ds = byte_probabilities(model, ["in"])
    tok, v = model.tokenizer, ti.text.Vocabulary(model.tokenizer, VOCAB)
    pieces = v.bytes(np.arange(VOCAB))

    def after_ids(ids):
        site = ti.Site("resid", model.info.n_layers)
        return model.unembed(model.run(torch.tensor([ids]), [site])[site][0, -1]).double().softmax(-1).numpy()

    p = after_ids([1])
    special = set(v.special_ids.tolist()) | {tok.unk_token_id}
    text = {i: b for i, b in enumerate(pieces) if i < len(tok) and i not in special}
    first = sum(p[i] for i, b in text.items() if b.startswith(b"i"))
    i_alone = tok("i", add_special_tokens=False)["input_ids"][0]
    after = after_ids([1, i_alone])

    def fits(i, b):
        whole = tok((b"i" + b).decode(), add_special_tokens=False)["input_ids"]
        return whole == [i_alone, i]

    both = sum(p[i] for i, b in text.items() if b.startswith(b"in"))
    both += p[i_alone] * sum(after[i] for i, b in text.items() if b.startswith(b"n") and fits(i, b))
    np.testing.assert_allclose(ds["log_prob"][0], [np.log(first), np.log(both / first)], atol=1e-5)


def test_what_a_text_follows_is_read_and_not_counted(along):
    ds = byte_probabilities(BUNDLED, ["n Lon"], after=["born i"])
    np.testing.assert_allclose(ds["log_prob"][0], along["log_prob"][0, 6:11], atol=1e-5)
    assert ds["n_bytes"].values.tolist() == [5]
    inside = along["is_inside_token"].values[0, 6:11]
    assert inside[0], "within the token of in"
    assert ds["is_inside_token"].values[0].tolist() == inside.tolist()
    np.testing.assert_allclose(ds["bias"][0, 1], ds["total_variation"].values[0][inside].mean())
    other = byte_probabilities(BUNDLED, ["n Lon"], context=[0, 442, 1171])
    assert abs(float(other["log_prob"][0, 0]) - float(ds["log_prob"][0, 0])) > 0.1


@pytest.fixture(scope="module")
def pair():
    """Two models of different tokenizers: byte-level, and SentencePiece with a space before the text."""
    tok, _ = sentencepiece(["▁", "t", "a", "h", "e", "▁t", "▁a", "▁th", "▁the", "he"])
    tok.add_special_tokens({"bos_token": "<s>"})
    lm = tiny_lm("llama", seed=3, max_position_embeddings=128)
    return tiny("llama"), ti.wrap(lm, tok, id="pieces")


def test_two_models_of_different_tokenizers_are_averaged_byte_by_byte(pair):
    ds = next_bytes(pair, ["the hat"], weights=[1, 3])
    assert ds["model"].values.tolist() == ["tiny-llama", "pieces", "mean"]
    p = ds["prob"].values[:, 0]
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-9)
    np.testing.assert_allclose(p[2], 0.25 * p[0] + 0.75 * p[1])
    assert np.abs(p[0] - p[1]).max() > 0.01
    along = byte_probabilities(pair, ["the hat"], weights=[1, 3])
    ti.check(along)
    at = np.array([next_bytes(pair, ["the hat"[:n]], weights=[1, 3])["prob"].values[2, 0] for n in (3, 5)])
    want = np.log(at[[0, 1], [ord(" "), ord("a")]])
    np.testing.assert_allclose(along["log_prob"].values[2, 0, [3, 5]], want, atol=1e-6)
    drawn = sample_bytes(pair, ["the", "at"], 4, seed=1)
    assert (drawn["n_bytes"].values == 4).all() | drawn["ended"].values.any()


def test_before_the_first_byte_no_prompt_of_a_tokenizer_that_writes_a_space_ends(pair):
    """After BOS and a space alone, which no prompt is, models predict anything: no bias is told from it."""
    ds = byte_probabilities(pair[1], ["the hat", "hat"], after=["", "the "])
    at = ds["total_variation"].values
    assert np.isnan(at[0, 0])
    assert np.isnan(ds["log_prob_naive"].values[0, 0])
    assert np.isfinite(at[0, 1:]).all()
    assert np.isfinite(at[1, :3]).all()
    assert np.isfinite(ds["log_prob"].values[0]).all()


def test_draws_follow_the_distribution_and_their_log_probability_is_that_of_the_bytes():
    prompt = "born in L"
    ds = sample_bytes(BUNDLED, [prompt, "He was"], 3, temperature=0)
    ti.check(ds)
    assert ds["text"].values[0] == "ond"
    p = [next_bytes(BUNDLED, [prompt + "ond"[:n]])["prob"].values[0] for n in range(3)]
    assert [chr(x.argmax()) for x in p] == list("ond")
    assert float(ds["log_prob"][0]) == pytest.approx(sum(np.log(x.max()) for x in p), abs=1e-4)
    many = sample_bytes(BUNDLED, [prompt] * 200, 1, seed=0)
    share = float((many["text"] == "o").mean())
    assert share == pytest.approx(p[0][ord("o")], abs=0.12)
    assert sample_bytes(BUNDLED, [prompt] * 5, 2, seed=3).equals(sample_bytes(BUNDLED, [prompt] * 5, 2, seed=3))


def test_a_text_may_end():
    lm = tiny_lm("llama")
    lm.lm_head.weight.data[2] = 50 * lm.lm_head.weight.data[2]
    model = ti.wrap(lm, byte_tokenizer())
    ds = sample_bytes(model, ["a", "b", "c", "d", "e", "f"], 5, temperature=0)
    assert ds["ended"].values.any()
    assert (ds["n_bytes"].values[ds["ended"].values] < 5).all()


def test_a_model_of_more_rows_than_its_tokenizer_has_tokens_ends_no_text_with_them():
    """The tokenizer of the tiny models has fewer tokens than they have rows; only special ids are an end."""
    lm, tok = tiny_lm("llama", seed=4), byte_tokenizer()
    assert len(tok) < VOCAB
    before = next_bytes(ti.wrap(lm, tok), ["the riv"])
    rows = lm.lm_head.weight.data[len(tok) :]
    rows[:] = 50 * lm.lm_head.weight.data[5]
    rows[::2] *= -1  # whatever the state, half of them are likely
    other = next_bytes(ti.wrap(lm, tok), ["the riv"])
    assert float(other["rejected"][0]) > float(before["rejected"][0]) + 0.1
    for name in ("prob", "prob_naive"):
        assert float(other[name].sum()) == pytest.approx(1)
        assert float(other[name][0, 256]) < 3 / 256


def test_bad_input_is_refused():
    no_bos = ti.wrap(tiny_lm("llama"), byte_tokenizer())
    import copy

    no_bos.tokenizer = copy.deepcopy(byte_tokenizer())
    no_bos.tokenizer.bos_token = None
    with pytest.raises(ValueError, match=r"^context=None: .* has no BOS token: give the ids that texts follow"):
        next_bytes(no_bos, ["a"])
    with pytest.raises(ValueError, match=r"^texts\[1\]='': there is no byte to predict"):
        byte_probabilities(BUNDLED, ["a", ""])
    with pytest.raises(ValueError, match=r"^after=1: there are 2 texts"):
        byte_probabilities(BUNDLED, ["a", "b"], after=["c"])
    with pytest.raises(ValueError, match=r"^weights=\[1.0\]: give 2 of them"):
        next_bytes([BUNDLED, BUNDLED], ["a"], weights=[1])
    with pytest.raises(ValueError, match=r"^context=\[5000\]: give at least one id"):
        next_bytes(BUNDLED, ["a"], context=[5000])
    with pytest.raises(ValueError, match="it is 81 tokens, and tiny-llama has a context of 64: give less of it"):
        byte_probabilities(tiny("llama"), ["fine", "x" * 80])
    broken = tiny_lm("llama")
    model = ti.wrap(broken, byte_tokenizer())
    broken.lm_head.weight.data[5] = np.nan
    with pytest.raises(ValueError, match=r"gives NaN after a beginning of texts\[0\]"):
        byte_probabilities(model, ["a"])
