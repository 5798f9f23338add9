"""What the dots hold: planted quantities are found, and only they."""

import numpy as np
import pytest
import torch

import tokinterp as ti
from tokinterp.fillers.tasks import dot_probes, match3
from tokinterp.fillers.tasks.dot_probes import different_halves, probe_contents
from tokinterp.fillers.tasks.network import Network, build
from tokinterp.fillers.tasks.task import Task

TASK = Task(n=4, d=2, m=3)


@pytest.fixture(scope="module")
def lm():
    net = build(TASK, Network(2, 32, 2, 64), 0)
    with torch.no_grad():  # weights of size .02 make attention uniform and all answers alike
        for p in net.parameters():
            if p.ndim == 2:
                p *= 6
    return net


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
    monkeypatch.setattr(dot_probes, "states_at", planted_states(dot_probes.states_at, what))
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


def test_a_class_without_examples_in_the_fit_has_no_accuracy(lm, monkeypatch):
    """It could never be said: 0 of its test examples right would be said of the network."""
    fit, test = different_halves(TASK, 900)
    pair = (fit.rows[:, 0] + fit.rows[:, 1]) % 3
    few = (pair[:, 1] != 2).nonzero()[:, 0]
    part = type(fit)(type(fit.sequences)(*(t[few] for t in fit.sequences)), fit.answer[few], fit.rows[few],
                     fit.stratum[few])  # fmt: skip
    monkeypatch.setattr(dot_probes, "different_halves", lambda *_: (part, test))
    ds = probe_contents({"net": lm}, TASK, slots=[0, 3], targets=("pair sum", "first row"), n_boot=20, layers=[1, 2])
    gone = {"pair sum": [True, False], "first row": [False, False]}  # slot 0 is for rows 0 and 1
    for target, wanted in gone.items():
        for name in ("accuracy", "shuffled"):
            one = ds.sel(target=target)
            assert one[name].isnull().all(("trunk", "layer")).values.tolist() == wanted
            assert one[name].isnull().any(("trunk", "layer")).values.tolist() == wanted
            assert one[f"{name}_interval"].isnull().all(("trunk", "layer", "bound")).values.tolist() == wanted
            assert one[f"{name}_mean"].notnull().all()


def test_the_random_trunk_is_an_untrained_network_of_its_own(lm):
    options = {"slots": [0, 3], "targets": ("first row",), "examples": 300, "n_boot": 5}
    ds = probe_contents({"net": lm}, TASK, **options)
    own = probe_contents({"own": build(TASK, Network(2, 32, 2, 64), 10_000)}, TASK, random_trunk=False, **options)
    np.testing.assert_array_equal(ds["accuracy"].sel(trunk="random"), own["accuracy"].sel(trunk="own"))
    assert not ds["accuracy"].sel(trunk="random").equals(ds["accuracy"].sel(trunk="net", drop=True))
    assert not np.allclose(*(ds["accuracy"].sel(trunk=t, layer=2) for t in ("net", "random")))


def test_the_discriminant_has_equal_priors_whatever_is_common():
    rng = np.random.default_rng(0)
    y, wanted = (rng.choice(3, (n, 1, 1), p=[0.75, 0.2, 0.05]) for n in (150, 80))
    centres = rng.normal(size=(3, 4))
    x, z = (centres[c[:, 0, 0]][:, None] + rng.normal(size=(len(c), 1, 4)) + 5 for c in (y, wanted))
    given = (torch.from_numpy(a) for a in (x, y, z, wanted))
    right = dot_probes._right(*given, 3, 0.3)[:, 0, 0].numpy()
    a, b, c = x[:, 0] - x[:, 0].mean(0), z[:, 0] - x[:, 0].mean(0), y[:, 0, 0]
    means = np.stack([a[c == k].mean(0) for k in range(3)])
    total = a.T @ a / len(a)
    within = sum((a[c == k] - means[k]).T @ (a[c == k] - means[k]) for k in range(3)) / len(a)
    weight = np.linalg.solve(0.7 * within + 0.3 * np.trace(total) / 4 * np.eye(4), means.T).T
    said = (b @ weight.T - (weight * means).sum(1) / 2).argmax(1)
    np.testing.assert_array_equal(right, said == wanted[:, 0, 0])
    assert (said == 2).mean() > 0.1  # although it is rare


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
        (TASK, {"layers": [3]}, r"layers=\[3\]: the network has layers 0 .* to 2"),
        (Task(n=5, d=2, m=3), {}, "another task"),
    ],
)
def test_probes_refuse_what_they_cannot_do(lm, task, options, message):
    with pytest.raises(ValueError, match=message):
        probe_contents({"net": lm}, task, examples=200, **options)
