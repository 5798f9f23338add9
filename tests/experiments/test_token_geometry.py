"""The experiment on the geometry of tokens and the reproduction of released numbers, on a tiny model."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib.figure import Figure

import tokinterp as ti
from experiments import pile, reproduction, token_geometry
from experiments.last_normed import LastNormed
from experiments.record import write
from experiments.token_geometry_summary import sentences, summarise
from figures import token_geometry as figure
from tokinterp.stats.tests import false_discovery

pytestmark = pytest.mark.slow

TEXTS = [t.text for t in ti.bundled_texts()][:12]
NULLS = ["none", "shuffle:5", "random_ids", "untrained"]
SETTINGS = {"controls": NULLS[1:], "scales": (2, 4, 8), "k": (1, 5), "n_tokens": 100, "limit": 10, "progress": False}


@pytest.fixture(scope="module")
def model(tiny_folder):
    return ti.load_model(tiny_folder, device="cpu")


@pytest.fixture(scope="module")
def tree(model):
    return token_geometry.run(model, TEXTS, n_controls=9, **SETTINGS)


def plain(model, measurement, n=9, **options):
    prompts = token_geometry.make_prompts(model, TEXTS, 100, n)
    return ti.measure(model, prompts, {"m": measurement}, progress=False, **options)["m"].to_dataset()


# -- the experiment -------------------------------------------------------------------------------------------
def test_prompts_are_as_long_as_asked_and_have_no_bos(model):
    prompts = token_geometry.make_prompts(model, ["  short  ", *TEXTS], 100, 3)
    assert prompts.lengths == [100] * 3
    assert not prompts.bos
    assert not any(prompts.special(i).any() for i in range(3))
    assert token_geometry.make_prompts(model, TEXTS, 10**6).lengths[0] == model.info.max_tokens


def test_short_texts_can_be_joined_and_cut(model):
    texts = ["The Nile flows north to the sea. "] * 60
    with pytest.raises(ValueError, match="100"):
        token_geometry.make_prompts(model, texts, 100)
    prompts = token_geometry.make_prompts(model, texts, 100, 4, windows=True)
    assert prompts.lengths == [100] * 4
    assert len({prompts.ids(i).tobytes() for i in range(4)}) > 1


def test_every_part_lies_beside_its_controls(tree, model):
    ti.check(tree)
    assert set(token_geometry.PARTS) < set(tree.children)
    for part in token_geometry.PARTS:
        assert tree[part]["null"].values.tolist() == NULLS
        assert tree[part].sizes["prompt"] == 9
    text = plain(model, ti.geometry.IntrinsicDimension((2, 4, 8), tokens=0, small="nan"))
    np.testing.assert_array_equal(tree["dimension"]["dimension"].sel(null="none"), text["dimension"])
    blank = plain(ti.untrained(model), ti.lens.LogitLens(top=0, tokens=0))
    np.testing.assert_allclose(tree["lens"]["cross_entropy"].sel(null="untrained"), blank["cross_entropy"], rtol=1e-6)
    assert not np.allclose(*(tree["lens"]["cross_entropy"].sel(null=n) for n in ("none", "shuffle:5")))


def test_correlations_are_of_the_same_prompts_and_the_same_layer(tree, model):
    dimension, lens = (tree[n].to_dataset().sel(null="none") for n in ("dimension", "lens"))
    found = tree["correlation"].to_dataset().sel(null="none")
    assert found["layer"].values.tolist() == [1, 2, 3]
    assert (found["n"] == 9).all()
    loss = lens["cross_entropy"].sel(layer=3).isel(variant=0)
    r = np.corrcoef(np.log(dimension["dimension"].sel(layer=2, scale=4)), loss)[0, 1]
    assert float(found["pearson"].sel(layer=2, scale=4)) == pytest.approx(r, abs=1e-12)
    same = tree["entropy_correlation"].to_dataset().sel(null="none")
    for layer in (1, 2, 3):
        entropy = lens["entropy"].sel(layer=layer).isel(variant=0)
        r = np.corrcoef(np.log(dimension["dimension"].sel(layer=layer, scale=2)), entropy)[0, 1]
        assert float(same["pearson"].sel(layer=layer, scale=2)) == pytest.approx(r, abs=1e-12)
    p, q = (same[n].sel(scale=2) for n in ("pearson_p", "pearson_q"))
    np.testing.assert_allclose(q, false_discovery(p.values))


def test_controls_are_drawn_by_the_seed(model):
    settings = {**SETTINGS, "controls": ("random_ids",), "parts": ("lens",), "limit": 4}
    a, b = (token_geometry.run(model, TEXTS, seed=s, **settings)["lens"]["cross_entropy"] for s in (0, 1))
    np.testing.assert_array_equal(a.sel(null="none"), b.sel(null="none"))
    assert not np.allclose(a.sel(null="random_ids"), b.sel(null="random_ids"))


def test_text_has_more_prompts_than_its_controls(tree):
    assert (tree["correlation"]["n"] == 9).all()
    assert (tree["correlation_text"]["n"] == 10).all()
    assert tree.attrs["n_prompts"] == 10
    assert tree.attrs["n_common"] == 9


def test_a_second_call_reads_what_is_there(model, monkeypatch, tmp_path):
    settings = {**SETTINGS, "controls": ("shuffle:5",), "parts": ("cosine", "lens"), "out": tmp_path / "r.zarr"}
    tree = token_geometry.run(model, TEXTS, **settings)
    before = type(model).run

    def refuse(self, ids, *args, **options):
        assert ids.shape[1] < 100, "the model was run again"  # a loaded network is checked on a few tokens
        return before(self, ids, *args, **options)

    monkeypatch.setattr(type(model), "run", refuse)
    again = token_geometry.run(model, TEXTS, **settings)
    xr.testing.assert_equal(again["cosine"].to_dataset(), tree["cosine"].to_dataset())
    xr.testing.assert_equal(ti.read(tmp_path / "r.zarr")["lens"].to_dataset(), tree["lens"].to_dataset())


def test_parts_can_be_chosen_and_unknown_ones_are_refused(model):
    settings = {**SETTINGS, "controls": ("shuffle:5",)}
    tree = token_geometry.run(model, TEXTS, parts=("overlap",), **settings)
    assert set(tree.children) == {"overlap", "covariates"}
    assert isinstance(figure.draw(tree), Figure)
    with pytest.raises(ValueError, match="parts="):
        token_geometry.run(model, TEXTS, parts=("dimensions",), **settings)


def test_tuned_lens_is_compared_at_its_own_layer(model):
    prompts = token_geometry.make_prompts(model, TEXTS, 100, 9)
    lens = ti.lens.fit_tuned_lens(model, prompts, steps=0, progress=False)
    settings = {**SETTINGS, "controls": (), "parts": ("dimension",)}
    tree = token_geometry.run(model, TEXTS, tuned=lens, n_controls=9, **settings)
    asked = ti.lens.LogitLens(top=0, tokens=0, variants=("normed", "tuned"), tuned=lens)
    entropy = plain(model, asked)["entropy"].sel(variant="tuned", layer=1)
    dimension = tree["dimension"]["dimension"].sel(null="none", layer=1, scale=2)
    r = np.corrcoef(np.log(dimension), entropy)[0, 1]
    assert float(tree["tuned_correlation"]["pearson"].sel(layer=1, scale=2)) == pytest.approx(r, abs=1e-6)


def test_small_is_quick_and_needs_nothing(bundled):
    tree = token_geometry.run(bundled, parts=("cosine",), small=True, progress=False)
    assert tree["cosine"].sizes["null"] == 4


# -- the last layer after the norm ----------------------------------------------------------------------------
def test_last_layer_is_that_of_the_library(model):
    prompts = token_geometry.make_prompts(model, TEXTS, 20, 2)
    ids = torch.from_numpy(prompts.padded([0, 1])[0])
    with torch.no_grad():
        theirs = model.lm(ids, output_hidden_states=True)
    ours = ti.capture(LastNormed(model), prompts, [0, 1], ti.resid([2, 3]))
    torch.testing.assert_close(ours.resid(3), theirs.hidden_states[3])
    torch.testing.assert_close(ours.resid(2), theirs.hidden_states[2])
    torch.testing.assert_close(ours.unembed(ours.resid(3)), theirs.logits)


def test_last_normed_changes_the_last_layer_alone(model):
    settings = {**SETTINGS, "controls": ("untrained",), "parts": ("dimension", "cosine", "lens")}
    one, two = (token_geometry.run(model, TEXTS, last_normed=x, **settings) for x in (False, True))
    a, b = (tree["cosine"]["cosine"] for tree in (one, two))
    np.testing.assert_array_equal(a.sel(layer=[0, 1, 2]), b.sel(layer=[0, 1, 2]))
    assert not np.allclose(a.sel(layer=3), b.sel(layer=3))
    assert two["lens"]["layer"].values.tolist() == [3]
    last = one["lens"]["cross_entropy"].sel(layer=3)
    np.testing.assert_allclose(two["lens"]["cross_entropy"].sel(layer=3), last, rtol=1e-6)


# -- figure and record ----------------------------------------------------------------------------------------
def test_figure_shows_every_condition(tree):
    drawn = figure.draw(tree)
    assert isinstance(drawn, Figure)
    assert drawn.get_size_inches()[0] <= 7
    assert len(drawn.axes) == 9
    (legend,) = drawn.legends
    names = [t.get_text() for t in legend.get_texts()]
    assert names == ["text", "S = 5", "random ids", "untrained network"]
    text = tree["dimension"]["dimension"].sel(null="none", scale=2).mean("prompt")[1:]
    np.testing.assert_allclose(drawn.axes[0].lines[0].get_ydata(), text)


def test_record_keeps_the_numbers(tree, tmp_path):
    record = summarise(tree)
    file = write(record, tmp_path / "a" / "record.json")
    read = json.loads(file.read_text())
    mean = tree["dimension"]["dimension"].sel(null="shuffle:5", scale=4).mean("prompt")[1:]
    np.testing.assert_allclose(read["dimension"]["shuffle:5"]["mean"]["4"], mean, rtol=1e-3)
    np.testing.assert_allclose(read["overlap"]["chance"]["5"], 5 / 99, rtol=1e-3)
    assert read["sizes"] == {"n_prompts": 10, "n_common": 9, "n_tokens": 100}
    best = read["dimension"]["none"]["peak"]["2"]
    assert best["value"] == max(read["dimension"]["none"]["mean"]["2"])
    said = list(sentences(record))
    assert any("higher under S = 5" in line for line in said)
    assert file.stat().st_size < 60_000


# -- the texts of the paper -----------------------------------------------------------------------------------
def test_texts_must_be_long_under_every_tokenizer(model, bundled):
    texts = ["the and to in " * 6, "xyzzy plugh " * 6, "a"]
    counts = {m: [len(m.tokenizer(t.strip(), add_special_tokens=False)["input_ids"]) for t in texts]
              for m in (model, bundled)}  # fmt: skip
    for n in (5, 20, 35, 60):
        wanted = [i for i in range(3) if all(c[i] >= n for c in counts.values())]
        if wanted:
            assert pile.long_in_all([t.strip() for t in texts], list(counts), n).tolist() == wanted


def test_another_selection_is_named():
    same = [*pile.FIRST, *range(100, 100 + pile.COUNT - len(pile.FIRST) - 1), pile.LAST]
    assert pile.difference_from_authors(same) == ""
    assert "2243" in pile.difference_from_authors(same[1:])
    assert "9997" in pile.difference_from_authors([*same[:-1], 9997])


# -- reproduction ---------------------------------------------------------------------------------------------
def own_targets(tree):
    """Our own values, in the form of the targets."""
    dimension, lens, correlation = (tree[n].to_dataset() for n in ("dimension", "lens", "correlation"))
    loss = lens["cross_entropy"].isel(layer=0, variant=0)
    mean = dimension["dimension"].mean("prompt").sel(layer=[1, 2, 3])
    return {
        "loss": {"mean": float(loss.mean()), "std": float(loss.std())},
        "dimension": {str(n): mean.sel(scale=n).values.tolist() for n in (2, 4)},
        "pearson": {"4": correlation["pearson"].sel(scale=4).values.tolist()},
        "documents": {
            "70": {
                "loss": float(loss[7]),
                "dimension": {"2": dimension["dimension"].sel(scale=2).values[7, 1:].tolist()},
            }
        },
    }


@pytest.fixture(scope="module")
def reproduced(model):
    options = {"documents": np.arange(12) * 10, "n_tokens": 100, "scales": (2, 4), "progress": False}
    targets = own_targets(reproduction.run(model, TEXTS, **options))
    return options, targets


def test_own_values_as_targets_differ_by_nothing(reproduced, model):
    options, targets = reproduced
    tree = reproduction.run(model, TEXTS, targets=targets, **options)
    ds = tree["comparison"].to_dataset()
    assert ds.sizes["target"] == 2 + 6 + 3 + 1 + 3
    np.testing.assert_allclose(ds["difference"], 0, atol=1e-6)
    assert "15 of 15 within 0.05, 0 not measured" in reproduction.table(tree)


def test_a_wrong_value_is_marked_with_its_layer(reproduced, model, tmp_path):
    options, targets = reproduced
    targets = json.loads(json.dumps(targets))
    targets["dimension"]["4"][1] += 0.5
    targets["documents"]["70"]["loss"] -= 0.25
    targets["dimension"]["64"] = [3.0]
    tree = reproduction.run(model, TEXTS, targets=targets, out=tmp_path / "r.zarr", **options)
    lines = reproduction.table(tree).splitlines()
    marked = [line.split() for line in lines if line.endswith("*")]
    assert [m[:4] for m in marked] == [["dimension", "mean", "4", "2"], ["dimension", "mean", "64", "1"],
                                       ["loss", "text", "70", marked[2][3]]]  # fmt: skip
    assert [m[-2] for m in marked] == ["-0.500", "+nan", "+0.250"]
    assert "13 of 16 within 0.05, 1 not measured, largest difference 0.500" in lines[-1]
    xr.testing.assert_equal(ti.read(tmp_path / "r.zarr")["comparison"].to_dataset(), tree["comparison"].to_dataset())


def test_targets_are_those_of_twelve_blocks(model):
    targets = reproduction.read_targets()
    assert {"openai-community/gpt2", "EleutherAI/pythia-160m-deduped"} <= set(targets)
    for one in targets.values():
        rows = [*one.get("dimension", {}).values(), *one.get("pearson", {}).values()]
        assert all(len(row) == 12 for row in rows)
        assert one["n_prompts"] == pile.COUNT
    tree = reproduction.run(model, TEXTS[:9], n_tokens=50, scales=(2,), progress=False)
    assert "no target is known" in reproduction.table(tree)


def test_documents_must_fit_the_texts(model):
    with pytest.raises(ValueError, match="2 documents for 3 texts"):
        reproduction.run(model, TEXTS[:3], documents=[1, 2], n_tokens=50)


def test_a_special_token_inside_a_text_is_a_token_like_any_other(model):
    """The authors leave none out."""
    texts = [t[:60] + "<s>" + t[60:] for t in TEXTS[:3]]
    tree = reproduction.run(model, texts, n_tokens=90, scales=(2,), progress=False)
    assert (tree["dimension"]["n_points"] == 90).all()


@pytest.mark.parametrize("which", ["all", "two"])
def test_one_command_prints_target_value_and_difference_of_every_layer(model, which, monkeypatch, tmp_path, capsys):
    row = [1.5, 2.5, 3.5]
    targets = {
        "loss": {"mean": 5.0, "std": 1.0}, "dimension": {"2": row, "4": row}, "pearson": {"2": [0.1, 0.2, 0.3]},
        "documents": {"4": {"loss": 5.0, "dimension": {"2": row}}},
    }  # fmt: skip
    loaded = []
    monkeypatch.setattr(reproduction, "read_targets", lambda: {"hub/tiny": targets})
    monkeypatch.setattr(ti, "load_model", lambda name, **options: loaded.append((name, options)) or model)
    monkeypatch.setattr(pile, "read_pile", lambda: [t[:400] for t in TEXTS])
    monkeypatch.setattr(pile, "long_in_all", lambda texts, tokenizers: np.arange(1, 11))
    arguments = ["reproduction", "--model", "hub/tiny", "--out", str(tmp_path / "r.zarr")]
    monkeypatch.setattr("sys.argv", arguments + (["--documents", "4,7"] if which == "two" else []))
    reproduction.main()
    assert loaded == [("hub/tiny", {"dtype": "float32", "device": None})]
    lines = capsys.readouterr().out.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("quantity"))
    assert ("note: 10 texts" in lines[0]) == (which == "all")
    table = [line.rstrip(" *").split() for line in lines[head + 1 : -1]]
    ds = ti.read(tmp_path / "r_tiny.zarr")["dimension"].to_dataset()
    assert ds["document"].values.tolist() == ([4, 7] if which == "two" else list(range(1, 11)))
    every = {"all": ["loss"] * 2 + ["dimension"] * 6 + ["pearson"] * 3, "two": []}[which]
    assert [line[0] for line in table] == [*every, "loss", "dimension", "dimension", "dimension"]
    for line in table:
        target, value, difference = map(float, line[-3:])
        assert abs(value - target - difference) <= 0.0016
    ours = ds["dimension"].sel(scale=2, prompt=ds["prompt"][ds["document"] == 4][0], layer=[1, 2, 3]).values
    np.testing.assert_allclose([float(line[-2]) for line in table[-3:]], ours, atol=6e-4)
    assert [line[-4] for line in table[-3:]] == ["1", "2", "3"]
