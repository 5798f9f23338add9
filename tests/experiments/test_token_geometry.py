"""The experiment on the geometry of tokens and the reproduction of released numbers, on a tiny model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib.figure import Figure
from with_model import as_tree, settings

import tokinterp as ti
from experiments import token_geometry
from experiments.parts.last_normed import LastNormed
from experiments.runner.claims import evaluate
from figures import token_geometry as figure
from tokinterp.stats.tests import false_discovery

pytestmark = pytest.mark.slow

TEXTS = [t.text for t in ti.bundled_texts()][:12]
NULLS = ["none", "shuffle:5", "random_ids", "untrained"]
SETTINGS = {"controls": NULLS[1:], "scales": (2, 4, 8), "k": (1, 5), "n_tokens": 100, "limit": 10}


@pytest.fixture(scope="module")
def model(tiny_folder):
    return ti.load_model(tiny_folder, device="cpu")


def ran(model, kept=None, texts=TEXTS, **changes):
    p = settings(token_geometry.Settings(), model, texts, **{**SETTINGS, **changes})
    return as_tree(token_geometry.run(p, kept))


@pytest.fixture(scope="module")
def tree(model):
    return ran(model, n_controls=9)


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
    texts = [f"The Nile flows north to the sea {n}. " for n in range(60)]
    with pytest.raises(ValueError, match="100"):
        token_geometry.make_prompts(model, texts, 100)
    prompts = token_geometry.make_prompts(model, texts, 100, 4, windows=True)
    assert prompts.lengths == [100] * 4
    assert len({prompts.ids(i).tobytes() for i in range(4)}) > 1


def test_joined_texts_are_many_documents_so_that_there_are_intervals(model):
    texts = [f"The Nile flows north to the sea {n}. " for n in range(60)]
    short = token_geometry.make_prompts(model, texts, 100, 4, windows=True)
    assert short.documents.tolist() == [0, 1, 2, 3]
    long = token_geometry.make_prompts(model, [" ".join(texts[:20]), *texts], 100, 4, windows=True)
    assert len(set(long.documents[:2].tolist())) == 1  # a long text is one document, with nothing joined to it
    p = token_geometry.PRESETS["bundled"]
    every = token_geometry.make_prompts(p.lm, p.read(), p.n_tokens, p.limit, p.windows)
    assert len(set(every.documents.tolist())) == p.limit


def test_windows_of_a_text_belong_together_under_every_null(model):
    asked = {
        "texts": [t[:400] for t in TEXTS[:2]],
        "parts": ("cosine", "lens", "dimension"),
        "controls": ("shuffle:5",),
    }
    found = ran(model, windows=True, n_tokens=50, limit=None, **asked)
    assert len(set(found["cosine"]["document"].values.tolist())) == 2
    assert (found["correlation"]["n_groups"] == 2).all()
    (row,) = [r for r in evaluate(token_geometry.CLAIMS, record_of(found)) if "mean cosine" in r["claim"]]
    assert row["verdict"] == "no interval"  # of two texts, however many windows they have


def test_without_controls_their_claims_are_not_measured_and_the_others_are(model):
    found = record_of(ran(model, controls=(), parts=("dimension", "lens")))
    rows = {r["claim"]: r for r in evaluate(token_geometry.CLAIMS, found)}
    assert rows["shuffling raises the loss"]["verdict"] == "not measured"
    assert "shuffle:5" in next(iter(rows["shuffling raises the loss"]["numbers"]))
    assert rows["the dimension has a peak at mid-depth"]["verdict"] in ("yes", "no", "not shown")


def record_of(tree):
    return {n: node.to_dataset(inherit=False) for n, node in tree.children.items()}


def test_every_part_lies_beside_its_controls(tree, model):
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
    asked = {"controls": ("random_ids",), "parts": ("lens",), "limit": 4}
    a, b = (ran(model, seed=s, **asked)["lens"]["cross_entropy"] for s in (0, 1))
    np.testing.assert_array_equal(a.sel(null="none"), b.sel(null="none"))
    assert not np.allclose(a.sel(null="random_ids"), b.sel(null="random_ids"))


def test_text_has_more_prompts_than_its_controls(tree):
    assert (tree["correlation"]["n"] == 9).all()
    assert (tree["correlation_text"]["n"] == 10).all()


def test_a_second_call_reads_what_is_there(model, monkeypatch, tmp_path):
    asked = {"controls": ("shuffle:5",), "parts": ("cosine", "lens")}
    tree = ran(model, tmp_path, **asked)
    before = type(model).run

    def refuse(self, ids, *args, **options):
        assert ids.shape[1] < 100, "the model was run again"  # a loaded network is checked on a few tokens
        return before(self, ids, *args, **options)

    monkeypatch.setattr(type(model), "run", refuse)
    again = ran(model, tmp_path, **asked)
    xr.testing.assert_equal(again["cosine"].to_dataset(), tree["cosine"].to_dataset())


def test_parts_can_be_chosen_and_unknown_ones_are_refused(model):
    tree = ran(model, controls=("shuffle:5",), parts=("overlap",))
    assert set(tree.children) == {"overlap", "covariates"}
    assert isinstance(figure.compose(tree), Figure)
    with pytest.raises(ValueError, match="parts="):
        ran(model, controls=("shuffle:5",), parts=("dimensions",))


def test_tuned_lens_is_compared_at_its_own_layer(model, tmp_path):
    prompts = token_geometry.make_prompts(model, TEXTS, 100, 9)
    lens = ti.lens.fit_tuned_lens(model, prompts, steps=0, progress=False)
    lens.save(tmp_path / "lens.safetensors")
    tree = ran(model, controls=(), parts=("dimension",), tuned=str(tmp_path / "lens.safetensors"), n_controls=9)
    asked = ti.lens.LogitLens(top=0, tokens=0, variants=("normed", "tuned"), tuned=lens)
    entropy = plain(model, asked)["entropy"].sel(variant="tuned", layer=1)
    dimension = tree["dimension"]["dimension"].sel(null="none", layer=1, scale=2)
    r = np.corrcoef(np.log(dimension), entropy)[0, 1]
    assert float(tree["tuned_correlation"]["pearson"].sel(layer=1, scale=2)) == pytest.approx(r, abs=1e-6)


# -- the last layer after the norm ----------------------------------------------------------------------------
def test_last_layer_is_that_of_the_library(model):
    prompts = token_geometry.make_prompts(model, TEXTS, 20, 2)
    ids = torch.from_numpy(prompts.padded([0, 1])[0])
    with torch.no_grad():
        theirs = model.lm(ids, output_hidden_states=True)
    ours = ti.capture(LastNormed(model), prompts, [0, 1], ti.resid([2, 3]))
    torch.testing.assert_close(ours.resid(3), theirs.hidden_states[3])
    torch.testing.assert_close(ours.resid(2), theirs.hidden_states[2])
    torch.testing.assert_close(LastNormed(model).unembed(ours.resid(3)), theirs.logits)


def test_last_normed_changes_the_last_layer_alone(model):
    asked = {"controls": ("untrained",), "parts": ("dimension", "cosine", "lens")}
    one, two = (ran(model, last_normed=x, **asked) for x in (False, True))
    a, b = (tree["cosine"]["cosine"] for tree in (one, two))
    np.testing.assert_array_equal(a.sel(layer=[0, 1, 2]), b.sel(layer=[0, 1, 2]))
    assert not np.allclose(a.sel(layer=3), b.sel(layer=3))
    assert two["lens"]["layer"].values.tolist() == [3]
    last = one["lens"]["cross_entropy"].sel(layer=3)
    np.testing.assert_allclose(two["lens"]["cross_entropy"].sel(layer=3), last, rtol=1e-6)


# -- figure and record ----------------------------------------------------------------------------------------
def test_figure_shows_every_condition(tree):
    drawn = figure.compose(tree)
    assert isinstance(drawn, Figure)
    assert drawn.get_size_inches()[0] <= 7
    assert len(drawn.axes) == 9
    (legend,) = drawn.legends
    names = [t.get_text() for t in legend.get_texts()]
    assert names == ["text", "S = 5", "random ids", "untrained network"]
    text = tree["dimension"]["dimension"].sel(null="none", scale=2).mean("prompt")[1:]
    np.testing.assert_allclose(drawn.axes[0].lines[0].get_ydata(), text)


# -- the texts of the paper -----------------------------------------------------------------------------------
def test_texts_must_be_long_under_every_tokenizer(model, bundled):
    texts = ["the and to in " * 6, "xyzzy plugh " * 6, "a"]
    counts = {m: [len(m.tokenizer(t.strip(), add_special_tokens=False)["input_ids"]) for t in texts]
              for m in (model, bundled)}  # fmt: skip
    for n in (5, 20, 35, 60):
        wanted = [i for i in range(3) if all(c[i] >= n for c in counts.values())]
        if wanted:
            assert token_geometry.long_in_all([t.strip() for t in texts], list(counts), n).tolist() == wanted


# -- claims ---------------------------------------------------------------------------------------------------
def test_claims_are_means_and_differences_of_the_conditions(tree):
    results = {n: node.to_dataset() for n, node in tree.children.items()}
    rows = {row["claim"]: row for row in evaluate(token_geometry.CLAIMS, results)}
    value = tree["dimension"]["dimension"]
    highest = value.sel(scale=4)[..., 1:].max("layer")
    numbers = rows["shuffling raises the dimension at n2 = 4"]["numbers"]
    wanted = float((highest.sel(null="shuffle:5") - highest.sel(null="none")).mean())
    assert numbers["S = 5 less text"]["value"] == pytest.approx(wanted)
    assert numbers["untrained"]["value"] == pytest.approx(float(highest.sel(null="untrained").mean()))
    curve = rows["the dimension has a peak at mid-depth"]["numbers"]
    np.testing.assert_allclose(curve["text by layer"]["curve"], value.sel(null="none", scale=4).mean("prompt")[1:])
    middle = value.sel(null="none", scale=4, layer=1) - value.sel(null="none", scale=4, layer=3)
    assert curve["middle less last layer"]["value"] == pytest.approx(float(middle.mean()))
    loss = tree["lens"]["cross_entropy"].isel(layer=-1, variant=0)
    numbers = rows["shuffling raises the loss"]["numbers"]
    assert numbers["S = 5 less text"]["value"] == pytest.approx(
        float((loss.sel(null="shuffle:5") - loss.sel(null="none")).mean())
    )
    last = tree["correlation"].to_dataset().sel(null="none", scale=4, layer=3)
    number = rows["log dimension goes with the loss over prompts"]["numbers"]["text"]
    assert number["value"] == pytest.approx(float(last["pearson"]))
    assert number["interval"] == pytest.approx(last["pearson_interval"].values.tolist())
    overlap = tree["overlap"]["overlap"].sel(k=1)
    number = rows["high overlap is no sign of learning"]["numbers"]["untrained less text"]["value"]
    assert number == pytest.approx(float((overlap.sel(null="untrained") - overlap.sel(null="none")).mean()))
    number = rows["neighbours overlap more with depth"]["numbers"]["last less first"]["value"]
    assert number == pytest.approx(float(overlap.sel(null="none").isel(block=[0, -1]).diff("block").mean()))


def test_released_numbers_are_compared_layer_by_layer_and_only_of_the_same_prompts(tree, monkeypatch):
    results = {n: node.to_dataset() for n, node in tree.children.items()}
    own = results["dimension"]["dimension"].sel(null="none", scale=2)
    wanted = own.mean("prompt").values[1:] + np.array([0.01, -0.3, 0])
    few = token_geometry.largest_difference(results, "dimension", wanted)
    assert np.isnan(few["largest difference"].value)  # nine prompts, where the authors have 2,244
    monkeypatch.setattr(token_geometry, "COUNT", 9)
    found = token_geometry.largest_difference(results, "dimension", wanted)
    assert found["largest difference"].value == pytest.approx(0.3)
    r = results["correlation"]["pearson"].sel(null="none", scale=4).values
    assert token_geometry.largest_difference(results, "pearson", r, 4)["largest difference"].value == 0
    loss = results["lens"]["cross_entropy"].sel(null="none").isel(layer=-1, variant=0)
    assert token_geometry.largest_difference(results, "loss", [float(loss.mean()) + 1])["largest difference"].value == (
        pytest.approx(1)
    )
    one = token_geometry.largest_difference(results, "dimension", own.values[7, 1:], 2, text=7)
    assert one["largest difference"].value == 0
    assert np.isnan(token_geometry.largest_difference(results, "loss", [1.0], text=70)["largest difference"].value)


def test_released_numbers_are_those_of_twelve_blocks_and_of_their_model():
    claims = token_geometry.released()
    assert {"openai-community/gpt2", "EleutherAI/pythia-160m-deduped"} <= {c.model for c in claims}
    for claim in claims:
        wanted = claim.numbers.keywords["wanted"]
        assert len(wanted) == (1 if claim.says.startswith("loss") else 12)
        assert claim.near == (0, 0.05)
    of_gpt2 = {row["claim"] for row in evaluate(claims, {}, "openai-community/gpt2")}
    assert not of_gpt2  # nothing was measured


def test_a_special_token_inside_a_text_is_a_token_like_any_other_if_none_is_left_out(model):
    texts = [t[:60] + "<s>" + t[60:] for t in TEXTS[:3]]
    found = ran(model, texts=texts, n_tokens=90, scales=(2,), parts=("dimension",), controls=(), exclude=())
    assert (found["dimension"]["n_points"] == 90).all()
    assert found["dimension"]["number"].values.tolist() == [0, 1, 2]
    two = ran(model, n_tokens=50, scales=(2,), parts=("dimension",), controls=(), numbers=(4, 7))
    assert two["dimension"]["number"].values.tolist() == [4, 7]
