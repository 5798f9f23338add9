"""Answers to questions about characters: as the published code finds them, scores, baselines and decoding."""

import copy

import numpy as np
import pytest
import torch
from tiny import byte_tokenizer, some_prompts, tiny, tiny_lm

import tokinterp as ti
from tokinterp.behaviour import CuteItem, continuations, cute_items, cute_prompt, score_cute
from tokinterp.behaviour.cute import OPENING, answers, labelled, published_answer
from tokinterp.behaviour.cute import _asked as asked_of
from tokinterp.models.hooks import HookedLM

WORDS = ["the", "and", "river", "letter", "bold", "cold", "camp", "ramp", "sing", "king", "noon", "aa", "Nile"]
RELATED = {"bold": "brave", "camp": "tent", "king": "queen"}


def test_the_published_answer_is_quoted_behind_the_last_answer():
    assert published_answer('1. "x". Answer: "y"\n Answer: "a b c". And so on') == "a b c"
    assert published_answer('Answer: " a b " </s> Answer: "c"') == "c"
    assert published_answer('Answer: "a</s>"b"') == "a"
    assert published_answer("Answer: abc") == ""


def test_scores_and_baselines_are_those_of_a_loop():
    letters = (("a", "Yes"), ("x", "No"), ("t", "Yes"))
    items = [*(CuteItem("contains_char", (a, "cat"), b) for a, b in letters),
             CuteItem("ins_word", ("not", "Do", "Do it."), "Do not it."),
             *(CuteItem("sem", ("a", *p), "mm") for p in (("mm", "x"), ("mm", "y"), ("z", "mm")))]  # fmt: skip
    texts = ["Yes", "Yes", "No", "do NOT it.", "mm", "y", "mm"]
    ds = labelled(items, texts, np.ones(7, bool))
    assert ds["correct"].values.tolist() == [1, 0, 0, 1, 1, 0, 1]
    assert ds["accuracy"].sel(task="contains_char") == pytest.approx(1 / 3)
    assert ds["accuracy_guess"].sel(task="contains_char") == pytest.approx(1 / 2)
    assert ds["accuracy_null"].sel(task="contains_char") == pytest.approx(((2 * 2 + 1 * 1) - 1) / 6)
    places, right = [0, 1, 1], [0, 0, 1]
    assert ds["accuracy_null"].sel(task="sem") == pytest.approx(
        np.mean([places[a] == right[b] for a in range(3) for b in range(3) if a != b])
    )
    assert ds["accuracy_guess"].sel(task="sem") == pytest.approx(1 / 2)
    assert np.isnan(ds["accuracy_guess"].sel(task="ins_word"))
    assert ds["accuracy_copy"].values.tolist() == [0, 0, 0]
    low, high = ds["accuracy_interval"].sel(task="sem").values
    assert low < 2 / 3 < high
    gone = labelled(items, texts, np.arange(7) > 0)
    assert gone["n_items"].values.tolist() == [2, 1, 3]
    assert np.isnan(gone["correct"].values[0])


@pytest.mark.parametrize("batch_tokens", [30, 300])
def test_answers_end_where_they_should(batch_tokens):
    """Decoding in steps gives what decoding in one go does, up to the first token that ends an answer."""
    model, prompts = tiny(), some_prompts([5, 9, 4, 7])
    whole = continuations(model, prompts, 20)["generated"].values
    ended = torch.zeros(320, dtype=torch.bool)
    ended[whole[0, 3]] = ended[whole[1, 12]] = True
    for some in ([0, 1, 2, 3],) if batch_tokens > 100 else ([0], [1], [2, 3]):
        ids, mask, _ = map(torch.from_numpy, prompts.padded(some))
        found = answers(model, ids, mask, 20, ended).numpy()
        for i, row in zip(some, found, strict=True):
            stops = np.flatnonzero(ended.numpy()[whole[i]])
            stop = stops[0] + 1 if len(stops) else 20
            assert row[:stop].tolist() == whole[i, :stop].tolist()
            assert (row[stop:] == -1).all()


def long(tokenizer):
    """A model of the tiny family whose context holds the prompts."""
    return ti.wrap(tiny_lm("llama", max_position_embeddings=1024), tokenizer, id="long")


def test_a_run_reads_what_the_model_writes():
    model, items = long(byte_tokenizer()), cute_items(["spell", "orth"], WORDS, related=RELATED, n=2)
    ds = score_cute(model, items, n_tokens=5)
    ti.check(ds)
    ids = model.tokenizer(cute_prompt(items[0]) + OPENING)["input_ids"]
    made = continuations(model, ti.Prompts.from_ids([ids], model), 5)["generated"].values[0].tolist()
    stops = [n for n, i in enumerate(made) if i in (1, 2)]  # special tokens
    made = made[: stops[0] + 1] if stops else made
    assert str(ds["answer"].values[0]) == published_answer(model.tokenizer.decode([*ids, *made]))
    assert ds["task"].values.tolist() == ["spell", "orth"]
    assert ds.attrs["fingerprint"] != score_cute(model, items, n_tokens=5, corrected=True).attrs["fingerprint"]


def test_an_answer_that_ends_in_nan_is_not_a_wrong_one(monkeypatch):
    model, items, real, runs = long(byte_tokenizer()), cute_items(["spell"], WORDS, n=2), HookedLM.unembed, []

    def breaks(self, x):
        runs.append(1)
        return real(self, x) * (torch.nan if len(runs) == 2 else 1)  # the second token decoded

    monkeypatch.setattr(HookedLM, "unembed", breaks)
    ds = score_cute(model, items, n_tokens=4)
    assert np.isnan(ds["correct"]).all()
    assert ds["n_items"].values.tolist() == [0]
    assert np.isnan(ds["accuracy"]).all()


def test_a_second_bos_is_part_of_the_published_evaluation():
    tokenizer = copy.deepcopy(byte_tokenizer())
    tokenizer.chat_template = "<s>[{% for m in messages %}{{ m.content }}{% endfor %}]"
    items = [CuteItem("spell", ("the",), "t h e")]
    begin = [asked_of(long(tokenizer), items, corrected)[0][:3] for corrected in (False, True)]
    assert begin[0][:2] == [1, 1] != begin[1][:2]
    assert begin[1][0] == 1


def test_what_does_not_fit_is_refused():
    with pytest.raises(
        ValueError, match=r"n_tokens=100: the prompt of items\[0\] has \d+ tokens, and tiny-llama a context"
    ):
        score_cute(tiny(), cute_items(["spell"], WORDS, n=1))


def test_the_most_common_answer_is_not_its_own_evidence():
    """Of labels that all differ nothing can be guessed; of two answers half, whatever the few items say."""
    some = [CuteItem("spell", (w,), " ".join(w)) for w in ("the", "and", "for")]
    assert float(labelled(some, ["x"] * 3, np.ones(3, bool))["accuracy_guess"][0]) == 0
    yes = [CuteItem("contains_char", (c, "cat"), "Yes" if c in "cat" else "No") for c in "catcax"]
    assert float(labelled(yes, ["Yes"] * 6, np.ones(6, bool))["accuracy_guess"][0]) == pytest.approx(4 / 5)
    even = labelled(yes[-2:], ["Yes"] * 2, np.ones(2, bool))
    assert float(even["accuracy_guess"][0]) == 0.5
