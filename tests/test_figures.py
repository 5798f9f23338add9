"""Figures of the experiments give every panel its own result, its own control and its own level of chance."""

from functools import partial

import numpy as np
import pytest
import xarray as xr

from figures import fillers, inner_lexicon, token_geometry
from tokinterp import plots


class Watched:
    """Plots that draw nothing and remember what they were given."""

    def __init__(self, monkeypatch, *names):
        self.calls = []
        for name in names:
            monkeypatch.setattr(plots, name, partial(self.note, name))

    def note(self, name, ds, *args, ax, **options):
        ax.plot([0, 1], [0, 1])
        self.calls.append((name, ds.attrs["part"], args, options))

    def of(self, name):
        return [(part, args, options) for called, part, args, options in self.calls if called == name]


LEXICON = ("word_accuracy", "retrieval_by_layer", "canonicity_by_layer", "piece_attention")


@pytest.mark.parametrize("networks", [("trained", "untrained"), ("untrained", "trained"), ("trained",)])
def test_the_inner_lexicon_is_the_trained_networks_and_the_untrained_one_lies_beside_it(networks, monkeypatch):
    """In whatever order the groups of a file are read."""
    watched = Watched(monkeypatch, *LEXICON)
    parts = ("probe", "split", "canonicity", "pieces", "natural")
    names = [f"{m}/{p}" for m in networks for p in parts]
    results = {n: xr.Dataset(coords={"pieces": [1, 3, 4]}, attrs={"part": n}) for n in names}
    inner_lexicon.compose(xr.DataTree.from_dict(results))
    panels = [(name, part) for name, part, _, _ in watched.calls]
    drawn = ("probe", "split", "canonicity", "canonicity", "pieces", "pieces")
    names = (LEXICON[0], LEXICON[1], LEXICON[2], LEXICON[1], LEXICON[3], LEXICON[3])
    assert panels == [(name, f"trained/{part}") for name, part in zip(names, drawn, strict=True)]
    for (_, part, _, options), wanted in zip(watched.calls, drawn, strict=True):
        assert options["label"] == "trained"
        assert part == f"trained/{wanted}"
        other = options["other"]
        if len(networks) == 1:
            assert other is None
        else:
            assert {k: v.attrs["part"] for k, v in other.items()} == {"untrained": f"untrained/{wanted}"}
    assert [args for _, args, _ in watched.of("piece_attention")] == [(1,), (3,)]


FILLERS = (
    "insertion_curves", "intervals", "evidence", "attention_by_block", "explained_by_source", "coverage_by_block",
    "hidden_in_windows",
)  # fmt: skip


@pytest.mark.parametrize("segments", [True, False])
def test_fillers_are_drawn_beside_random_words_and_the_trained_network_beside_the_untrained(segments, monkeypatch):
    watched = Watched(monkeypatch, *FILLERS)
    names = ["insertion", "verdict", "text_attention", "untrained_text_attention", "policies", "coverage", "windows"]
    parts = {n: xr.Dataset(attrs={"part": n}) for n in [*names, *(["segments"] if segments else [])]}
    parts["insertion"] = parts["insertion"].assign_coords(filler=["words", "dots"])
    for name, rows in (("interventions", ["knock-out", "mean", "only here"]), ("control", ["mean", "knock-out"])):
        parts[name] = xr.Dataset(coords={"intervention": rows}, attrs={"part": name})
    fillers.compose(xr.DataTree.from_dict(parts))
    first, second = watched.of("insertion_curves")
    assert [x[2].get("placement", "post") for x in (first, second)] == ["post", "pre"]
    assert first[2]["kinds"] == second[2]["kinds"] == ["dots", "words"]
    (part, _, options), (policies, _, _) = watched.of("intervals")
    assert (part, options["other"].attrs["part"]) == ("interventions", "control")
    assert options["labels"] == ("dots", "random words")
    assert policies == "policies"
    ((part, _, options),) = watched.of("attention_by_block")
    other = options["other"].attrs
    assert (part, options["label"]) == ("text_attention", "trained")
    assert (other["part"], other["model"]) == ("untrained_text_attention", "untrained")
    assert [x[0] for x in watched.of("explained_by_source")] == ["segments"] * segments
    assert [x[0] for x in watched.of("coverage_by_block")] == ["coverage"] * (not segments)
    assert [x[0] for x in watched.of("hidden_in_windows")] == ["windows"]


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
