"""Records of experiments say what was run; kept stages belong to what they were made of; controls of removal."""

import json
import os
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from tiny import tiny

import tokinterp as ti
from experiments.bench.common import Bar, save
from experiments.bench.machines import differences
from experiments.microscope import CLAIMS, Settings, beyond_random
from experiments.parts import microscope as microscope_parts
from experiments.runner import record
from experiments.runner.claims import evaluate
from figures import microscope as figure
from tokinterp.run.nulls import draw_null
from tokinterp.text.removal import can_match, remove, remove_random
from tokinterp.text.shuffle import shuffle_words

TEXTS = ["the river ran to the north and a moon rose", "a day in the sun, the owl slept on an oak in the end"]


@pytest.fixture(scope="module")
def prompts():
    return ti.Prompts.from_texts(TEXTS, tiny())


def test_two_runs_with_a_nan_in_other_places_are_not_called_close():
    one = xr.DataTree.from_dict({"/n": xr.Dataset({"x": ("prompt", [1.0, np.nan, np.inf])})})
    near, other, less = one.copy(deep=True), one.copy(deep=True), one.copy(deep=True)
    near["n"]["x"][0], other["n"]["x"][0], less["n"]["x"][2] = 1.5, np.nan, -np.inf
    assert differences(one, near)["difference"] == 0.5
    for bad in (other, less):
        with pytest.raises(AssertionError, match="/n/x is not finite in other places"):
            differences(one, bad)


# -- records --------------------------------------------------------------------------------------------------
def test_a_command_is_the_one_that_was_run_without_folders_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["/opt/x/bin/python3.11", "-m", "experiments", "erasure", "--set", "test=/d/text/a.csv"]
    words += [f"--out={tmp_path}/runs/a b", "--set", "train=/home/me/list.tsv,/d/b.csv", "--set", "end=5"]
    said = record.command(words, data="/d")
    assert said == (
        "python -m experiments erasure --set test=$TOKINTERP_DATA/text/a.csv --out='runs/a b' --set "
        "train=list.tsv,$TOKINTERP_DATA/b.csv --set end=5"
    )
    assert record.command(["/usr/bin/pytest", "-q"]) == "pytest -q"
    monkeypatch.setattr("sys.orig_argv", ["python", "-m", "experiments.bench", "overlap"])
    assert record.about("x")["command"] == "python -m experiments.bench overlap"


@pytest.mark.parametrize(
    ("found", "changed", "commit", "dirty"),
    [("ab12+", True, "ab12", True), ("ab12+", False, "ab12", False), ("ab12", 0, "ab12", False), ("", 1, None, None)],
)
def test_a_record_has_the_commit_and_whether_the_code_was_changed(found, changed, commit, dirty, monkeypatch):
    monkeypatch.setattr(record, "git_commit", lambda: found)
    monkeypatch.setattr(record, "changed", lambda: changed)
    said = record.about("x")
    assert (said["commit"], said["dirty"]) == (commit, dirty)


def test_a_record_names_the_commits_of_stages_that_were_taken_over():
    """Those that joined results are made of too."""
    a, b, c = (x * 40 for x in "abc")
    sets = {
        "own": xr.Dataset(attrs={"git_commit": c, "fingerprint": "1"}),
        "earlier": xr.Dataset(attrs={"git_commit": b + "+", "fingerprint": "2"}),
        "joined": xr.Dataset(attrs={"git_commit": c, "source_commits": json.dumps([a, c]), "fingerprint": "3"}),
    }
    said = record.end({"commit": c, "dirty": False}, Settings(), sets, [{"seconds": 1.0, "dirty": False}])
    assert said["stages_of_other_commits"] == [a, b + "+"]


def test_a_stage_of_the_same_commit_but_of_changed_code_is_named(monkeypatch):
    c = "c" * 40
    sets = {"own": xr.Dataset(attrs={"git_commit": c + "+", "fingerprint": "1"})}
    monkeypatch.setattr(record, "git_commit", lambda: c)
    starts = [{"seconds": 2.0, "dirty": True}, {"seconds": 1.5, "dirty": False}]
    said = record.end({"commit": c, "dirty": False}, Settings(), sets, starts)
    assert (said["stages_of_other_commits"], said["dirty"]) == ([c + "+"], True)
    assert (said["seconds"], said["starts"]) == (3.5, 2)
    monkeypatch.setattr(record, "git_commit", lambda: c + "+")  # by results and their page alone
    assert record.end({"commit": c, "dirty": False}, Settings(), sets, starts[1:])["stages_of_other_commits"] == []


def test_the_time_of_all_starts_is_kept_that_of_a_killed_one_too(tmp_path):
    said = {"commit": "c", "dirty": True}
    with pytest.raises(KeyboardInterrupt), record.started(tmp_path, said):
        raise KeyboardInterrupt
    (first,) = json.loads((tmp_path / "starts.json").read_text())
    assert first["seconds"] >= 0
    killed = {"began": time.time() - 100, "seconds": None, "commit": "c", "dirty": False}
    (tmp_path / "starts.json").write_text(json.dumps([first, killed]))
    for file in (tmp_path / "starts.json", tmp_path / "stage"):
        file.write_text(file.read_text() if file.exists() else "")
        os.utime(file, (killed["began"] + 40, killed["began"] + 40))
    with record.started(tmp_path, {**said, "dirty": False}) as starts:
        time.sleep(0.01)
    assert [s["dirty"] for s in starts] == [True, False, False]
    assert starts[1]["seconds"] == pytest.approx(40, abs=1)
    assert 0.01 <= starts[2]["seconds"] < 5


def test_results_are_no_code_whose_change_matters(tmp_path, monkeypatch):
    call = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    files = ["tokinterp.py", "experiments/RESULTS.md", "experiments/results/a.json"]
    (tmp_path / "experiments" / "results").mkdir(parents=True)
    for name in files:
        (tmp_path / name).write_text("first")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*call, *command], check=True)
    monkeypatch.setattr(record, "ROOT", tmp_path)
    found = []
    for name in [*files[::-1]]:
        found.append(record.changed())
        (tmp_path / name).write_text("second")
    assert [*found, record.changed()] == [False, False, False, True]


def test_a_benchmark_is_recorded_with_what_was_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.orig_argv", ["python", "-m", "experiments.bench", "overlap", "--out", "runs/bench"])
    save("overlap_layers", {"ours": {"seconds": 1.23456}}, {"n": 3}, tmp_path)
    kept = json.loads((tmp_path / "overlap_layers.json").read_text(encoding="utf-8"))
    assert kept["command"] == "python -m experiments.bench overlap --out runs/bench"  # and not overlap_layers
    assert kept["rows"] == {"ours": {"seconds": 1.235}}
    assert {"commit", "dirty", "versions", "created"} <= kept.keys()
    capsys.readouterr()


def test_a_bar_is_judged_from_its_own_side_and_nothing_reaches_it_by_being_missing(tmp_path, capsys):
    bars = [
        Bar("a", 1.3, 1.3, "most"), Bar("b", 1.31, 1.3, "most", "of the cache"), Bar("c", 2.9, 3, "least"),
        Bar("d", 3.0, 3, "least"), Bar("e", float("nan"), 3, "most"), Bar("f", float("nan"), 3, "least"),
    ]  # fmt: skip
    save("x", {}, {}, tmp_path, bars)
    kept = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert [bar["met"] for bar in kept["bars"]] == [True, False, False, True, False, False]
    said = capsys.readouterr().out
    assert "a: 1.3, at most 1.3: met" in said
    assert "b: 1.31, at most 1.3: not met (of the cache)" in said


# -- stages ---------------------------------------------------------------------------------------------------
def test_stages_lie_in_the_folder_of_the_run():
    assert record.stage(None, "text.zarr") is None
    assert record.stage(Path("runs/a.stages"), "shuffle:5.zarr") == Path("runs/a.stages/shuffle_5.zarr")


@pytest.mark.slow
def test_what_is_kept_belongs_to_its_texts_and_seed(prompts, tmp_path, monkeypatch):
    def case(p, out=tmp_path / "m"):
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
    other = microscope_parts.removal(case(prompts[:1], tmp_path / "n"), settings)["removal"]
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
    assert beyond_random(ds, "articles").value == pytest.approx(0.55)
    both = xr.concat([ds, ds.assign(difference=-ds["difference"])], "null").assign_coords(null=["none", "untrained"])
    claims = [c for c in CLAIMS if "articles a text" in c.says]
    (row,) = evaluate(claims, {"removal": both})
    number = row["numbers"]["text"]
    assert number["value"] == pytest.approx(0.55)
    assert 0 < number["interval"][0] < 0.55 < number["interval"][1]
    assert row["numbers"]["untrained"]["value"] == pytest.approx(-0.55)
    assert row["verdict"] == "yes"


def test_no_two_conditions_of_a_figure_share_a_colour():
    looks = figure.looks_of(["none", "shuffle:5", "untrained", "random_ids", "shuffle_words"])
    assert len({x["color"] for x in looks.values()}) == 5
