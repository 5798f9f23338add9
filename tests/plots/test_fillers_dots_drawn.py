"""Figures of what fillers hold, where a network looks and what it answers without them, of planted results."""

import numpy as np
import pytest
import xarray as xr

from tokinterp import plots
from tokinterp.plots import style
from tokinterp.plots.fillers_training import ARMS

TRUNKS, TARGETS, RNG = ["filler", "none", "random"], ["pair sum", "match"], np.random.default_rng(0)


def curves(ax):
    return {line.get_label(): np.asarray(line.get_ydata()) for line in ax.lines}


@pytest.fixture(scope="module")
def probes():
    value, mean = RNG.uniform(0.5, 0.8, (3, 2, 3, 4)), RNG.uniform(0.5, 0.8, (3, 2, 3))
    by = ("trunk", "target", "layer")
    low, high = value.copy(), value + 0.1
    low[:], low[0, 0, 1, 2], high[2, 0, 1, 2] = 0.1, 0.7, 0.6  # one cell above chance and the untrained
    low[0, 0, 2, 3], high[2, 0, 2, 3] = 0.7, 0.9  # one above chance alone
    low[0, 0, 0, 1], low[0, 1, 0, 0] = 0.2, 0.99  # one below chance, one of another target
    return xr.Dataset(
        {"accuracy": ((*by, "slot"), value), "accuracy_interval": (("bound", *by, "slot"), np.stack([low, high])),
         "accuracy_mean": (by, mean), "shuffled_mean": (by, RNG.random((3, 2, 3))),
         "accuracy_mean_interval": (("bound", *by), np.stack([mean - 0.1, mean + 0.2])),
         "chance": ("target", [0.3, 0.5])},
        {"trunk": TRUNKS, "target": TARGETS, "layer": [0, 1, 2], "slot": range(4), "bound": ["lower", "upper"]},
    )  # fmt: skip


def test_the_map_marks_what_is_above_chance_and_the_untrained_network(probes):
    ax = plots.dot_probe_map(probes)
    mesh = ax.collections[0]
    np.testing.assert_allclose(np.asarray(mesh.get_array()), probes["accuracy"].values[0, 0])
    assert mesh.get_clim() == (0.3, 1.0)
    marks = [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in ax.lines]
    assert marks == [(2.5, 1.5)]  # slot 2, layer 1
    other = plots.dot_probe_map(probes, "match", "random")
    np.testing.assert_allclose(np.asarray(other.collections[0].get_array()), probes["accuracy"].values[2, 1])
    assert other.collections[0].get_clim() == (0.5, 1.0)


def test_each_network_has_its_own_line_and_band_beside_chance(probes):
    ax = plots.dot_probes_by_layer(probes, "match")
    found, colours = curves(ax), {line.get_label(): line.get_color() for line in ax.lines}
    for t, trunk in enumerate(TRUNKS):
        np.testing.assert_allclose(found[ARMS[trunk]], probes["accuracy_mean"].values[t, 1])
        band = ax.collections[t].get_paths()[0].get_extents()
        mean = probes["accuracy_mean"].values[t, 1]
        np.testing.assert_allclose([band.y0, band.y1], [mean.min() - 0.1, mean.max() + 0.2])
        assert colours[ARMS[trunk]] == style.COLOURS[t]
    np.testing.assert_allclose(found["labels permuted"], probes["shuffled_mean"].values[0, 1])
    (chance,) = {float(line.get_ydata()[0]) for line in ax.lines if line.get_color() == "0.4"}
    assert chance == 0.5


def test_the_lens_at_fillers_is_that_of_words_that_depend_on_the_digits():
    names = ("recovery", "recovery_shuffled", "filler_share")
    ds = xr.Dataset({n: (("layer", "slot"), RNG.random((3, 5))) for n in names}, {"layer": [0, 1, 2]})
    found = curves(plots.dots_by_layer(ds))
    for name, said in zip(names, ("valid for these rows", "valid for other rows", "the dot"), strict=True):
        np.testing.assert_allclose(found[said], ds[name].values[:, [1, 3]].mean(1))


@pytest.mark.parametrize("query", ["answer", "fillers"])
def test_bars_of_attention_are_those_of_each_head_and_uniform_attention(query):
    q = ["answer", "fillers"].index(query)
    mass = RNG.dirichlet(np.ones(3), (5, 2, 2, 2))  # (prompt, block, head, query), key
    chance = RNG.dirichlet(np.ones(3), 2)
    ds = xr.Dataset(
        {"mass": (("prompt", "block", "head", "query_set", "key_set"), mass),
         "chance": (("query_set", "key_set"), chance)},
        {"query_set": ["answer", "fillers"], "key_set": ["rows", "other fillers", "self"], "block": [0, 1]},
    )  # fmt: skip
    ax = plots.dot_attention_by_block(ds, query)
    bars = [(p.get_x() + p.get_width() / 2, p.get_y(), p.get_height()) for p in ax.patches]
    for k in range(3):
        heads, uniform = bars[5 * k : 5 * k + 4], bars[5 * k + 4]
        place = 0
        for block in range(2):
            for head in range(2):
                x, low, height = heads[place]
                mean = mass[:, block, head, q].mean(0)
                assert x == pytest.approx(block + (head - 0.5) * 0.4)
                assert (low, height) == pytest.approx((mean[:k].sum(), mean[k]))
                place += 1
        assert uniform == pytest.approx((2, chance[q, :k].sum(), chance[q, k]))
    said = [t.get_text() for t in ax.get_legend().get_texts()]
    assert said[1] == ("fillers" if query == "answer" else "other fillers")


def test_single_fillers_are_told_apart_by_what_completes_their_pair():
    match = (RNG.random((8, 3)) < 0.5).astype(float)
    match[:, 2] = np.nan  # stands for no pair
    change = RNG.normal(size=(2, 3, 8))
    ds = xr.Dataset(
        {"slot_change": (("trunk", "slot", "prompt"), change), "slot_match": (("prompt", "slot"), match)},
        {"slot": [0, 1, 2], "trunk": ["filler", "none"]},
    )
    ax = plots.slot_effects(ds)
    points = [np.asarray(line.get_ydata(), dtype=float) for line in ax.lines if len(line.get_ydata()) == 3]
    assert len(points) == 2
    for wanted in (1, 0):
        mean = [change[0, s, match[:, s] == wanted].mean() if s < 2 else np.nan for s in range(3)]
        assert any(np.allclose(p, mean, equal_nan=True) for p in points), wanted
    text = [t.get_text() for t in ax.get_legend().get_texts()]
    first = change[0, 0, match[:, 0] == 1].mean()
    assert [p for p in points if np.isclose(p[0], first)]
    assert len(text) == 2


def test_accuracy_without_fillers_is_of_each_network():
    correct = (RNG.random((3, 2, 30)) < 0.6).astype(float)
    ds = xr.Dataset(
        {"correct": (("trunk", "intervention", "prompt"), correct), "majority": 0.55},
        {"trunk": TRUNKS, "intervention": ["none", "knock-out"]},
    )
    ax = plots.dot_ablation(ds)
    for t, trunk in enumerate(TRUNKS):
        (line,) = [x for x in ax.lines if x.get_label() == ARMS[trunk]]
        np.testing.assert_allclose(line.get_xdata(), correct[t].mean(1))
        assert np.round(line.get_ydata()).tolist() == [0, 1]
        segments = ax.collections[t].get_segments()
        for row, (a, b) in enumerate(segments):
            assert a[0] < correct[t, row].mean() < b[0]
    assert [x.get_xdata()[0] for x in ax.lines if x.get_linestyle() == ":"] == [0.55]
