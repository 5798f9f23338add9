"""The experiment of LLM-Microscope on a tiny model: what it says it measures, its controls, its record and figure."""

from collections import Counter

import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib.figure import Figure
from with_model import as_tree, settings

import tokinterp as ti
from experiments import microscope
from experiments.bench import microscope as bench
from experiments.parts import microscope as microscope_parts
from experiments.runner.claims import evaluate
from figures import microscope as figure
from tokinterp import plots
from tokinterp.lens import fit as tuned_lens_fit
from tokinterp.text import shuffle_blocks

pytestmark = pytest.mark.slow

TEXTS = [t.text for t in ti.bundled_texts("story")[:9]]
ITEMS = [
    ti.behaviour.Item("The Nile is a", ("river", "mountain"), 0),
    ti.behaviour.Item("A dog, they say, is an", ("animal", "tree"), 0),
]


@pytest.fixture(scope="module")
def model(tiny_folder):
    return ti.load_model(tiny_folder, device="cpu")


def asked(model, **changes):
    sizes = {"n_tokens": 120, "limit": 16, "max_prefix": 16, "steps": 2, "lens_prompts": 4, "removal_prompts": 4}
    sizes["controls"] = ("shuffle:5", "untrained")
    return settings(microscope.PRESETS["tiny"], model, TEXTS, **{**sizes, **changes})


@pytest.fixture(scope="module")
def results(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages")
    p = asked(model, mmlu="questions")
    p.questions = lambda: ITEMS
    return folder, as_tree(microscope.run(p, folder))


def test_every_part_lies_beside_its_controls(results):
    _, tree = results
    nulls = ["none", "shuffle:5", "untrained"]
    for name, node in tree.children.items():
        expected = {"mmlu": ["none", "untrained"], "linearity_spread": ["none"]}.get(name, nulls)
        assert node.to_dataset()["null"].values.tolist() == expected, name
    names = {
        "linearity",
        "linearity_all",
        "linearity_spread",
        "spectrum",
        "nonlinearity",
        "recall",
        "memory",
        "lens",
        "removal",
        "mmlu",
    }
    assert names < set(tree.children)
    text, shuffled = (tree["lens"]["cross_entropy"].sel(null=n, variant="normed") for n in nulls[:2])
    assert not np.allclose(text, shuffled)
    drop = tree["removal"]["n_removed"]
    np.testing.assert_allclose(drop.sel(subset="random").sum(), drop.sel(subset="condition").sum(), rtol=0.1)


def test_what_is_trained_on_is_other_text_under_the_same_condition(model, monkeypatch):
    seen = {}

    def lens(case, p):
        seen[case.null] = case.prompts, case.texts()
        lens = {"lens": ti.lens.LogitLens(top=0, tokens=0)}
        return {"lens": ti.measure(case.model, case.prompts, lens, progress=False)["lens"].to_dataset()}

    monkeypatch.setattr(microscope_parts, "lens", lens)
    microscope.run(asked(model, parts=("lens",), controls=("shuffle:5",)))
    (text, train), (shuffled, mixed) = seen["none"], seen["shuffle:5"]
    measured = {text.document_text(int(d)) for d in text.documents}
    assert measured <= {*TEXTS[:6]}
    assert {train.document_text(int(d)) for d in train.documents} <= {*TEXTS[6:]}
    for plain, moved in ((text, shuffled), (train, mixed)):
        assert plain.lengths == moved.lengths
        assert plain.hash != moved.hash
        assert all(sorted(plain.ids(i)) == sorted(moved.ids(i)) for i in range(len(plain)))


def test_the_published_linearity_is_that_of_all_rows(results, model):
    _, tree = results
    texts = TEXTS[: len(TEXTS) * 2 // 3]
    prompts = microscope.make_prompts(model, texts, 0, 120, 40, 16, 0)
    direct = ti.measure(model, prompts, {"l": ti.linearity.Linearity(exclude=())}, progress=False)["l"]["linearity"]
    np.testing.assert_allclose(tree["linearity_all"]["linearity"].sel(null="none"), direct)
    assert not np.allclose(tree["linearity"]["linearity"].sel(null="none"), direct)


def test_claims_and_figure_hold_the_numbers_of_their_condition(results, tmp_path):
    _, tree = results
    rows = {r["claim"]: r["numbers"] for r in evaluate(
        microscope.CLAIMS, {n: node.to_dataset() for n, node in tree.children.items()})}  # fmt: skip
    assert len(rows) == len(microscope.CLAIMS)
    every, own = (tree[n].to_dataset() for n in ("linearity_all", "linearity"))
    numbers = rows["blocks are nearly linear maps"]
    for label, null in (("text", "none"), ("untrained", "untrained")):
        assert numbers[label]["value"] == pytest.approx(float(every["linearity"].sel(null=null).mean()))
    held_out = float(own["linearity_held_out"].sel(null="none").mean())
    assert numbers["held out, no massive rows"]["value"] == pytest.approx(held_out)
    loss = tree["lens"]["cross_entropy"].sel(null="none").isel(layer=2)
    change = (loss.sel(variant="normed") - loss.sel(variant="tuned")).mean()
    numbers = rows["a lens says more with a fitted reader"]
    assert numbers["text, normed less tuned"]["value"] == pytest.approx(float(change))
    accuracy = tree["mmlu"].to_dataset().sel(null="none", variant="stop words")
    wanted = float(accuracy["accuracy"] - accuracy["accuracy_original"])
    assert rows["answers to questions get worse without stop words"]["text"]["value"] == pytest.approx(wanted)
    effect = tree["nonlinearity"].to_dataset().sel(subset="stop word", null="shuffle:5")
    number = rows["stop words are more linear than other tokens"]["shuffle:5"]
    assert number["value"] == pytest.approx(float(effect["effect"]))
    drawn = figure.compose(tree)
    assert isinstance(drawn, Figure)
    assert len(drawn.axes) == len(figure.PANELS)
    assert all(ax.get_xlabel() or ax.get_ylabel() for ax in drawn.axes)
    assert plots.save(drawn, tmp_path / "microscope.pdf").stat().st_size > 1000


def test_a_second_run_reads_what_was_measured(results, model, monkeypatch):
    folder, tree = results

    def never(*args, **options):
        raise AssertionError("measured again")

    monkeypatch.setattr(ti.behaviour, "surviving_loss", never)
    monkeypatch.setattr(tuned_lens_fit, "_closed_form", never)
    again = microscope.run(asked(model, parts=("memory", "lens", "removal"), controls=("shuffle:5",)), folder)
    for name in ("memory", "memory_correlation", "lens", "removal"):
        xr.testing.assert_equal(again[name], tree[name].to_dataset().isel(null=slice(2)))


def test_part_of_the_result_gives_part_of_the_figure(results):
    _, tree = results
    part = xr.DataTree.from_dict({"lens": tree["lens"].to_dataset()})
    assert len(figure.compose(part).axes) == 2


def test_classes_move_with_their_tokens(model):
    prompts = ti.Prompts.from_texts(["The cat saw a dog, and an owl."] * 2, model)
    labels = microscope_parts.labels_of(prompts)
    strings = [s.strip().lower() for i in range(2) for s in prompts.strings(i)]
    assert all(
        (c == "article") == (s in ("the", "a", "an")) for s, c in zip(strings, labels, strict=True) if len(s) > 1
    )
    shuffled = shuffle_blocks(prompts, 5)
    moved = microscope_parts.Case(model, shuffled, "shuffle:5", labels).moved()
    assert Counter(zip(prompts.token_ids.tolist(), labels.tolist(), strict=True)) == Counter(
        zip(shuffled.token_ids.tolist(), moved.tolist(), strict=True)
    )
    assert (moved != labels).any()


def test_what_position_explains_is_not_left_at_equal_position():
    rng = np.random.default_rng(0)
    position = np.tile(np.arange(1, 17), 40)
    places = {"token_prompt": ("token", np.repeat(np.arange(40), 16)), "position": ("token", position)}
    x, y = (xr.DataArray(position + rng.normal(size=640), dims="token", coords=places, name=n) for n in "xy")
    found = microscope_parts.correlate(x, y, xr.Dataset())["pearson"]
    assert float(found.sel(variant="published")) > 0.9
    assert abs(float(found.sel(variant="equal position"))) < 0.12


def test_chunks_are_those_of_the_recipe(model):
    first, second = (microscope.make_prompts(model, TEXTS, 3, 256, None, None, seed) for seed in (0, 0))
    assert first.hash == second.hash
    assert len(first) == 3
    assert all(len(first.document_text(int(d))) == microscope.CHARACTERS for d in first.documents)


def test_unknown_part_is_refused(model):
    with pytest.raises(ValueError, match="'lense' is none of linearity"):
        microscope.run(asked(model, parts=("lense",)))


def test_the_literal_functions_of_the_benchmark_give_what_they_say():
    cloud = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    wide = cloud @ torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    assert abs(bench.two_nn(wide) - 3) < 0.6
    assert abs(bench.overlap(wide, wide) - 1) < 1e-9
    noise = torch.randn(300, 8, generator=torch.Generator().manual_seed(2))
    left = float((bench.token_errors(noise, noise.flip(0)) ** 2).sum())
    assert abs(1 - left - bench.linearity(noise, noise.flip(0))) < 1e-4
    near = bench.imbalances(torch.stack([noise, 2 * noise, torch.randn(len(noise), noise.shape[1])]))
    assert abs(float(near[0, 1]) - 2 / len(noise)) < 1e-6  # the same neighbours
    assert float(near[0, 2]) > 0.5
    assert abs(bench.cosine(torch.eye(4)) - 1 / 4) < 1e-6
    assert abs(bench.anisotropy(torch.eye(3)[:2].repeat(50, 1)) - 1) < 1e-5
