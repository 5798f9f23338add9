"""Scores of texts along concepts: a loop over places, theorems, controls, refusals."""

import numpy as np
import pytest
import torch
from tiny import byte_tokenizer, tiny_lm

import tokinterp as ti
from tokinterp.embeddings import ConceptScores, concept_scores, whitened_unembedding

WORDS = {"water": [" river", " rive"], "court": ["king", "ring", "sing"], "one": [" the"]}
TEXTS = ["the river and the king", "to the sea", "in"]


@pytest.fixture(scope="module")
def model():
    return ti.wrap(tiny_lm("llama"), byte_tokenizer(), id="tiny")


def measure(model, **given):
    asked = {"it": ConceptScores(**{"concepts": WORDS, "max_tokens": 8, **given})}
    return ti.measure(model, TEXTS, asked, progress=False)["it"].to_dataset()


def test_values_are_those_of_a_loop_over_places(model):
    pairs = [("water", "court")]
    ds = measure(model, pairs=pairs, tokens=None)
    prompts = ti.Prompts.from_texts(TEXTS, model, progress=False)
    ids = concept_scores.concept_ids(model.tokenizer, WORDS, 8)
    found = concept_scores.concept_frames(model, ids, pairs)
    frames = found.frames.numpy()
    assert found.names == ["water", "court", "one", "water - court"]
    at = 0
    for n in range(len(TEXTS)):
        own = torch.from_numpy(prompts.ids(n)).long()[None]
        sites = ti.resid(range(4))
        stream = model.run(own, sites)
        for layer, site in enumerate(sites):
            x = model.normed(stream[site])[0].double().numpy()
            x[0] = 0  # BOS
            total = np.zeros(4)
            for t in range(1, len(x)):
                for c in range(4):
                    k = int((np.linalg.norm(frames[c], axis=1) > 0.5).sum())
                    columns = x[t : t + k]
                    value = (columns * frames[c, : len(columns)]).sum() / np.sqrt(len(columns) * k)
                    total[c] += value
                    row = at + t
                    assert float(ds["token_projection"][row, layer, c]) == pytest.approx(value, abs=2e-5)
                    assert float(ds["token_score"][row, layer, c]) == pytest.approx(total[c], abs=1e-4)
            np.testing.assert_allclose(ds["score"][n, layer], total / (len(x) - 1), atol=2e-5)
            a, b, c, _ = total / (len(x) - 1)
            others = [(b + c) / 2, (a + c) / 2, (a + b) / 2, c]  # a difference is none of its parts' others
            np.testing.assert_allclose(ds["score_other"][n, layer], others, atol=2e-5)
        at += len(own[0])


def test_frames_are_those_nearest_to_sums_and_differences(model):
    ids = concept_scores.concept_ids(model.tokenizer, WORDS, 8)
    found = concept_scores.concept_frames(model, ids, [("court", "one")])
    rows = whitened_unembedding(model).rows
    for frame, k in zip(found.frames, found.columns.tolist(), strict=True):
        torch.testing.assert_close(frame[:k] @ frame[:k].T, torch.eye(k).double())
        assert not frame[k:].any()
    one = rows[ids["one"][0][0]]
    torch.testing.assert_close(found.frames[2, 0], one / one.norm())
    between = found.frames[1] - found.frames[2]
    near, far = (float((f * between).sum()) for f in (found.frames[3], found.frames[1]))
    assert near >= far - 1e-9, "no orthonormal frame is nearer to the difference"
    eye = found.random @ found.random.mT
    torch.testing.assert_close(eye, torch.eye(found.random.shape[1]).double().expand_as(eye))
    assert len(found.random) == concept_scores.RANDOM


def test_a_difference_has_no_others_without_a_third_concept_and_no_part_in_theirs(model):
    two = {n: WORDS[n] for n in ("water", "court")}
    ds = measure(model, concepts=two, pairs=[("water", "court")])
    plain = measure(model, concepts=two)
    np.testing.assert_allclose(ds["score_other"][..., :2], plain["score_other"])
    assert ds["score_other"][..., 2].isnull().all()
    assert measure(model, concepts={"one": WORDS["one"]})["score_other"].isnull().all()


def test_a_word_of_one_token_over_and_over_has_as_many_columns(model):
    found = concept_scores.concept_frames(model, {"la": [[40] * 6], "one": [[40]]})
    assert found.columns.tolist() == [6, 1]
    x = torch.zeros(1, 6, 32, dtype=torch.float64)
    x[0] = found.frames[0]
    keep = torch.ones(1, 6, dtype=torch.bool)
    assert float(concept_scores.project(x, keep, found.frames)[0, 0, 0]) == pytest.approx(1 / 6), "tr(C'C) / 6"


def test_states_along_a_frame_score_most_on_it_and_above_random_frames(model):
    ids = concept_scores.concept_ids(model.tokenizer, WORDS, 8)
    found = concept_scores.concept_frames(model, ids)
    k = int(found.columns[1])
    x = torch.zeros(1, 3 * k, 32, dtype=torch.float64)
    x[0, k : 2 * k] = 5 * found.frames[1, :k]
    keep = torch.ones(1, 3 * k, dtype=torch.bool)
    score = concept_scores.project(x, keep, found.frames)
    assert int(score[0, :, 1].argmax()) == k
    assert float(score[0, k, 1]) == pytest.approx(5.0), "5 tr(C'C) / sqrt(k k)"
    assert float(score[0, k, 1]) > float(concept_scores.project(x, keep, found.random[:, :k])[0].max())
    keep[0, k] = False
    assert float(concept_scores.project(x, keep, found.frames)[0, k, 1]) < 5


def test_random_frames_are_chance_for_random_states():
    lm = tiny_lm("llama")
    model = ti.wrap(lm, byte_tokenizer(), id="r")
    ids = {str(n): [[n]] for n in range(20, 60)}
    found = concept_scores.concept_frames(model, ids)
    x = torch.randn(6, 1, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    keep = torch.ones(6, 1, dtype=torch.bool)
    own = concept_scores.project(x, keep, found.frames)[:, 0]
    random = concept_scores.project(x, keep, found.random[:, :1])[:, 0]
    assert float((own[:, :, None] > random[:, None]).double().mean()) == pytest.approx(0.5, abs=0.08)


def test_special_tokens_take_part_only_where_asked(model):
    ds, whole = measure(model), measure(model, exclude=())
    assert (whole["n_tokens"] == ds["n_tokens"] + 1).all()
    assert not np.allclose(ds["score"], whole["score"])
    assert ((ds["above_random"] >= 0) & (ds["above_random"] <= 1)).all()
    assert len(np.unique(ds["above_random"])) > 3


def test_frames_are_those_of_the_model_as_it_is_in_each_run():
    lm = tiny_lm("llama")
    model, asked = ti.wrap(lm, byte_tokenizer(), id="m"), {"it": ConceptScores(WORDS, max_tokens=8)}
    one = ti.measure(model, TEXTS, asked, progress=False)["it"].to_dataset()
    with torch.no_grad():
        lm.get_output_embeddings().weight[:] = lm.get_output_embeddings().weight.flip(0)
    two = ti.measure(model, TEXTS, asked, progress=False)["it"].to_dataset()
    assert not np.allclose(one["score"], two["score"])


def test_what_does_not_fit_is_refused(model):
    for given, message in (
        ({"pairs": [("water", "fire")]}, "pairs: 'fire' is none of the concepts water, court, one"),
        ({"pairs": [("one", "one")]}, "pairs: 'one' less itself is nothing"),
        ({"max_tokens": 1}, r"concepts\['court'\]: it has no word of at most 1 tokens"),
        ({"concepts": {}}, "concepts"),
    ):
        with pytest.raises(ValueError, match=message):
            measure(model, **given)
