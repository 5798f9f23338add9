"""Guided decoding: greedy as one candidate, the choice of a loop, controls, refusals."""

import numpy as np
import pytest
import torch
from tiny import byte_tokenizer, tiny_lm

import tokinterp as ti
from tokinterp.embeddings import concept_scores, guided_decoding
from tokinterp.run.decoding import decode, decode_guided

WORDS = {"water": [" river", " the"], "court": [" to"], "other": [" and"]}
TEXTS = ["the river", "to the king and", "in"]


@pytest.fixture(scope="module")
def model():
    return ti.wrap(tiny_lm("llama"), byte_tokenizer(), id="tiny")


def padded(model):
    prompts = ti.Prompts.from_texts(TEXTS, model, progress=False)
    ids, mask, _ = (torch.from_numpy(a) for a in prompts.padded(range(len(TEXTS))))
    return prompts, ids, mask


def test_one_candidate_is_greedy_decoding(model):
    _, ids, mask = padded(model)
    found = decode_guided(model, ids, mask, 4, 1, lambda x, mask: x[:, 0, 0])
    greedy = decode(model, ids, mask, 4)
    assert found.ids.tolist() == greedy.ids.tolist()
    torch.testing.assert_close(found.logprob, greedy.logprob)


def test_the_token_is_the_candidate_whose_text_scores_best_as_in_a_loop(model):
    prompts, ids, mask = padded(model)
    along = torch.randn(32, generator=torch.Generator().manual_seed(3))

    def score(x, mask):
        return (x @ along * mask).sum(1)

    found = decode_guided(model, ids, mask, 3, 4, score)
    last = ti.Site("resid", model.info.n_layers)
    for n in range(len(TEXTS)):
        text = prompts.ids(n).tolist()
        for step in range(3):
            logits = model.unembed(model.run(torch.tensor([text]), [last])[last][0, -1]).log_softmax(-1)
            tried = logits.topk(4).indices.tolist()
            scores = [float((model.normed(model.run(torch.tensor([[*text, t]]), [last])[last])[0] @ along).sum())
                      for t in tried]  # fmt: skip
            best = tried[int(np.argmax(scores))]
            assert int(found.ids[n, step]) == best
            assert float(found.logprob[n, step]) == pytest.approx(float(logits[best]), abs=1e-4)
            text.append(best)
        states = model.normed(model.run(torch.tensor([text]), [last])[last])[0]
        torch.testing.assert_close(found.states[n, : len(text)], states, rtol=1e-4, atol=1e-4)


def test_the_guide_gains_more_than_its_controls_and_costs_likelihood(model):
    texts = [f"{a} {b}" for a in ("the river", "to", "and in", "sing") for b in ("to the", "king", "x")]
    ds = guided_decoding(model, texts, WORDS, "water", n_tokens=6, k=8)
    gain, cost = ds["gain"].values, ds["cost"].values
    assert gain[0] == cost[0] == 0
    assert gain[1] > max(gain[2], gain[3]), ds["gain"]
    assert ds["gain_interval"][0, 1] > 0
    assert cost[1] > 0
    greedy = decode(model, *padded_of(model, texts), 6)
    assert ds["token"].sel(guide="greedy").values.tolist() == greedy.ids.tolist()
    assert ds.attrs["other"] == "court"


def padded_of(model, texts):
    prompts = ti.Prompts.from_texts(texts, model, progress=False)
    return [torch.from_numpy(a) for a in prompts.padded(range(len(texts)))[:2]]


def test_scores_are_the_mean_projection_of_what_is_decoded(model):
    ds = guided_decoding(model, TEXTS, WORDS, "water", n_tokens=3, k=2)
    prompts = ti.Prompts.from_texts(TEXTS, model, progress=False)
    ids = concept_scores.concept_ids(model.tokenizer, WORDS, 3)
    frame = concept_scores.concept_frames(model, ids).frames[:1]
    last = ti.Site("resid", model.info.n_layers)
    for g in range(4):
        for n in range(len(TEXTS)):
            whole = [*prompts.ids(n).tolist(), *ds["token"].values[g, n].tolist()]
            x = model.normed(model.run(torch.tensor([whole]), [last])[last])
            keep = torch.arange(len(whole))[None] >= len(whole) - 3
            value = concept_scores.project(x, keep, frame)[0, -3:, 0].mean()
            assert float(ds["score"][g, n]) == pytest.approx(float(value), abs=1e-4)
    assert ds["text"].values[0, 0] == "".join(prompts.vocabulary.strings(ds["token"].values[0, 0]))


def test_away_from_a_concept_is_along_the_difference(model):
    one = guided_decoding(model, TEXTS, WORDS, "water", minus="court", n_tokens=2, k=3)
    assert one.attrs["other"] == "other"
    two = {"water": WORDS["water"], "court": WORDS["court"]}
    assert guided_decoding(model, TEXTS, two, "water", minus="court", n_tokens=1).attrs["other"] == "court"
    plain = guided_decoding(model, TEXTS, WORDS, "water", n_tokens=2, k=3)
    assert not np.allclose(one["score"], plain["score"])


def test_what_does_not_fit_is_refused(model):
    for given, message in (
        ({"guide": "fire"}, "guide='fire': give one of the concepts water, court, other"),
        ({"minus": "fire"}, "pairs: 'fire' is none of the concepts"),
        ({"n_tokens": 63}, "n_tokens=63: the longest prompt has"),
        ({"k": 400}, "k=400: tiny has 320 tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            guided_decoding(model, **{"prompts": TEXTS, "concepts": WORDS, "guide": "water", **given})
