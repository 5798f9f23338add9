"""Figures of the experiments give every panel its own result, its own control and its own level of chance."""

from functools import partial

import numpy as np
import pytest
import xarray as xr

from figures import fillers, inner_lexicon, routes, token_geometry
from tokinterp import plots


class Watched:
    """Plots that draw nothing and remember what they were given."""

    def __init__(self, monkeypatch):
        self.calls = []
        for name in ("curves", "rows"):
            monkeypatch.setattr(plots, name, partial(self.note, name))

    def note(self, kind, ds, names, *args, ax, **options):
        ax.plot([0, 1], [0, 1])
        self.calls.append((kind, ds.attrs["part"], names, options))

    def of(self, name):
        return [(part, options) for _, part, names, options in self.calls if names == name]


@pytest.mark.parametrize("networks", [("trained", "untrained"), ("untrained", "trained"), ("trained",)])
def test_the_inner_lexicon_is_the_trained_networks_and_the_untrained_one_lies_beside_it(networks, monkeypatch):
    """In whatever order the groups of a file are read."""
    watched = Watched(monkeypatch)
    parts = ("probe", "split", "canonicity", "pieces", "natural")
    names = [f"{m}/{p}" for m in networks for p in parts]
    results = {n: xr.Dataset(coords={"pieces": [1, 3, 4]}, attrs={"part": n}) for n in names}
    inner_lexicon.compose(xr.DataTree.from_dict(results))
    pair, attention = ["canonicity", "control"], ["attention", "control"]
    wanted = [
        ("probe", "accuracy"), ("split", "retrieved"), ("canonicity", pair), ("canonicity", "closer"),
        ("pieces", attention), ("pieces", attention),
    ]  # fmt: skip
    assert [(part, name) for _, part, name, _ in watched.calls] == [(f"trained/{p}", name) for p, name in wanted]
    for (_, _, _, options), (part, _) in zip(watched.calls, wanted, strict=True):
        assert options["label"] == "trained"
        other = options["other"]
        if len(networks) == 1:
            assert other is None
        else:
            assert {k: v.attrs["part"] for k, v in other.items()} == {"untrained": f"untrained/{part}"}
    assert [options["select"] for _, options in watched.of(attention)] == [{"pieces": 1}, {"pieces": 3}]


@pytest.mark.parametrize("segments", [True, False])
def test_fillers_are_drawn_beside_random_words_and_the_trained_network_beside_the_untrained(segments, monkeypatch):
    watched = Watched(monkeypatch)
    monkeypatch.setattr(fillers, "insertion_tests", lambda ds: ds)
    names = ["insertion", "verdict", "text_attention", "untrained_text_attention", "policies", "coverage", "windows"]
    parts = {n: xr.Dataset(attrs={"part": n}) for n in [*names, *(["segments"] if segments else [])]}
    parts["insertion"] = parts["insertion"].assign_coords(filler=["words", "dots"])
    for name in ("text_attention", "untrained_text_attention"):
        parts[name] = parts[name].assign_coords(query_set=["answer", "other"])
    if segments:
        parts["segments"] = parts["segments"].assign_coords(target=["first", "last"])
    for name, rows in (("interventions", ["knock-out", "mean", "only here"]), ("control", ["mean", "knock-out"])):
        parts[name] = xr.Dataset(coords={"intervention": rows}, attrs={"part": name})
    fillers.compose(xr.DataTree.from_dict(parts))
    first, second, third = watched.of("log_prob_change")
    assert [x[1]["select"]["placement"] for x in (first, second)] == ["post", "pre"]
    assert [x[1]["select"]["filler"] for x in (first, second)] == [["dots", "words"]] * 2
    part, options = third
    assert (part, options["label"]) == ("interventions", "dots")
    assert {k: v.attrs["part"] for k, v in options["other"].items()} == {"random words": "control"}
    assert [part for part, _ in watched.of("loss_change")] == ["policies"]
    assert [part for part, _ in watched.of("value")] == ["verdict"]
    ((part, options),) = watched.of("net_enrichment")
    assert (part, options["label"], options["select"]) == ("text_attention", "trained", {"query_set": "answer"})
    assert {k: v.attrs["part"] for k, v in options["other"].items()} == {"untrained": "untrained_text_attention"}
    assert [options["select"] for _, options in watched.of("explained")] == [{"target": "last"}] * segments
    assert [part for part, _ in watched.of("separator_share")] == ["coverage"] * (not segments)
    assert [part for part, _ in watched.of("kl")] == ["windows"]


def test_the_geometry_of_tokens_has_the_chance_of_its_own_neighbours():
    rng, nulls = np.random.default_rng(0), ["none", "shuffle:1", "shuffle:5", "untrained"]
    values = rng.random((4, 5, 3, 3))
    overlap = xr.Dataset(
        {"overlap": (("null", "prompt", "block", "k"), values), "chance": (("null", "k"), [[0.01, 0.05, 0.2]] * 4)},
        {"null": nulls, "block": [0, 1, 2], "k": [1, 5, 20]},
    )
    cosine = xr.Dataset(
        {"cosine_diagonal": (("null", "prompt", "layer"), rng.random((4, 5, 4)))},
        {"null": nulls, "layer": [0, 1, 2, 3]},
    )
    fig = token_geometry.compose(xr.DataTree.from_dict({"overlap": overlap, "cosine": cosine}))
    for ax, k, chance in zip(fig.axes[:2], (0, 2), (0.01, 0.2), strict=True):
        *curves, dotted = [line.get_ydata() for line in ax.lines]
        assert set(np.asarray(dotted).tolist()) == {chance}
        for n, curve in enumerate(curves):
            np.testing.assert_allclose(curve, values[n, :, :, k].mean(0))
        assert ax.get_ylabel().endswith(f"(k = {[1, 5, 20][k]})")
    for n, line in enumerate(fig.axes[2].lines):
        np.testing.assert_allclose(line.get_ydata(), cosine["cosine_diagonal"].values[n, :, 1:].mean(0))
        assert line.get_xdata().tolist() == [1, 2, 3]
    looks = token_geometry.looks_of(nulls)
    assert len({(str(x["color"]), x["ls"]) for x in looks.values()}) == 4
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ["text", "S = 1", "S = 5", "untrained network"]


def test_importance_of_trained_and_untrained_heads_has_one_scale():
    """Else the largest of an untrained network looks as large as that of the trained one."""
    rng, each = np.random.default_rng(0), ("null", "prompt", "block", "head")
    share = rng.random((2, 4, 2, 3)) * np.array([1.0, 0.1])[:, None, None, None]
    names = ("importance", "previous", "previous_control", "merge", "merge_control", "mlp_share", "eff_rank")
    data = {n: (each, share, {"long_name": n, "units": "1"}) for n in names}
    coords = {"null": ["none", "untrained"], "block": [0, 1], "head": [0, 1, 2]}
    ds = xr.Dataset(data, coords).expand_dims({"pieces": [2], "length": [8, 16]})
    ds = ds.assign({n: ds[n].isel(length=0) for n in names if n != "eff_rank"})
    ds = ds.assign({n: ds[n].isel(pieces=0) for n in names if not n.startswith("merge")})
    fig = routes.compose(xr.DataTree.from_dict({"routes": ds.drop_dims("length"), "rank": ds[["eff_rank"]]}))
    scales = [c.get_clim() for ax in fig.axes[:2] for c in (*ax.collections, *ax.images)]
    assert len(scales) == 2
    assert scales[0] == scales[1] == pytest.approx((0, share[0].mean(0).max()))
    drawn = [line.get_ydata() for line in fig.axes[2].lines if len(line.get_xdata()) == 2][:3:2]
    for y, one in zip(drawn, share, strict=True):  # chosen on the prompts with even numbers, drawn for the others
        np.testing.assert_allclose(y, one[1::2].mean(0)[[0, 1], one[::2].mean(0).argmax(1)])
