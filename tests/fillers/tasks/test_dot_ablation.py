"""Dots hidden, replaced and put back: exact identities and changes made by hand."""

import numpy as np
import pytest
import torch

import tokinterp as ti
from tokinterp.fillers.tasks import match3
from tokinterp.fillers.tasks.dot_ablation import INTERVENTIONS, SEED, ablate_dots
from tokinterp.fillers.tasks.network import Network, as_model, build
from tokinterp.fillers.tasks.task import Task
from tokinterp.run import edits as E

TASK = Task(n=4, d=2, m=3)


SLOTS = 12


@pytest.fixture(scope="module")
def lm():
    net = build(TASK, Network(2, 32, 2, 64), 0)
    with torch.no_grad():  # weights of size .02 make attention uniform and all answers alike
        for p in net.parameters():
            if p.ndim == 2:
                p *= 6
    return net


@pytest.fixture(scope="module")
def changed(lm):
    return ablate_dots({"net": lm}, TASK, prompts=40, random_trunk=True)


# -- interventions --------------------------------------------------------------------------------------------
def test_hiding_all_fillers_is_leaving_them_out(changed):
    by = changed["logit_change"].sel(trunk="net")
    for hidden, gone in (("knock-out", "deletion, places kept"), ("knock-out, places closed", "deletion")):
        np.testing.assert_allclose(by.sel(intervention=hidden), by.sel(intervention=gone), atol=2e-4)
    assert float(abs(by.sel(intervention="knock-out")).mean()) > 0.01
    # Places matter, so that the two pairs are different interventions.
    apart = by.sel(intervention="knock-out") - by.sel(intervention="knock-out, places closed")
    assert float(abs(apart).max()) > 1e-3
    assert (by.sel(intervention="none") == 0).all()
    assert [str(i) for i in changed["intervention"].values[-2:]] == ["knock-out, block 0", "knock-out, block 1"]


def test_the_whole_network_answers_as_it_does_without_us(lm, changed):
    test = TASK.test_set("filler", 40, SEED)
    with torch.no_grad():
        logits = lm(input_ids=test.sequences.ids).logits[torch.arange(40), test.sequences.answer_at]
    true, false = logits[:, TASK.words.true], logits[:, TASK.words.false]
    right = (true > false) == (test.answer == TASK.words.true)
    one = changed.sel(trunk="net", intervention="none")
    assert one["correct"].values.astype(bool).tolist() == right.tolist()
    best = logits.argmax(-1)
    said = (best == TASK.words.true) | (best == TASK.words.false)
    assert one["answered"].values.astype(bool).tolist() == said.tolist()


def test_interventions_are_those_made_by_hand(lm, changed):
    """Prompt by prompt: what is hidden from whom, in which blocks, and what is put where at which layers."""
    model, test = as_model(lm, TASK), TASK.test_set("filler", 40, SEED)
    ids, streams, last = test.sequences.ids[:, :-1], ti.resid([0, 1]), ti.Site("resid", 2)
    dots, cue, true = list(range(5, 5 + TASK.n_fillers)), 5 + TASK.n_fillers, TASK.words.true
    with torch.no_grad():
        seen = model.run(ids, streams)

    def margin(e, edits):
        with torch.no_grad():
            out = model.unembed(model.run(ids[e : e + 1], [last], edits=edits)[last][0, -1]).double()
        return float(out[true] - out[TASK.words.false]) * (1 if test.answer[e] == true else -1)

    for e in (0, 16, 39):
        other = {s: seen[s][(e + 1) % 40] for s in streams}
        by_hand = {
            "knock-out": [E.knock_out(dots, [cue])],
            "knock-out, block 0": [E.knock_out(dots, [cue], blocks=[0])],
            "knock-out, block 1": [E.knock_out(dots, [cue], blocks=[1])],
            "rows hidden from the answer": [E.knock_out(range(4), [cue])],
            "rows hidden from the fillers": [E.knock_out(range(4), dots)],
            "mean ablation": [E.replace(s, seen[s].mean(0), dots) for s in streams],
            "zero ablation": [E.zero(s, dots) for s in streams],
            "resample ablation": [E.replace(s, other[s], dots) for s in streams],
        }  # fmt: skip
        one, whole = changed.sel(trunk="net").isel(prompt=e), margin(e, [])
        for name, edits in by_hand.items():
            got = float(one["logit_change"].sel(intervention=name))
            assert got == pytest.approx(margin(e, edits) - whole, abs=1e-4), (name, e)
            assert abs(got) > 1e-3, name
        for slot in (0, 3, len(dots) - 1):
            edits = [E.replace(s, seen[s].mean(0), [dots[slot]]) for s in streams]
            assert float(one["slot_change"][slot]) == pytest.approx(margin(e, edits) - whole, abs=1e-4), slot
    share = float((test.answer == true).double().mean())
    assert float(changed["majority"]) == max(share, 1 - share)
    assert changed["true"].values.astype(bool).tolist() == (test.answer == true).tolist()


def test_the_random_trunk_is_an_untrained_network_of_its_own(changed):
    own = ablate_dots({"own": build(TASK, Network(2, 32, 2, 64), 10_000)}, TASK, prompts=40)
    for name in ("logit_change", "slot_change", "correct", "answered"):
        np.testing.assert_array_equal(changed[name].sel(trunk="random"), own[name].sel(trunk="own"))
    assert not np.allclose(*(changed["logit_change"].sel(trunk=t) for t in ("net", "random")), atol=1e-3)


def test_ablations_that_put_back_what_was_there_change_nothing(lm, monkeypatch):
    """One prompt twice: its mean over prompts and the fillers of the other prompt are its own."""
    twice = TASK.test_set("filler", 1, 5)
    same = type(twice)(
        type(twice.sequences)(*(torch.cat([t, t]) for t in twice.sequences)),
        *(torch.cat([getattr(twice, k)] * 2) for k in ("answer", "rows", "stratum")),
    )
    monkeypatch.setattr(Task, "test_set", lambda *_: same)
    ds = ablate_dots({"net": lm}, TASK, prompts=2, single=["slots"])
    change = ds["logit_change"].sel(trunk="net")
    for name in ("mean ablation", "resample ablation"):
        np.testing.assert_allclose(change.sel(intervention=name), 0, atol=1e-4)
    np.testing.assert_allclose(ds["slot_change"], 0, atol=1e-4)
    assert float(abs(change.sel(intervention="zero ablation")).max()) > 1e-2


def test_mean_ablation_leaves_nothing_of_the_prompt_in_the_fillers(lm):
    """With the rows hidden from the answer as well, all prompts would be answered alike."""
    from tokinterp.fillers.tasks.dot_ablation import _Bench
    from tokinterp.run.edits import knock_out, replace

    bench = _Bench(as_model(lm, TASK), TASK, TASK.test_set("filler", 6))
    edits = [replace(s, v, bench.fillers) for s, v in bench.means.items()]
    edits.append(knock_out([*range(TASK.n + 1)], [bench.cue]))
    last = ti.capture(bench.model, bench.prompts, range(6), ti.resid([2]), edits).resid(2)[:, -1]
    torch.testing.assert_close(last, last[:1].expand_as(last), atol=1e-5, rtol=1e-4)


def test_slots_are_marked_by_their_pairs(changed):
    test = TASK.test_set("filler", 40, SEED)
    partner = match3.partner(test.rows, 3)
    marked = changed["slot_match"].values
    for slot in range(TASK.n_fillers):
        if slot < SLOTS:
            assert marked[:, slot].tolist() == (partner[:, slot // 2] >= 0).tolist()
        else:
            assert np.isnan(marked[:, slot]).all()  # stands for no pair
    assert changed["slot_change"].notnull().all()
    ti.check(changed)


@pytest.mark.parametrize(
    ("trunks", "task", "options", "message"),
    [
        ({}, TASK, {}, "at least one network"),
        ({"net": 0}, Task("match2", n=4), {}, "not of match2"),
        ({"net": 0}, Task(n=4, fillers=0), {}, "has no fillers"),
        ({"net": 0}, TASK, {"interventions": ("prayer",)}, r"interventions=\('prayer',\)"),
        ({"net": 0}, TASK, {"prompts": 1}, "prompts=1"),
        ({"net": None}, Task(n=5), {}, "another task"),
    ],
)
def test_ablations_refuse_what_they_cannot_do(lm, trunks, task, options, message):
    trunks = dict.fromkeys(trunks, lm)
    with pytest.raises(ValueError, match=message):
        ablate_dots(trunks, task, **options)
    assert len(set(INTERVENTIONS)) == len(INTERVENTIONS)
