"""The record and the figure of networks with fillers, against loops over planted results."""

import itertools
import json

import numpy as np
import pytest
import xarray as xr

from experiments.dot_by_dot import ARMS, CLAIMS
from experiments.runner.claims import evaluate
from figures.dot_by_dot import compose

FORMATS, STRATA = ["filler", "parallel"], ["all", "planted"]
TASKS = {"match3-n4": {"n": 4, "d": 2, "m": 3}, "match3-n3": {"n": 3, "d": 2, "m": 3}}
TRUNKS, TARGETS = ["filler", "none", "random"], ["pair sum", "match"]
RNG = np.random.default_rng(0)


def some(*shape, low=0.0):
    return low + (1 - low) * RNG.random(shape)


def trained(task, arm):
    by = ("seed", "step", "format")
    data = {n: (by, some(2, 3, 2)) for n in ("auc", "true_bias")}
    seconds = np.array([[1.0, 2, 3], [1, 2, np.nan]])  # the second seed stopped earlier
    data |= {
        "accuracy": ((*by, "stratum"), some(2, 3, 2, 2)), "seconds": (("seed", "step"), seconds),
        "examples_seen": (("step", "format"), [[10, 11], [20, 21], [30, 31]]), "majority": ("format", [0.5, 0.6]),
    }  # fmt: skip
    forms = FORMATS if arm == "filler" else ["none", "parallel"]
    coords = {"seed": [0, 5], "step": [7, 8, 9], "format": forms, "stratum": STRATA}
    return xr.Dataset(data, coords, {"parameters": json.dumps({"task": task})})


def interval(value, axis=0):
    return np.stack([value - 0.1, value + 0.1], axis)


def named(dims, **where):
    return (dims, RNG.random([len(where[d]) if d in where else {"prompt": 6}[d] for d in dims]))


@pytest.fixture(scope="module")
def tree():
    parts = {f"training/{name}/{arm}": trained(task, arm) for name, task in TASKS.items() for arm in ARMS}
    for variant in ("frozen", "released"):
        parts[f"probe/{variant}"] = xr.Dataset(
            {"accuracy": (("trunk", "kept"), some(3, 2)), "majority": 0.5,
             "correct": (("trunk", "kept", "prompt"), RNG.random((3, 2, 40)) < 0.5)},
            {"trunk": TRUNKS, "kept": [0.0, 1.0]}, {"task": "match3-n4"},
        )  # fmt: skip
    parts["linear_probe"] = xr.Dataset(
        {n: (("layer", "position"), some(3, 4)) for n in ("accuracy", "shuffled")}, {"layer": [0, 1, 2]}
    )
    by, value, mean = ("trunk", "target", "layer"), some(3, 2, 3, 4), some(3, 2, 3)
    less = mean[:1] - mean
    parts["dots/probes"] = xr.Dataset(
        {"accuracy": ((*by, "slot"), value), "accuracy_interval": (("bound", *by, "slot"), interval(value)),
         "accuracy_mean": (by, mean), "shuffled_mean": (by, some(3, 2, 3)),
         "accuracy_mean_interval": (("bound", *by), interval(mean)), "advantage": (by, less),
         "advantage_interval": (("bound", *by), interval(less)),
         "shuffled_mean_interval": (("bound", *by), interval(mean)), "chance": ("target", [0.25, 0.5]),
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


@pytest.fixture(scope="module")
def rows(tree):
    results = {n.path.strip("/"): n.to_dataset(inherit=False) for n in tree.subtree if n.has_data}
    return {row["claim"]: row["numbers"] for row in evaluate(CLAIMS, results)}


def test_accuracies_are_those_of_each_seeds_own_last_evaluation(rows, tree):
    numbers = rows["fillers raise the accuracy over an immediate answer"]
    last = {}
    for arm, (s, seed) in itertools.product(ARMS, enumerate((0, 5))):
        last[f"{arm}, seed {seed}"] = tree[f"training/match3-n4/{arm}"]["accuracy"].values[s, 2 - s, 0, 0]
    assert {n: numbers[n]["value"] for n in last} == pytest.approx(last)
    gains = {a: np.mean([last[f"filler, seed {s}"] - last[f"{a}, seed {s}"] for s in (0, 5)]) for a in [*ARMS][1:]}
    first, second, *_ = numbers
    assert {first, second} == {f"filler less {a}" for a in gains}
    assert numbers[first]["value"] == pytest.approx(min(gains.values()))
    assert numbers[second]["value"] == pytest.approx(max(gains.values()))
    assert numbers[first]["why"] == "2 seeds: an interval takes 3"
    assert rows["the task cannot be learned by heart"]["different inputs"]["value"] == 3**8


def test_fillers_of_no_pair_are_neither_completed_nor_not(rows, tree):
    numbers = rows["the slot of the matching triple carries the answer"]
    change, match = tree["dots/ablation"]["slot_change"].values[0], tree["dots/ablation"]["slot_match"].values
    means = {}
    for name, wanted in (("completed", 1), ("not completed", 0)):
        per_prompt = [[change[s, p] for s in range(5) if match[p, s] == wanted] for p in range(6)]
        means[name] = [np.mean(x) if x else np.nan for x in per_prompt]
        assert numbers[name]["value"] == pytest.approx(np.nanmean(means[name]))
    wanted = np.nanmean(np.subtract(means["completed"], means["not completed"]))
    assert numbers["completed less not"]["value"] == pytest.approx(wanted)


def test_probes_and_ablations_are_those_of_their_network(rows, tree):
    probes = tree["dots/probes"]["accuracy_mean"].values
    numbers = rows["the fillers hold sums of pairs"]
    for t, trunk in enumerate(TRUNKS):
        assert numbers[trunk]["value"] == pytest.approx(probes[t, 0, 2])
        assert numbers[trunk]["interval"] == pytest.approx([probes[t, 0, 2] - 0.1, probes[t, 0, 2] + 0.1])
    assert numbers["with less without fillers"]["value"] == pytest.approx(probes[0, 0, 2] - probes[1, 0, 2])
    assert numbers["with less without fillers"]["interval"] == pytest.approx(
        [probes[0, 0, 2] - probes[1, 0, 2] - 0.1, probes[0, 0, 2] - probes[1, 0, 2] + 0.1]
    )
    kept = tree["probe/frozen"]["correct"].values.mean(-1)
    numbers = rows["a frozen probe gains from more fillers"]
    assert numbers["all less none"]["value"] == pytest.approx(kept[0, 1] - kept[0, 0])
    low, high = numbers["all less none"]["interval"]
    assert low < numbers["all less none"]["value"] < high
    assert numbers["random, 1 kept"]["value"] == pytest.approx(kept[2, 1])
    right = tree["dots/ablation"]["correct"].values[0].mean(-1)
    assert rows["the answer needs the fillers"]["none less knock-out"]["value"] == pytest.approx(right[0] - right[1])


def drawn(ax):
    return [np.asarray(line.get_ydata()) for line in ax.lines]


def holds(lines, wanted):
    return any(line.shape == wanted.shape and np.allclose(line, wanted) for line in lines)


def test_each_panel_draws_its_own_arm_and_network(tree):
    axes = compose(tree).axes
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
    for t, _ in enumerate(tree["probe/frozen"]["trunk"].values):
        assert holds(drawn(axes[4]), tree["probe/frozen"]["accuracy"].values[t])
    points = {round(float(x), 9) for line in axes[5].lines for x in np.atleast_1d(line.get_xdata())}
    last = arms["filler"]["accuracy"].values
    wanted = {round(float(np.mean([last[0, 2, f, s], last[1, 1, f, s]])), 9) for f in range(2) for s in range(2)}
    assert wanted <= points
    mesh = axes[6].collections[0].get_array()
    np.testing.assert_allclose(np.asarray(mesh), tree["dots/probes"]["accuracy"].values[0, 0])
    means = tree["dots/ablation"]["correct"].values.mean(-1)
    points = {round(float(x), 9) for line in axes[7].lines for x in np.atleast_1d(line.get_xdata())}
    assert {round(float(x), 9) for x in means.ravel()} <= points
