"""The record and the figure of networks with fillers, against loops over planted results."""

import itertools
import json

import numpy as np
import pytest
import xarray as xr

from experiments.dot_by_dot import ARMS, summary
from figures.dot_by_dot import draw

FORMATS, STRATA = ["filler", "parallel"], ["all", "planted"]
TASKS = {"match3-n4": {"n": 4, "d": 2, "m": 3}, "match3-n3": {"n": 3, "d": 2, "m": 3}}
TRUNKS, TARGETS = ["filler", "none", "random"], ["pair sum", "match"]
RNG = np.random.default_rng(0)


def some(*shape, low=0.0):
    return low + (1 - low) * RNG.random(shape)


def trained(task):
    by = ("seed", "step", "format")
    data = {n: (by, some(2, 3, 2)) for n in ("auc", "true_bias")}
    seconds = np.array([[1.0, 2, 3], [1, 2, np.nan]])  # the second seed stopped earlier
    data |= {
        "accuracy": ((*by, "stratum"), some(2, 3, 2, 2)), "seconds": (("seed", "step"), seconds),
        "examples_seen": (("step", "format"), [[10, 11], [20, 21], [30, 31]]), "majority": ("format", [0.5, 0.6]),
    }  # fmt: skip
    coords = {"seed": [0, 5], "step": [7, 8, 9], "format": FORMATS, "stratum": STRATA}
    return xr.Dataset(data, coords, {"parameters": json.dumps({"task": task})})


def interval(value, axis=0):
    return np.stack([value - 0.1, value + 0.1], axis)


def named(dims, **where):
    return (dims, RNG.random([len(where[d]) if d in where else {"prompt": 6}[d] for d in dims]))


@pytest.fixture(scope="module")
def tree():
    parts = {f"training/{name}/{arm}": trained(task) for name, task in TASKS.items() for arm in ARMS}
    for variant in ("frozen", "released"):
        parts[f"probe/{variant}"] = xr.Dataset(
            {"accuracy": (("trunk", "kept"), some(3, 2)), "majority": 0.5},
            {"trunk": TRUNKS, "kept": [0.0, 1.0]}, {"task": "match3-n4"},
        )  # fmt: skip
    parts["linear_probe"] = xr.Dataset(
        {n: (("layer", "position"), some(3, 4)) for n in ("accuracy", "shuffled")}, {"layer": [0, 1, 2]}
    )
    by, value, mean = ("trunk", "target", "layer"), some(3, 2, 3, 4), some(3, 2, 3)
    parts["dots/probes"] = xr.Dataset(
        {"accuracy": ((*by, "slot"), value), "accuracy_interval": (("bound", *by, "slot"), interval(value)),
         "accuracy_mean": (by, mean), "shuffled_mean": (by, some(3, 2, 3)),
         "accuracy_mean_interval": (("bound", *by), interval(mean)), "chance": ("target", [0.25, 0.5]),
         "n_fit": 30, "n_test": 31},
        {"trunk": TRUNKS, "target": TARGETS, "layer": [0, 1, 2], "slot": range(4), "bound": ["lower", "upper"]},
    )  # fmt: skip
    sets = {"query_set": ["answer", "fillers"], "key_set": ["rows", "self"], "block": [0, 1], "head": [0, 1]}
    for name in ("attention", "attention_of_none"):
        rows = {n: named(("prompt", "block", "head"), **sets) for n in
                ("own_rows", "two_other_rows", "slot_match", "slot_plain")}  # fmt: skip
        rows["mass"] = named(("prompt", "block", "head", "query_set", "key_set"), **sets)
        parts[f"dots/{name}"] = xr.Dataset(rows, sets)
    match = (RNG.random((6, 5)) < 0.5).astype(float)
    match[:, 4] = np.nan
    parts["dots/ablation"] = xr.Dataset(
        {"correct": (("trunk", "intervention", "prompt"), (RNG.random((3, 2, 6)) < 0.5).astype(float)),
         "slot_change": (("trunk", "slot", "prompt"), RNG.normal(size=(3, 5, 6))),
         "slot_match": (("prompt", "slot"), match), "majority": 0.5},
        {"trunk": TRUNKS, "intervention": ["none", "knock-out"], "slot": range(5)},
    )  # fmt: skip
    parts["dots/contents"] = xr.Dataset(
        {n: (("layer", "slot"), some(3, 5)) for n in ("recovery", "recovery_shuffled")}, {"layer": [0, 1, 2]}
    )
    out = xr.DataTree.from_dict(parts)
    out.attrs = {"parameters": "{}", "device": "cpu"}
    return out


def test_each_run_is_recorded_at_its_own_last_evaluation(tree):
    rows = {(r["task"], r["arm"], r["seed"], r["format"]): r for r in summary(tree)["training"]}
    assert len(rows) == 2 * 3 * 2 * 2
    for task, arm, (s, seed), (f, form) in itertools.product(TASKS, ARMS, enumerate((0, 5)), enumerate(FORMATS)):
        ds, row, last = tree[f"training/{task}/{arm}"], rows[task, arm, seed, form], 2 - s
        assert (row["step"], row["examples"], row["seconds"]) == (7 + last, 10 * (last + 1) + f, last + 1)
        assert row["majority"] == [0.5, 0.6][f]
        assert row["auc"] == pytest.approx(ds["auc"].values[s, last, f], abs=1e-4)
        accuracy = ds["accuracy"].values[s, last, f]
        assert list(row["accuracy"].values()) == pytest.approx(accuracy, abs=1e-4)
    assert summary(tree)["different_inputs"] == {"match3-n4": 3**8, "match3-n3": 3**6}


def test_fillers_of_no_pair_are_neither_completed_nor_not(tree):
    found = summary(tree)
    change, match = tree["dots/ablation"]["slot_change"].values[0], tree["dots/ablation"]["slot_match"].values
    for name, wanted in (("completed", 1), ("not_completed", 0)):
        rows = [change[s, p] for p in range(6) for s in range(5) if match[p, s] == wanted]
        assert found[f"slot_change_{name}"] == pytest.approx(np.mean(rows), abs=1e-4)
    for t, trunk in enumerate(TRUNKS):
        for i, name in enumerate(("none", "knock-out")):
            mean = tree["dots/ablation"]["correct"].values[t, i].mean()
            assert found["ablation"][trunk][name][0] == pytest.approx(mean, abs=1e-4)


def test_recovery_is_of_the_fillers_whose_word_depends_on_the_digits(tree):
    found = summary(tree)
    for name in ("recovery", "recovery_shuffled"):
        values = tree["dots/contents"][name].values
        wanted = [np.mean([values[n, 1], values[n, 3]]) for n in range(3)]
        assert found[f"{name}_of_digits"] == pytest.approx(wanted, abs=1e-4)


def test_probes_are_recorded_by_network_target_and_share(tree):
    found, probes = summary(tree), tree["dots/probes"]
    for g, target in enumerate(TARGETS):
        one = found["probes_by_layer"][target]
        assert one["chance"] == [0.25, 0.5][g]
        for t, trunk in enumerate(TRUNKS):
            assert one[trunk] == pytest.approx(probes["accuracy_mean"].values[t, g], abs=1e-3)
        assert one["permuted"] == pytest.approx(probes["shuffled_mean"].values[0, g], abs=1e-3)
        last = probes["accuracy_mean"].values[0, g, 2]
        assert one["interval_of_last_layer"] == pytest.approx([last - 0.1, last + 0.1], abs=1e-3)
    assert found["probe_inputs"] == [30, 31]
    for key, name in (("best", "accuracy"), ("best_shuffled", "shuffled")):
        best = {n: max(tree["linear_probe"][name].values[n]) for n in range(3)}
        assert found[f"linear_probe_{key}"] == pytest.approx(best, abs=1e-4)
    for variant in ("frozen", "released"):
        for t, trunk in enumerate(TRUNKS):
            wanted = dict(zip((0.0, 1.0), tree[f"probe/{variant}"]["accuracy"].values[t], strict=True))
            assert found[f"probe_{variant}"][trunk] == pytest.approx(wanted, abs=1e-4)


def test_attention_is_recorded_by_who_looks_at_what(tree):
    found = summary(tree)
    for name in ("attention", "attention_of_none"):
        mass = tree[f"dots/{name}"]["mass"].values
        for (q, query), (k, key) in itertools.product(enumerate(("answer", "fillers")), enumerate(("rows", "self"))):
            wanted = [mass[:, block, :, q, k].mean() for block in range(2)]
            assert found[name][query][key] == pytest.approx(wanted, abs=1e-3)
        for pair in ("own_rows", "two_other_rows", "slot_match", "slot_plain"):
            wanted = tree[f"dots/{name}"][pair].values.mean((0, 2))
            assert found[name][pair] == pytest.approx(wanted, abs=1e-3)


def drawn(ax):
    return [np.asarray(line.get_ydata()) for line in ax.lines]


def holds(lines, wanted):
    return any(line.shape == wanted.shape and np.allclose(line, wanted) for line in lines)


def test_each_panel_draws_its_own_arm_and_network(tree):
    axes = draw(tree).axes
    arms = tree["training/match3-n4"]
    for ax, arm in zip(axes[:2], ("filler", "none"), strict=True):
        for s, f in itertools.product(range(2), range(2)):
            curve = arms[arm]["accuracy"].values[s, :, f, 0]
            assert holds(drawn(ax), curve)
    assert [ax.get_xlabel() for ax in axes[2:4]] == ["rows n", "coordinates d"]
    colour = {line.get_label(): line.get_color() for line in axes[2].lines}
    for arm, name in (("filler", "with fillers"), ("none", "without")):
        ends = []
        for task in ("match3-n3", "match3-n4"):
            value = tree[f"training/{task}/{arm}"]["accuracy"].values[:, :, 0, 0]  # all arms have the format "filler"
            ends.append(np.mean([value[0, 2], value[1, 1]]))
        of_arm = [x.get_ydata() for x in axes[2].lines if x.get_color() == colour[name] and x.get_linestyle() != "None"]
        assert holds(of_arm, np.array(ends))
    curves = {line.get_label(): line.get_ydata() for line in axes[4].lines}
    for t, name in enumerate(("with fillers", "without", "not trained")):
        np.testing.assert_allclose(curves[name], tree["probe/frozen"]["accuracy"].values[t])
    heights = {round(p.get_height(), 9) for p in axes[5].patches}
    last = arms["filler"]["accuracy"].values
    wanted = {round(float(np.mean([last[0, 2, f, s], last[1, 1, f, s]])), 9) for f in range(2) for s in range(2)}
    assert heights == wanted
    mesh = axes[6].collections[0].get_array()
    np.testing.assert_allclose(np.asarray(mesh), tree["dots/probes"]["accuracy"].values[0, 0])
    means = tree["dots/ablation"]["correct"].values.mean(-1)
    points = {round(float(x), 9) for line in axes[7].lines for x in np.atleast_1d(line.get_xdata())}
    assert {round(float(x), 9) for x in means.ravel()} <= points
