"""Repeated tokens against a loop over the targets, and the conditions that repeat them."""

import math

import numpy as np
import pytest
import torch
from contract import assert_contract
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.behaviour import Repetition, distance_conditions, repetition_conditions
from tokinterp.behaviour import repetition as module

PREFIX = ("The river.", "To the sea and in.")


def conditions(**changes):
    return repetition_conditions(
        tiny(), 5, **{"length": 5, "copies": 6, "kept": ["all", 2, 1], "prefixes": PREFIX, **changes}
    )


def parts(prompts, i, copies, length):
    """The copies of a prompt, and which of their tokens are targets."""
    flags = prompts.marks["target"][prompts.starts[i] : prompts.starts[i + 1]]
    return [x[-copies * length :].reshape(copies, length) for x in (prompts.ids(i), flags)]


def by_hand(model, prompts, i, copies):
    """The curves of one prompt, target by target."""
    ids, flags = prompts.ids(i), prompts.marks["target"][prompts.starts[i] : prompts.starts[i + 1]]
    last = ti.Site("resid", model.info.n_layers)
    with torch.no_grad():
        logits = model.unembed(model.run(torch.as_tensor(ids, dtype=torch.int64)[None], [last])[last])[0].double()
    p = logits.softmax(-1)
    places = np.flatnonzero(flags).reshape(copies, -1)
    g = np.array([[float(p[t - 1, ids[t]]) for t in row] for row in places])
    win = np.array([[int(p[t - 1].argmax()) == ids[t] for t in row] for row in places])
    n = np.log2(np.arange(1, copies + 1))
    return {
        "prob": g.mean(1), "prob_first": g[:, 0], "prob_last": g[:, -1],
        "prob_rest": [np.mean(r[1:]) if len(r) > 1 else np.nan for r in g],
        "increased": [np.nan, *(float(sum(r) > sum(g[0])) for r in g[1:])],
        "increased_tokens": [np.nan, *(np.mean(r > g[0]) for r in g[1:])],
        "winning": [np.nan, *(np.mean((r > g[0]) & w) for r, w in zip(g[1:], win[1:], strict=True))],
        "reached": [float(max(g[: k + 1, -1]) > 0.5) for k in range(copies)],
        "slope": np.polyfit(n, np.log(g[:, -1] / (1 - g[:, -1])), 1)[0],
    }  # fmt: skip


@pytest.mark.parametrize("logits", [2**26, 1])
def test_curves_are_those_of_a_loop(monkeypatch, logits):
    monkeypatch.setattr(module, "LOGITS", logits)
    given = {**conditions(), **distance_conditions(tiny(), 5, length=4, copies=6, distances=[1], prefixes=PREFIX)}
    run = ti.measure_conditions(tiny(), given, {"r": Repetition(6, "target")}, progress=False)
    ti.check(run)
    for name, c in given.items():
        ds = run["r"].to_dataset().sel(condition=name)
        for i in range(5):
            for curve, wanted in by_hand(tiny(), c.prompts, i, 6).items():
                np.testing.assert_allclose(ds[curve][i], wanted, rtol=1e-4, atol=1e-9, err_msg=f"{name} {curve}")


def test_curves_keep_the_contract():
    assert assert_contract(lambda: Repetition(4))["n_targets"].values.tolist() == [4, 6, 3, 6, 5, 3, 6]


def test_what_is_kept_stays_and_what_is_moved_moves():
    given = conditions(copies=9)
    base = [parts(given["all kept"].prompts, i, 9, 5)[0] for i in range(5)]
    assert all((b == b[0]).all() for b in base)
    for name, k in (("all kept", 4), ("2 kept", 2), ("1 kept", 1)):
        for i in range(5):
            ids, flags = parts(given[name].prompts, i, 9, 5)
            assert (flags == flags[0]).all()
            assert flags[0].sum() == k
            assert not flags[:, 0].any()
            assert (ids[:, flags[0]] == base[i][:, flags[0]]).all()
            assert name == "all kept" or len({tuple(r) for r in ids[:, ~flags[0]].tolist()}) > 6
            moved, there = parts(given[f"{name}, moved"].prompts, i, 9, 5)
            assert not there[:, 0].any()
            assert all(sorted(r[f]) == sorted(ids[0, flags[0]]) for r, f in zip(moved, there, strict=True))
            assert len({tuple(f) for f in there.tolist()}) > 1 or k == 4
    assert any(
        len({tuple(r) for r in parts(given["all kept, moved"].prompts, i, 9, 5)[0].tolist()}) > 1 for i in range(5)
    )
    ids, flags = parts(given["none kept"].prompts, 0, 9, 5)
    assert flags[:, 1:].all()
    assert not flags[:, 0].any()
    assert len(np.unique(ids)) > 20

    assert not any(c.prompts.special(i)[1:].any() for c in given.values() for i in range(5))
    assert conditions(copies=9)["2 kept"].prompts.hash == given["2 kept"].prompts.hash
    assert conditions(copies=9, seed=1)["2 kept"].prompts.hash != given["2 kept"].prompts.hash


def test_pairs_stand_so_far_from_one_another():
    given = distance_conditions(tiny(), 6, length=4, copies=7, distances=[0, 2], prefixes=PREFIX)
    for name, far in (("distance 0", 1), ("distance 2", 3)):
        for i in range(6):
            ids, flags = parts(given[name].prompts, i, 7, 6)
            at = np.flatnonzero(flags[0])
            assert (flags == flags[0]).all()
            assert at[1] - at[0] == far
            assert (ids[:, at] == ids[0, at]).all()
    apart = [parts(given["apart"].prompts, i, 7, 6) for i in range(6)]
    assert all(
        {tuple(sorted(r[f])) for r, f in zip(*one, strict=True)} == {tuple(sorted(one[0][0][one[1][0]]))}
        for one in apart
    )
    assert len({int(np.diff(np.flatnonzero(f))[0]) for _, flags in apart for f in flags}) > 2


def test_odds_of_a_planted_copier_grow_as_they_must():
    """Odds that triple with each copy: the curves follow in closed form."""
    copies, d = 9, 320
    z = torch.tensor([[[n * math.log(3) - math.log(d - 1)] for n in range(copies)]], dtype=torch.float64)
    found = module._curves(z, torch.ones_like(z), torch.tensor([1]))
    odds = 3.0 ** np.arange(copies) / (d - 1)
    np.testing.assert_allclose(found["prob_last"][0], odds / (1 + odds))
    assert found["reached"][0].tolist() == [float(o > 1) for o in odds]
    np.testing.assert_allclose(found["slope"][0], np.polyfit(np.log2(np.arange(1, 10)), np.log(odds), 1)[0])
    assert math.isnan(found["prob_rest"][0, 0])
    assert math.isnan(found["winning"][0, 0])
    assert found["winning"][0, 1:].tolist() == [1.0] * 8
    falling = module._curves(z.flip(1), torch.ones_like(z), torch.tensor([1]))
    assert falling["winning"][0, 1:].tolist() == [0.0] * 8  # the most probable, but less so than at first


def test_what_is_not_known_did_not_fail_to_increase():
    z = torch.tensor([[[0.0, 1], [torch.nan, 2], [2, 3]]], dtype=torch.float64)
    found = module._curves(z, torch.ones_like(z), torch.tensor([2]))
    for name in ("prob", "increased", "increased_tokens", "winning"):
        assert math.isnan(found[name][0, 1]), name
    assert [float(found[n][0, 2]) for n in ("increased", "increased_tokens", "winning")] == [1, 1, 1]


def test_random_targets_are_as_probable_as_chance_and_increase_half_of_the_time():
    n = 60
    given = repetition_conditions(tiny(), n, length=6, copies=8, kept=["all"], prefixes=PREFIX)
    run = ti.measure_conditions(tiny(), {"none": given["none kept"]}, {"r": Repetition(8, "target")}, progress=False)
    ds = run["r"].to_dataset().isel(condition=0)
    d = tiny().info.d_vocab
    assert float(ds["prob"].attrs["chance"]) == pytest.approx(1 / d)
    for name, chance in (("prob", 1 / d), ("increased", 0.5), ("increased_tokens", 0.5)):
        values = ds[name].mean("repetition")
        assert abs(float(values.mean()) - chance) < 3.5 * float(values.std(ddof=1)) / n**0.5


def test_without_a_mark_the_end_is_divided():
    prompts = some_prompts([9, 2, 1, 13])
    ds = ti.measure(tiny(), prompts, {"r": Repetition(3)}, progress=False)["r"].to_dataset()
    assert ds["n_targets"].values.tolist() == [2, 0, 0, 3]
    assert np.isnan(ds["prob"][1:3]).all()
    assert np.isnan(ds["increased"][1:3]).all()
    flags = np.zeros(prompts.n_tokens, bool)
    flags[[1, 2, 4, 5, 7, 8]] = True
    flags[12 + np.array([2, 3, 4, 6, 7, 8, 10, 11, 12])] = True
    same = ti.measure(tiny(), ti.text.mark(prompts, t=flags), {"r": Repetition(3, "t")}, progress=False)["r"]
    assert ds["prob"].equals(same["prob"])
    assert ds["slope"].equals(same["slope"])


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"copies=20: the longest prompt has \d+ tokens, .* at most 12 copies fit"):
        repetition_conditions(tiny(), 2, length=5, copies=20, kept=[1], prefixes=["."])
    with pytest.raises(ValueError, match=r"kept=\[5\]: sequence 0 has 5 tokens: at most 4 can stay"):
        repetition_conditions(tiny(), 2, length=5, copies=2, kept=[5])
    with pytest.raises(ValueError, match=r"distances=\[9\]: a copy has 4 random tokens"):
        distance_conditions(tiny(), 2, length=4, copies=2, distances=[9])
    prompts = some_prompts([9])
    with pytest.raises(ValueError, match=r"copies=2: prompt 0 has 3 targets"):
        ti.measure(tiny(), ti.text.mark(prompts, t=[[2, 5]]), {"r": Repetition(2, "t")}, progress=False)
    with pytest.raises(ValueError, match=r"of='t': it marks the first token of prompt 0"):
        ti.measure(tiny(), ti.text.mark(prompts, t=[[0, 2]]), {"r": Repetition(2, "t")}, progress=False)
