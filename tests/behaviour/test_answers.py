"""What a model answers, against running each item by itself; how two predictions differ."""

import numpy as np
import pytest
import torch
from answering import ask, pad

import tokinterp as ti
from tokinterp.behaviour.answers import AnswerStates, differences
from tokinterp.behaviour.scoring import Answers
from tokinterp.kernels.divergence import compare
from tokinterp.text.items import build_items

PAIRS = [("Luanda is the capital and largest city of", " Angola"), ("The sky is", " blue"), ("One and one are", " two")]


@pytest.fixture(scope="module")
def items(bundled):
    return build_items(bundled, PAIRS, n_fillers=4)


@pytest.fixture(scope="module")
def run(bundled, items):
    ids = [a.tolist() for a in items.answers]
    asked = {"answers": Answers(ids), "end": AnswerStates([len(a) for a in ids])}
    return ti.measure(bundled, items.answered, asked, batch_tokens=20, progress=False)


def alone(bundled, items, i):
    """(answer token, vocab) log-probabilities of item i by itself, and the answer."""
    whole = torch.from_numpy(np.concatenate([items.ids[i], items.answers[i]]).astype(np.int64))[None]
    first = len(items.ids[i])
    with torch.no_grad():
        logits = bundled.lm(whole).logits[0, first - 1 : -1].float()
    return logits.log_softmax(-1), whole[0, first:]


def test_answers_are_teacher_forced_over_the_whole_answer(bundled, items, run):
    assert max(map(len, items.answers)) > 1
    for i in range(len(PAIRS)):
        logp, answer = alone(bundled, items, i)
        own = logp.gather(1, answer[:, None])[:, 0]
        one = run["answers"].isel(prompt=i)
        assert float(one["log_prob"]) == pytest.approx(float(own.sum()), abs=1e-3)
        assert bool(one["correct"]) == bool((logp.argmax(-1) == answer).all())
        assert int(one["rank"]) == int((logp[0] > own[0]).sum())


def test_states_are_those_from_which_the_answer_is_predicted(bundled, items, run):
    with torch.no_grad():
        found = bundled.unembed(torch.from_numpy(run["end"]["state"].values)).log_softmax(-1)
    for i in range(len(PAIRS)):
        torch.testing.assert_close(found[i], alone(bundled, items, i)[0][0], atol=1e-3, rtol=1e-3)


def test_marks_of_items_are_on_their_parts(items):
    prompts = items.answered
    for i, length in enumerate(prompts.lengths):
        own = {k: np.flatnonzero(v[prompts.starts[i] : prompts.starts[i + 1]]) for k, v in prompts.marks.items()}
        assert own["filler"].tolist() == list(range(*items.filler[i]))
        assert own["answer"].tolist() == list(range(len(items.ids[i]) - 1, length))


def test_items_under_conditions_are_those_by_hand(bundled, items):
    """One batch with masks made by hand, and named parts of a run."""
    batch = pad(items, [0, 1, 2])
    fillers = torch.from_numpy(items.positions([0, 1, 2], batch.ids.shape[1], "filler"))
    ids = [a.tolist() for a in items.answers]
    for named, masked in (
        (ti.edits.knock_out("filler", "answer"), ti.edits.knock_out(fillers, batch.answering)),
        (ti.edits.zero(ti.Site("resid", 2), "filler"), ti.edits.zero(ti.Site("resid", 2), fillers)),
    ):
        conditions = {"whole": ti.Condition(items.answered), "edited": ti.Condition(items.answered, [named])}
        found = ti.measure_conditions(bundled, conditions, {"a": Answers(ids)}, progress=False)["a"]["log_prob"]
        wanted = ask(bundled, batch, [masked]).log_prob
        np.testing.assert_allclose(found.sel(condition="edited"), wanted.numpy(), atol=1e-4)
        assert (abs(found.sel(condition="edited") - found.sel(condition="whole")) > 1e-3).any()


def test_equal_conditions_differ_by_nothing_at_all(bundled, items):
    ids = [a.tolist() for a in items.answers]
    conditions = {"one": ti.Condition(items.answered), "other": ti.Condition(items.answered)}
    run = ti.measure_conditions(bundled, conditions, {"a": Answers(ids)}, progress=False)
    same = ti.contrast(run["a"].to_dataset(), "one", minus="other")
    assert float(same["log_prob"]) == 0
    assert float(abs(same["log_prob_interval"]).max()) == 0


def test_differences_are_those_of_the_distributions(bundled, run):
    state = run["end"]["state"].values
    other, tokens = state[::-1].copy(), np.array([3, 5, 7])
    found = differences(bundled, state, other, tokens)
    with torch.no_grad():
        p, q = (bundled.unembed(torch.from_numpy(x)).log_softmax(-1) for x in (state, other))
    for name, wanted in compare(p, q).items():
        np.testing.assert_allclose(found[name], wanted.numpy(), atol=1e-4)
    np.testing.assert_allclose(found["log_prob"], [(p - q)[i, t].item() for i, t in enumerate(tokens)], atol=1e-4)
    nothing = differences(bundled, state, state)
    assert all((v == 0).all() for v in nothing.values())
    other[1] = np.nan
    assert np.isnan(differences(bundled, state, other)["kl"]).tolist() == [False, True, False]


@pytest.mark.parametrize(("sizes", "says"), [([1], "1 for 3 prompts"), ([99, 1, 1], "prompt 0 is shorter")])
def test_sizes_that_do_not_fit_are_refused(bundled, items, sizes, says):
    with pytest.raises(ValueError, match=says):
        ti.measure(bundled, items.answered, {"end": AnswerStates(sizes)}, progress=False)
