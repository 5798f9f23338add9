"""What a model answers, against running each item by itself; how two distributions differ."""

import numpy as np
import pytest
import torch

import tokinterp as ti
from tokinterp.behaviour.answers import ask, chunks, pad
from tokinterp.text.items import build_items


@pytest.fixture(scope="module")
def items(bundled):
    return build_items(bundled, ti.bundled_questions("cloze")[:7], n_fillers=4)


@torch.no_grad()
def test_answers_of_a_batch_are_those_of_each_item(bundled, items):
    rows = [5, 0, 3]
    batch = pad(items, rows)
    found = ask(bundled, batch)
    for i, r in enumerate(rows):
        whole = torch.from_numpy(np.concatenate([items.ids[r], items.answers[r]]).astype(np.int64))[None]
        first, n = len(items.ids[r]), len(items.answers[r])
        logits = bundled.lm(whole).logits[0, first - 1 : first - 1 + n].float().log_softmax(-1)
        own = logits.gather(1, whole[0, first:, None])[:, 0]
        assert float(found.log_prob[i]) == pytest.approx(float(own.sum()), abs=1e-3)
        assert bool(found.correct[i]) == bool((logits.argmax(-1) == whole[0, first:]).all())
        assert int(found.rank[i]) == int((logits[0] > own[0]).sum())
        assert int(batch.last[i]) == first - 1
        assert batch.answering[i].nonzero()[:, 0].tolist() == list(range(first - 1, first - 1 + n))


def test_batches_hold_every_item_once_and_no_more_tokens_than_asked_for(items):
    found = list(chunks(items, 100))
    assert sorted(r for rows in found for r in rows) == list(range(len(items.ids)))
    assert len(found) > 1
    for rows in found:
        longest = max(len(items.ids[r]) + len(items.answers[r]) for r in rows)
        assert len(rows) == 1 or len(rows) * longest <= 100


# -- answers --------------------------------------------------------------------------------------------------
def test_log_probability_is_teacher_forced_over_the_whole_answer(bundled):
    items = build_items(bundled, [("Luanda is the capital and largest city of", " Angola"), ("The sky is", " blue")])
    got = ask(bundled, pad(items, [0, 1]))
    for i in range(2):
        whole = torch.tensor(np.concatenate([items.ids[i], items.answers[i]]))[None]
        with torch.no_grad():
            logp = bundled.lm(whole).logits[0].log_softmax(-1)
        places = range(len(items.ids[i]) - 1, whole.shape[1] - 1)
        assert float(got.log_prob[i]) == pytest.approx(sum(float(logp[p, whole[0, p + 1]]) for p in places), abs=1e-4)
        assert bool(got.correct[i]) == all(int(logp[p].argmax()) == int(whole[0, p + 1]) for p in places)
        assert int(got.rank[i]) == int((logp[places[0]] > logp[places[0], whole[0, places[0] + 1]]).sum())
