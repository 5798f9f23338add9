"""What is in the dots, who looks at them, and what is answered without them: exact identities and planted codes."""

import numpy as np
import pytest
import torch
from contract import assert_contract

import tokinterp as ti
from tokinterp import edits as E
from tokinterp.fillers import dot_probes, match3
from tokinterp.fillers.contents import filler_prompts, read_dots
from tokinterp.fillers.dot_ablation import INTERVENTIONS, SEED, ablate_dots
from tokinterp.fillers.dot_attention import DotAttention
from tokinterp.fillers.dot_probes import different_halves, probe_contents
from tokinterp.fillers.network import Network, as_model, build
from tokinterp.fillers.tasks import Task

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
    return ablate_dots({"net": lm}, TASK, prompts=40, batch=16, random_trunk=True)


# -- attention ------------------------------------------------------------------------------------------------
def test_attention_holds_the_contract_and_sums_to_one(lm):
    model = as_model(lm, TASK)
    ds = assert_contract(lambda: DotAttention(4, 2, 3), model, filler_prompts(TASK, model, 9))
    np.testing.assert_allclose(ds["mass"].sum("key_set"), 1, atol=1e-5)
    np.testing.assert_allclose(ds["chance"].sum("key_set"), 1, atol=1e-12)


def test_attention_is_that_of_a_loop(lm):
    model = as_model(lm, TASK)
    prompts = filler_prompts(TASK, model, 30)
    ds = ti.measure(model, prompts, {"a": DotAttention(4, 2, 3)}, progress=False)["a"].to_dataset()
    test = TASK.test_set("filler", 30, 200)
    ids = torch.from_numpy(np.stack([prompts.ids(e) for e in range(30)]))
    patterns = model.run(ids, [ti.Site("pattern", 1)])[ti.Site("pattern", 1)].double().numpy()
    pairs, partner = match3.pairs(4).T.tolist(), match3.partner(test.rows, 3)
    first, cue = 5, 5 + TASK.n_fillers
    seen = 0
    for e in range(30):
        for h in range(2):
            a = patterns[e, h]
            one = ds.sel(prompt=e, block=1, head=h)
            ask = one["mass"].sel(query_set="answer")
            wanted = [a[cue, :4].sum(), a[cue, 4], a[cue, first:cue].sum(), a[cue, cue]]
            np.testing.assert_allclose(ask, wanted, atol=1e-6)
            own = np.mean([a[q, q] for q in range(first, cue)])
            assert float(one["mass"].sel(query_set="fillers", key_set="self")) == pytest.approx(own, abs=1e-6)
            mine = [a[first + t, list(pairs[t // 2])].sum() for t in range(SLOTS)]
            rest = [a[first + t, :4].sum() for t in range(SLOTS)]
            assert float(one["own_rows"]) == pytest.approx(np.mean(mine), abs=1e-6)
            assert float(one["two_other_rows"]) == pytest.approx(np.mean(rest) - np.mean(mine), abs=1e-6)  # n = 4
            hit = [a[cue, first + t] for t in range(SLOTS) if partner[e, t // 2] >= 0]
            plain = [a[cue, first + t] for t in range(SLOTS) if partner[e, t // 2] < 0]
            assert int(one["n_matches"]) == len(hit)
            assert float(one["slot_plain"]) == pytest.approx(np.mean(plain), abs=1e-6)
            if hit:
                seen += 1
                assert float(one["slot_match"]) == pytest.approx(np.mean(hit), abs=1e-6)
            else:
                assert np.isnan(one["slot_match"])
    assert 0 < seen < 60


@pytest.mark.parametrize("n", [4, 6])
def test_uniform_attention_has_the_chance_that_is_stated(n):
    task = Task(n=n, d=2, m=3)
    flat = build(task, Network(1, 32, 2, 64), 0)
    with torch.no_grad():
        flat.model.layers[0].self_attn.q_proj.weight.zero_()
    model = as_model(flat, task)
    run = ti.measure(model, filler_prompts(task, model, 4), {"a": DotAttention(n, 2, 3)}, progress=False)
    ds = run["a"].to_dataset()
    np.testing.assert_allclose(ds["mass"].mean(("prompt", "block", "head")), ds["chance"], atol=1e-6)
    np.testing.assert_allclose(ds["own_rows"], ds["two_other_rows"], atol=1e-6)


def test_attention_refuses_other_prompts(lm):
    model = as_model(lm, TASK)
    chain = ti.Prompts.from_ids(TASK.test_set("parallel", 3).sequences.ids.tolist(), model)
    with pytest.raises(ValueError, match="prompt 0 has no fillers"):
        ti.measure(model, chain, {"a": DotAttention(4, 2, 3)}, progress=False)
    ids = TASK.test_set("filler", 3).sequences.ids.clone()
    for prompt, place, word in ((2, 6, TASK.words.answer), (1, 4, TASK.words.filler), (1, 0, TASK.words.filler)):
        mixed = ids.clone()
        mixed[prompt, place] = word
        with pytest.raises(ValueError, match=f"prompt {prompt} has no fillers"):
            ti.measure(model, ti.Prompts.from_ids(mixed.tolist(), model), {"a": DotAttention(4, 2, 3)}, progress=False)
    with pytest.raises(ValueError, match="blocks=\\[7\\]"):
        ti.measure(model, filler_prompts(TASK, model, 2), {"a": DotAttention(4, 2, 3, blocks=[7])}, progress=False)


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


def test_ablations_that_put_back_what_was_there_change_nothing(lm, monkeypatch):
    """One prompt twice: its mean over prompts and the fillers of the other prompt are its own."""
    twice = TASK.test_set("filler", 1, 5)
    same = type(twice)(
        type(twice.sequences)(*(torch.cat([t, t]) for t in twice.sequences)),
        *(torch.cat([getattr(twice, k)] * 2) for k in ("answer", "rows", "stratum")),
    )
    monkeypatch.setattr(Task, "test_set", lambda *_: same)
    ds = ablate_dots({"net": lm}, TASK, prompts=2, blocks=False)
    change = ds["logit_change"].sel(trunk="net")
    for name in ("mean ablation", "resample ablation"):
        np.testing.assert_allclose(change.sel(intervention=name), 0, atol=1e-4)
    np.testing.assert_allclose(ds["slot_change"], 0, atol=1e-4)
    assert float(abs(change.sel(intervention="zero ablation")).max()) > 1e-2


def test_mean_ablation_leaves_nothing_of_the_prompt_in_the_fillers(lm):
    """With the rows hidden from the answer as well, all prompts would be answered alike."""
    from tokinterp.edits import knock_out, replace
    from tokinterp.fillers.dot_ablation import _Bench

    bench = _Bench(as_model(lm, TASK), TASK, TASK.test_set("filler", 6), 6)
    edits = [replace(s, v, bench.fillers) for s, v in bench.means.items()]
    edits.append(knock_out([*range(TASK.n + 1)], [bench.cue]))
    last = bench.model.run(bench.ids, [bench.last], edits=edits)[bench.last][:, -1]
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


# -- probes ---------------------------------------------------------------------------------------------------
def planted_states(states_of, what):
    def states(model, ids, where):
        out = list(states_of(model, ids, where))
        rows = TASK.words.digits(ids[:, : TASK.n])
        i, j = match3.pairs(TASK.n)
        value = {"pair sum": (rows[:, i] + rows[:, j]) % 3, "first row": rows[:, i]}[what]
        for at, position in enumerate(where):
            digit = value[:, (position - 5) // 2]
            for c in range(2):
                out[1][:, at, 3 * c : 3 * c + 3] += 10 * torch.nn.functional.one_hot(digit[:, c], 3)
        return iter(out)

    return states


@pytest.mark.parametrize("what", ["pair sum", "first row"])
def test_a_planted_quantity_is_found_and_the_others_are_not(lm, monkeypatch, what):
    monkeypatch.setattr(dot_probes, "_states", planted_states(dot_probes._states, what))
    targets = ("first row", "pair sum", "other pair sum")
    ds = probe_contents(
        {"net": lm}, TASK, slots=[0, 3, 8], targets=targets, examples=1500, n_boot=50, random_trunk=False
    )
    ti.check(ds)
    at = ds.sel(trunk="net", layer=1)
    assert (at["accuracy"].sel(target=what) > 0.99).all()
    # Three clusters and one permutation: each cluster is called some class, right or wrong as a whole.
    assert (at["shuffled"].sel(target=what) < 0.9).all()
    assert abs(ds["shuffled"].sel(layer=2).mean(("slot", "trunk")) - 1 / 3).max() < 0.1
    assert (at["accuracy"].sel(target="other pair sum") < 0.6).all()
    low, high = ds["accuracy_interval"]
    assert (low <= ds["accuracy"]).all()
    assert (ds["accuracy"] <= high).all()
    np.testing.assert_allclose(ds["accuracy_mean"], ds["accuracy"].mean("slot"))


def test_the_embedding_of_a_dot_says_nothing(lm):
    ds = probe_contents({"net": lm}, TASK, slots=[0, 5, 10], layers=[0], examples=400, n_boot=20)
    for target in ("first row", "second row", "pair sum", "match"):
        at = ds.sel(target=target)
        np.testing.assert_allclose(at["accuracy"].dropna("slot"), float(at["chance"]), atol=1e-6)
    # Slot 10 is for rows 2 and 3: no row is left to complete the pair.
    assert ds["pair"].values.tolist() == ["0, 1", "0, 3", "2, 3"]
    assert ds["accuracy"].sel(target="match").isnull().any(("trunk", "layer")).values.tolist() == [False, True, True]


def test_fit_and_test_share_no_input_and_repeat_none():
    fit, test = different_halves(TASK, 900)
    a, b = ({tuple(r) for r in s.rows.flatten(1).tolist()} for s in (fit, test))
    assert len(a) == len(fit.rows)
    assert len(b) == len(test.rows)
    assert not a & b
    assert abs(len(a) - len(b)) <= 1
    with pytest.raises(ValueError, match="different inputs, too few"):
        different_halves(Task(n=3, d=1, m=2), 500)


def test_other_pairs_share_as_few_rows_as_can_be():
    for n in (3, 4, 6):
        pairs = match3.pairs(n).T.tolist()
        for p, q in enumerate(dot_probes._other_pairs(n, torch.device("cpu")).tolist()):
            assert p != q
            assert len({*pairs[p]} & {*pairs[q]}) == (1 if n == 3 else 0)


def test_the_bootstrap_is_that_of_a_loop():
    draw = np.random.default_rng(0)
    right, wanted = draw.integers(0, 2, (30, 2, 1)), draw.integers(0, 3, (30, 2, 1))
    weights = draw.multinomial(30, np.full(30, 1 / 30), 4)
    found = dot_probes._balanced(
        torch.from_numpy(right).float(), torch.from_numpy(wanted), 3, torch.from_numpy(weights).float()
    )
    for row, w in enumerate([np.ones(30), *weights]):
        for s in range(2):
            shares = [np.average(right[wanted[:, s, 0] == k, s, 0], weights=w[wanted[:, s, 0] == k]) for k in range(3)]
            assert float(found[row, s]) == pytest.approx(np.mean(shares), abs=1e-6)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (Task("match2", n=4), {}, "that of match3, not match2"),
        (TASK, {"slots": [12]}, "numbered 0 to 11"),
        (TASK, {"targets": ("weather",)}, r"targets=\('weather',\)"),
        (TASK, {"shrinkage": 0}, "shrinkage=0"),
        (TASK, {"layers": [3]}, "layers 0 to 2"),
        (Task(n=5, d=2, m=3), {}, "another task"),
    ],
)
def test_probes_refuse_what_they_cannot_do(lm, task, options, message):
    with pytest.raises(ValueError, match=message):
        probe_contents({"net": lm}, task, examples=200, **options)


# -- figures --------------------------------------------------------------------------------------------------
def test_figures_of_all_four_results(lm, changed):
    ds = probe_contents({"filler": lm}, TASK, examples=400, n_boot=20, targets=("pair sum", "match"))
    dots = read_dots(lm, TASK, prompts=5)
    names = [
        name
        for one in (ds, changed, dots["attention"].to_dataset(), dots["contents"].to_dataset())
        for name, _, figure in ti.plots.overview(one)
        if figure.axes
    ]
    assert names == [
        "map_pair_sum", "layers_pair_sum", "map_match", "layers_match", "ablation", "slots", "attention_answer",
        "attention_fillers", "dots",
    ]  # fmt: skip
    ax = ti.plots.dot_attention_by_block(dots["attention"].to_dataset())
    tops = [p.get_y() + p.get_height() for p in ax.patches]
    assert max(tops) == pytest.approx(1, abs=1e-5)
    assert len(ax.patches) == 4 * (2 * 2 + 1)  # two blocks of two heads, and uniform attention
