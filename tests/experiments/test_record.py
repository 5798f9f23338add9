"""Records of experiments say what was run; kept stages belong to what they were made of; controls of removal."""

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from tiny import tiny

import tokinterp as ti
from experiments import microscope_parts, record
from experiments.bench.common import save
from experiments.microscope import Settings
from experiments.microscope_summary import beyond_random, summarise
from figures import microscope as figure
from figures.__main__ import redraw
from tokinterp.run.nulls import draw_null
from tokinterp.text.removal import can_match, remove, remove_random
from tokinterp.text.shuffle import shuffle_words

TEXTS = ["the river ran to the north and a moon rose", "a day in the sun, the owl slept on an oak in the end"]


@pytest.fixture(scope="module")
def prompts():
    return ti.Prompts.from_texts(TEXTS, tiny())


# -- records --------------------------------------------------------------------------------------------------
def test_a_command_is_the_one_that_was_run_without_folders_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["/opt/x/bin/python3.11", "-m", "experiments.erasure", "--test", "/d/text/a.csv"]
    words += [f"--out={tmp_path}/runs/a b.zarr", "/home/me/list.tsv", "--end", "5"]
    said = record.command(words, data="/d")
    assert said == (
        "python -m experiments.erasure --test $TOKINTERP_DATA/text/a.csv --out='runs/a b.zarr' list.tsv --end 5"
    )
    assert record.command(["/usr/bin/pytest", "-q"]) == "pytest -q"
    monkeypatch.setattr("sys.orig_argv", ["python", "-m", "experiments.bench", "overlap"])
    assert record.about("x")["command"] == "python -m experiments.bench overlap"


@pytest.mark.parametrize(
    ("found", "commit", "dirty"), [("ab12+", "ab12", True), ("ab12", "ab12", False), ("", None, None)]
)
def test_a_record_has_commit_texts_and_whether_the_code_was_changed(found, commit, dirty, monkeypatch):
    monkeypatch.setattr(record, "git_commit", lambda: found)
    said = record.about("x", {"model": "m", "prompts": "hash", "git_commit": "old", "parameters": "{}"})
    assert (said["commit"], said["dirty"]) == (commit, dirty)
    assert said["provenance"] == {"model": "m", "prompts": "hash", "git_commit": "old"}


def test_a_benchmark_is_recorded_with_what_was_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.orig_argv", ["python", "-m", "experiments.bench", "overlap", "--out", "runs/bench"])
    save("overlap_layers", {"ours": {"seconds": 1.23456}}, {"n": 3}, tmp_path)
    kept = json.loads((tmp_path / "overlap_layers.json").read_text(encoding="utf-8"))
    assert kept["command"] == "python -m experiments.bench overlap --out runs/bench"  # and not overlap_layers
    assert kept["rows"] == {"ours": {"seconds": 1.235}}
    assert {"commit", "dirty", "versions", "created"} <= kept.keys()
    capsys.readouterr()


# -- stages ---------------------------------------------------------------------------------------------------
def test_results_do_not_share_what_is_kept_beside_them():
    names = ["run.v1", "run.v2", "run.zarr", "other.zarr"]
    assert len({record.beside(n, "text.zarr") for n in names}) == len(names)
    assert record.beside(None, "text.zarr") is None
    assert record.beside("runs/a.zarr", "shuffle:5.zarr") == Path("runs/a.shuffle_5.zarr")


@pytest.mark.slow
def test_what_is_kept_belongs_to_its_texts_and_seed(prompts, tmp_path, monkeypatch):
    def case(p, out=tmp_path / "m.zarr"):
        return microscope_parts.Case(tiny(), p, "none", np.empty(0), out, text=p)

    settings = Settings(conditions=("articles",))
    first = microscope_parts.removal(case(prompts), settings)["removal"]
    for p, s in (
        (prompts[:1], settings),
        (prompts, Settings(conditions=("articles",), seed=1)),
        (prompts, Settings(conditions=("punctuation",))),
    ):
        with pytest.raises(ValueError, match="belongs to another run"):
            microscope_parts.removal(case(p), s)
    other = microscope_parts.removal(case(prompts[:1], tmp_path / "n.zarr"), settings)["removal"]
    assert other.sizes["prompt"] == 1
    monkeypatch.setattr(ti.behaviour, "surviving_loss", None)  # read, not measured again
    xr.testing.assert_equal(microscope_parts.removal(case(prompts), settings)["removal"], first)


# -- controls of the removal ------------------------------------------------------------------------------------
def removal(prompts, null="none", seed=3, **options):
    network, drawn = draw_null(tiny(), prompts, null, seed)
    settings = Settings(conditions=("articles", "stop words"), seed=seed, **options)
    case = microscope_parts.Case(network, drawn, null, np.empty(0), text=prompts)
    return microscope_parts.removal(case, settings)["removal"]


@pytest.mark.slow
def test_each_control_of_a_removal_is_what_it_says(prompts):
    found = removal(prompts)
    first = [remove(t, "articles") for t in TEXTS]
    within = {
        "condition": first,
        "random": [remove_random(r, 3 + i) for i, r in enumerate(first)],
        "random in class": [remove_random(r, 3 + i, "class") for i, r in enumerate(first)],
    }
    assert all(map(can_match, first))
    for name, removals in within.items():
        direct = ti.behaviour.surviving_loss(tiny(), removals)["loss_removed"]
        assert found["loss_removed"].sel(variant="articles", subset=name).values == pytest.approx(direct.values)
    rows = found["loss_removed"].sel(variant="articles").values
    assert not np.allclose(rows[0], rows[1])
    assert not np.allclose(rows[0], rows[2])
    assert found["difference"].sel(variant="stop words", subset="random in class").isnull().all()
    assert found["difference"].sel(variant="stop words", subset="random").notnull().all()


@pytest.mark.slow
def test_shuffled_text_of_the_removal_is_the_words_of_the_text_in_another_order(prompts):
    found = removal(prompts, "shuffle:5")
    words = shuffle_words(prompts, 3)
    direct = ti.behaviour.surviving_loss(tiny(), [remove(words.text(i), "articles") for i in range(2)])
    one = found.sel(variant="articles", subset="condition")
    assert one["loss_original"].values == pytest.approx(direct["loss_original"].values)
    text = removal(prompts).sel(variant="articles", subset="condition")
    assert not np.allclose(one["loss_original"], text["loss_original"])


@pytest.mark.slow
def test_the_random_tokens_of_a_null_are_those_whose_loss_is_measured(prompts):
    assert not np.allclose(removal(prompts, "random_ids")["loss_original"], removal(prompts)["loss_original"])


@pytest.mark.slow
def test_the_untrained_network_is_the_one_whose_loss_is_measured(prompts):
    assert not np.allclose(removal(prompts, "untrained")["loss_original"], removal(prompts)["loss_original"])


def test_accuracy_within_the_classes_is_over_items_that_can_have_it():
    items = [
        ti.behaviour.Item("the river to the", ("north", "in"), 0), ti.behaviour.Item("a", ("b", "c"), 1),
        ti.behaviour.Item("the owl and the moon", ("rises", "to"), 1),
    ]  # fmt: skip
    found = ti.behaviour.removal_accuracy(tiny(), items, ["articles", "stop words"], score="option", seed=2)
    ti.check(found)
    assert found["n_class_control"].values.tolist() == [2, 0]  # of the second item every function word goes
    seen = []

    def edit(text):
        from tokinterp.behaviour.removal import _seed

        first = remove(text, "articles")
        seen.append(remove_random(first, _seed(text, 2), "class") if can_match(first) else first)
        return seen[-1].text if can_match(first) else text

    direct = ti.behaviour.multiple_choice(tiny(), items, edit=edit, score="option")["correct"].values[[0, 2]]
    assert float(found["accuracy_class_control"][0]) == pytest.approx(direct.mean())
    assert np.isnan(found["accuracy_class_control"][1])
    assert np.isnan(found["p_class_control"][1])
    assert 0 < float(found["p_class_control"][0]) <= 1


# -- what is said of them ---------------------------------------------------------------------------------------
def planted(condition, random):
    rise = np.array([condition, random])[None]
    data = dict.fromkeys(("difference", "removal_rate", "loss_original"), (("variant", "subset", "prompt"), rise))
    return xr.Dataset(data, {"variant": ["articles"], "subset": ["condition", "random"]})


def test_what_costs_more_than_random_deletion_has_a_positive_sign():
    ds = planted([1.0, 1.2, 0.9, 1.1], [0.5, 0.6, 0.4, 0.5])
    assert float(beyond_random(ds)["more"][0]) == pytest.approx(0.55)
    tree = xr.DataTree.from_dict({"removal": ds.expand_dims(null=["none"])})
    tree.attrs = {"n_prompts": 4, "n_tokens": 9, "n_train_tokens": 9, "settings": "{}", "prompts": "h"}
    one = summarise(tree)
    row = one["removal"]["none"]["articles"]
    assert row["beyond_random"] == pytest.approx(0.55)
    assert 0 < row["low"] < 0.55 < row["high"]
    assert (row["condition"], row["random"]) == (pytest.approx(1.05), pytest.approx(0.5))
    assert one["provenance"]["prompts"] == "h"


def test_no_two_conditions_of_a_figure_share_a_colour():
    looks = figure.looks_of(["none", "shuffle:5", "untrained", "random_ids", "shuffle_words"])
    assert len({x["color"] for x in looks.values()}) == 5


@pytest.mark.slow
def test_a_figure_is_drawn_of_the_result_that_was_named(tmp_path, monkeypatch, capsys):
    seen = []

    def draw(results):
        seen.append(results.attrs["model"])
        from matplotlib.figure import Figure

        return Figure()

    for folder, model in (("runs", "usual"), ("runs_small", "small"), ("elsewhere", "named")):
        name = "microscope_small.zarr" if folder == "runs_small" else "microscope.zarr"
        tree = ti.measure(tiny(), ["the owl"], {"lens": ti.lens.LogitLens(top=0, tokens=0)}, progress=False)
        tree.attrs["model"] = model
        ti.write(tree, tmp_path / ("runs" if folder == "runs_small" else folder) / name)
    monkeypatch.setattr(figure, "draw", draw)
    out, runs = tmp_path / "figures", tmp_path / "runs"
    redraw("microscope", out, runs=runs)
    redraw("microscope", out, runs=runs, small=True)
    redraw("microscope", out, runs=runs, store=tmp_path / "elsewhere" / "microscope.zarr")
    assert seen == ["usual", "small", "named"]
    assert "model named" in capsys.readouterr().out
