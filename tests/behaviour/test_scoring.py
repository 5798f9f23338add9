"""Answers teacher forced: log-probability, rank and logit difference against one prompt at a time."""

import pytest
import torch
from tiny import byte_tokenizer, some_prompts, tiny, tiny_lm

import tokinterp as ti
from tokinterp.behaviour import Answers

PROMPTS = some_prompts([5, 9, 4, 7])
ANSWERS = [[*PROMPTS.ids(i)[len(PROMPTS.ids(i)) - k :].tolist(), 40 + i] for i, k in enumerate((0, 2, 1, 0))]
OTHERS = [[50], [60, 61], [70], [80]]


@torch.no_grad()
def logits(i):
    ids, last = torch.tensor(PROMPTS.ids(i))[None], ti.Site("resid", 3)
    return tiny().unembed(tiny().run(ids, [last])[last][0])


@pytest.mark.parametrize("batch_tokens", [9, 100])
def test_answers_are_scored_as_in_a_loop(batch_tokens):
    asked = {"answers": Answers(ANSWERS, OTHERS)}
    ds = ti.measure(tiny(), PROMPTS, asked, progress=False, batch_tokens=batch_tokens)["answers"]
    for i, answer in enumerate(ANSWERS):
        own = logits(i)[-len(answer) :]
        logp = own.double().log_softmax(-1)
        each = [float(logp[t, token]) for t, token in enumerate(answer)]
        assert float(ds["log_prob"][i]) == pytest.approx(sum(each), abs=1e-4)
        assert int(ds["rank"][i]) == int((own[0] > own[0, answer[0]]).sum())
        assert bool(ds["correct"][i]) == (own.argmax(-1).tolist() == answer)
        gap = float(own[0, answer[0]] - own[0, OTHERS[i][0]])
        assert float(ds["logit_difference"][i]) == pytest.approx(gap, abs=1e-4)
    best = [[int(logits(i)[-1].argmax())] for i in range(4)]
    ds = ti.measure(tiny(), PROMPTS, {"answers": Answers(best)}, progress=False)["answers"]
    assert ds["correct"].values.tolist() == [1, 1, 1, 1]
    assert ds["rank"].values.tolist() == [0, 0, 0, 0]
    assert "logit_difference" not in ds
    mixed = [best[0], ANSWERS[1], *best[2:]]  # answers of several lengths in one batch
    ds = ti.measure(tiny(), PROMPTS, {"answers": Answers(mixed)}, progress=False)["answers"]
    assert ds["correct"].values[[0, 2, 3]].tolist() == [1, 1, 1]


def test_a_tie_is_a_part_of_a_right_answer():
    """Of tokens with one unembedding row all are as probable: drawing one of them is right once in so many times."""
    lm = tiny_lm()
    model = ti.wrap(lm, byte_tokenizer(), id="tied")
    prompt = [1, 20, 30]
    with torch.no_grad():
        first = lm(torch.tensor([prompt])).logits[0, -1]
        best, lower = int(first.argmax()), int(first.argmin())
        twins = [t for t in (7, 8, 9) if t not in (best, lower)][:2]
        lm.lm_head.weight[twins] = lm.lm_head.weight[best].clone()
        following = int(lm(torch.tensor([[*prompt, best]])).logits[0, -1].argmax())
    prompts = ti.Prompts.from_ids([prompt, prompt, prompt, [*prompt, best]], model)
    answers = [[best], [twins[0]], [lower], [best, following]]
    ds = ti.measure(model, prompts, {"answers": Answers(answers)}, progress=False)["answers"]
    again = 3 if following in (best, *twins) else 1
    assert ds["correct"].values == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3 / again])
    assert ds["ties"].values.tolist() == [2, 2, 0, 2]
    assert ds["rank"].values[:2].tolist() == [0, 0]


def test_answers_that_do_not_fit_are_refused_before_the_run():
    for answers, message in (
        (ANSWERS[:3], "answers: 3 for 4 prompts: give one for each"),
        ([*ANSWERS[:3], []], r"answers: that of prompt 3 is \[\]"),
        ([*ANSWERS[:3], [400]], r"answers: that of prompt 3 is \[400\]: give token ids below 320"),
        ([*ANSWERS[:3], [3, 5]], r"answers: that of prompt 3 is \[3, 5\], but the prompt ends with"),
        ([*ANSWERS[:2], list(range(9)), ANSWERS[3]], "answers: that of prompt 2 is"),
    ):
        with pytest.raises(ValueError, match=message):
            ti.measure(tiny(), PROMPTS, {"answers": Answers(answers)}, progress=False)


def test_answers_of_logits_that_are_not_numbers_are_neither_right_nor_wrong():
    lm = tiny_lm()
    model = ti.wrap(lm, byte_tokenizer(), id="broken")
    lm.lm_head.weight.data[7] = torch.nan
    ds = ti.measure(model, PROMPTS, {"answers": Answers(ANSWERS)}, progress=False)["answers"]
    assert ds["correct"].isnull().all()
    assert ds["log_prob"].isnull().all()
    assert (ds["rank"] == -1).all()
