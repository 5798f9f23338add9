"""Heads taken away: what they still see, scores by a loop, the control's heads, lists of words."""

import numpy as np
import pytest
from tiny import tiny

import tokinterp as ti
from tokinterp.attention.heads.head_ablation import _others, head_ablation, without_heads, word_lists

S = ti.Site
WORDS = ["river", "king", "sea", "ring"]


def tasks(model=None):
    made = model or tiny()
    pairs = {"copying": [(w, w) for w in WORDS], "capitals": [(w, w.upper()) for w in WORDS]}
    return {name: word_lists(made, p, ("A", "B"), length=2, n=3) for name, p in pairs.items()}


def test_heads_without_anything_to_see_write_their_value_of_the_first_position():
    model = tiny()
    (prompts, _), sites = tasks()["copying"], [S("pattern", 1), S("value", 1)]
    batch = ti.capture(model, prompts, [0], sites, without_heads([(1, 2), (2, 0), (1, 0)]))
    pattern = batch.activations[S("pattern", 1)][0]
    assert float(pattern[[0, 2], :, 0].min()) == 1
    assert float(pattern[[1, 3], -1, 0].max()) < 0.9


def test_scores_are_those_of_a_loop_over_edits():
    model, made = tiny(), tasks()
    heads = [(2, 1), (0, 3), (1, 1)]
    ds = head_ablation(model, made, heads, counts=[1, 3], draws=2, seed=5)
    ti.check(ds)
    every = [(b, h) for b in range(3) for h in range(4)]
    for t, (prompts, answers) in enumerate(made.values()):

        def scores(edits, prompts=prompts, answers=answers):
            out = []
            for i, (goal,) in enumerate(answers):
                last = ti.capture(model, prompts, [i], [S("resid", 3)], edits).resid(3)[0, -1]
                logp = model.unembed(last).double().log_softmax(-1)
                out.append([float(logp[goal]), float(logp.argmax() == goal)])
            return np.mean(out, 0)

        for n, k in enumerate([0, 1, 3]):
            ranked = scores(without_heads(heads[:k]) if k else [])
            others = [_others(heads[:k], every, np.random.default_rng([5, k, d])) for d in (0, 1)]
            random = np.mean([scores(without_heads(o)) for o in others], 0) if k else ranked
            got = ds.isel(task=t, n_heads=n)
            np.testing.assert_allclose(got["log_prob"], [ranked[0], random[0]], rtol=1e-4)
            np.testing.assert_allclose(got["accuracy"], [ranked[1], random[1]])
    low, high = ds["log_prob_interval"].values
    assert (np.isnan(low) | (low <= ds["log_prob"].values)).all()
    assert (np.isnan(high) | (ds["log_prob"].values <= high)).all()


def test_the_control_takes_other_heads_of_the_same_blocks():
    every = [(b, h) for b in range(3) for h in range(4)]
    for seed in range(20):
        taken = [(1, 0), (1, 3), (2, 2)]
        other = _others(taken, every, np.random.default_rng(seed))
        assert len({*other}) == 3
        assert not {*other} & {*taken}
        assert sorted(b for b, _ in other) == [1, 1, 2]
    whole_block = [(1, h) for h in range(4)]
    other = _others(whole_block, every, np.random.default_rng(0))
    assert len({*other}) == 4
    assert not {*other} & {*whole_block}
    assert sorted(_others(every, every, np.random.default_rng(0))) == every


def test_lists_ask_for_the_pair_in_turn_with_its_first_token():
    prompts, answers = tasks()["capitals"]
    tokenizer = tiny().tokenizer
    for i in range(3):
        lines = prompts.text(i).removeprefix("<s>").split("\n")
        assert (lines[0], lines[3], lines[-1]) == ("A:", "B:", "2.")
        assert lines[2] == f"2. {WORDS[i]}"
        assert lines[1] != lines[2]
        assert lines[4] == lines[1].upper()
        assert answers[i] == tokenizer(f" {WORDS[i].upper()}", add_special_tokens=False)["input_ids"][:1]


def test_what_cannot_be_taken_away_or_asked_is_refused():
    made = tasks()
    with pytest.raises(ValueError, match=r"heads=\[\(3, 0\)\]: tiny-llama has blocks 0 to 2 of heads 0 to 3"):
        head_ablation(tiny(), made, [(3, 0)], counts=[1])
    with pytest.raises(ValueError, match="give each at most once"):
        head_ablation(tiny(), made, [(1, 0), (1, 0)], counts=[1])
    with pytest.raises(ValueError, match=r"counts=8: 1 heads are given"):
        head_ablation(tiny(), made, [(1, 0)])
    with pytest.raises(ValueError, match=r"tasks\['x'\]: 1 answers for 3 prompts"):
        head_ablation(tiny(), {"x": (made["copying"][0], [[5]])}, [(1, 0)], counts=[1])
    with pytest.raises(ValueError, match=r"length=9: there are 4 pairs"):
        word_lists(tiny(), [(w, w) for w in WORDS], length=9)
