"""One command runs an experiment, goes on and writes its record; figures are drawn of that record or not at all."""

import json
import shutil

import pytest
import xarray as xr
from with_model import settings

import experiments.__main__ as runner
import tokinterp as ti
from experiments import first_look
from experiments.runner import record
from experiments.runner.preset import Preset, change, place
from figures.__main__ import main as draw
from figures.__main__ import redraw

TEXTS = [t.text for t in ti.bundled_texts("story")[:4]]


@pytest.fixture(scope="module")
def made(tiny_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    return out, runner.run("first_look", "tiny", out=out, given=own(tiny_folder))


def own(folder, **changes):
    p = settings(first_look.PRESETS["tiny"], ti.load_model(folder, device="cpu"), TEXTS, limit=3, **changes)
    p.settings = lambda: first_look.PRESETS["tiny"].settings() | changes
    return p


# -- settings -------------------------------------------------------------------------------------------------
def test_settings_are_changed_by_their_names_and_types():
    p = change(first_look.PRESETS["tiny"], ["levels=0,3", "limit=none", "seed=7", "texts=a.txt"])
    assert (p.levels, p.limit, p.seed, p.texts) == ((0, 3), None, 7, ("a.txt",))
    assert first_look.PRESETS["tiny"].limit == 4
    for wrong, said in (
        ("limt=3", "the settings are model"),
        ("limit", "write key=value"),
        ("limit=x", "no value of limit"),
    ):
        with pytest.raises(ValueError, match=said):
            change(first_look.PRESETS["tiny"], [wrong])


def test_texts_are_read_once_and_recorded_by_their_hash(tmp_path, monkeypatch):
    file = tmp_path / "a.txt"
    file.write_text("One.\n\nTwo.\n\nThree.", encoding="utf-8")
    monkeypatch.setenv("TOKINTERP_DATA", str(tmp_path))
    one = Preset(texts=("$TOKINTERP_DATA/a.txt",))
    assert one.hashes() == {}
    read = one.read()
    file.write_text("Another.", encoding="utf-8")
    assert one.read() is read
    (found,) = one.hashes().values()
    assert found["n"] == len(read)
    other = Preset(texts=(str(file),))
    other.read()
    assert other.hashes()["texts"]["sha256"] != found["sha256"]
    monkeypatch.delenv("TOKINTERP_DATA")
    with pytest.raises(ValueError, match="the variable is not set"):
        place("$TOKINTERP_DATA/a.txt")


# -- runs -----------------------------------------------------------------------------------------------------
def test_a_record_says_what_was_run_and_what_came_out(made):
    out, path = made
    kept = record.read(path)
    assert path == out / "first_look.tiny.json"
    assert (kept["experiment"], kept["preset"], kept["changed"]) == ("first_look", "tiny", [])
    for name in ("command", "commit", "dirty", "created", "versions", "settings", "seconds", "device", "seeds"):
        assert name in kept
    assert kept["texts"]["texts"]["n"] == 4
    assert len(kept["texts"]["texts"]["sha256"]) == 64
    model = own_model(made)
    assert kept["model"]["identity"] == model.identity
    assert kept["seeds"] == [0]
    tree = ti.read(out / "first_look.tiny.zarr")
    assert kept["fingerprints"] == {n: tree[n].attrs["fingerprint"] for n in ("dimension", "spectrum", "lens")}
    assert [row["claim"] for row in kept["claims"]] == [c.says for c in first_look.CLAIMS]
    loss = tree["lens"]["cross_entropy"].isel(layer=-1, variant=0)
    wanted = float((loss.sel(null="shuffle:5") - loss.sel(null="none")).mean())
    assert kept["claims"][0]["numbers"]["S = 5 less text"]["value"] == pytest.approx(wanted, rel=1e-3)


def own_model(made):
    tree = ti.read(made[0] / "first_look.tiny.zarr")
    return type("Info", (), {"identity": tree["lens"].attrs["identity"]})


def test_a_finished_run_is_read_and_one_of_other_settings_refused(made, tiny_folder, monkeypatch, capsys):
    out, path = made
    before = record.read(path)
    monkeypatch.setattr(first_look, "run", None)
    runner.run("first_look", "tiny", out=out, given=own(tiny_folder))
    assert record.read(path) == before
    assert "is finished: read" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"is of other settings \(seed: 0, now 1\)"):
        runner.run("first_look", "tiny", out=out, given=own(tiny_folder, seed=1))


def test_claims_computed_by_other_code_than_the_results_say_so(made, tiny_folder, monkeypatch):
    out, path = made
    monkeypatch.setattr(record, "git_commit", lambda: "f" * 40)
    monkeypatch.setattr(record, "changed", lambda: True)
    runner.run("first_look", "tiny", out=out, given=own(tiny_folder))
    kept = record.read(path)
    assert kept["claims_computed_by"] == {"commit": "f" * 40, "dirty": True}
    assert kept["commit"] != "f" * 40
    monkeypatch.undo()
    runner.run("first_look", "tiny", out=out, given=own(tiny_folder))


def test_a_stopped_run_goes_on_with_its_stages(made, tiny_folder, tmp_path, monkeypatch):
    out, _ = made
    shutil.copytree(out / "first_look.tiny.stages", tmp_path / "first_look.tiny.stages")
    p = own(tiny_folder)
    before = type(p.lm).run

    def refuse(self, ids, *args, **options):
        assert ids.shape[1] < 100, "the model was run again"  # a loaded network is checked on a few tokens
        return before(self, ids, *args, **options)

    monkeypatch.setattr(type(p.lm), "run", refuse)
    runner.run("first_look", "tiny", out=tmp_path, given=p)
    one, two = (ti.read(folder / "first_look.tiny.zarr")["lens"].to_dataset() for folder in (out, tmp_path))
    xr.testing.assert_equal(one, two)


def test_changed_settings_are_a_run_of_their_own():
    assert runner.label("bundled", []) == "bundled"
    one, two = (runner.label("bundled", [f"limit={n}"]) for n in (3, 4))
    assert one.startswith("bundled+")
    assert one != two


def test_the_command_lists_and_says_what_is_wrong_in_one_line(capsys):
    assert runner.main(["--list", "first_look"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "levels, n_tokens, limit, scales" in " ".join(lines)
    (bundled,) = [x for x in lines if "--preset bundled: " in x]
    assert "limit=24" in bundled  # 4 in the first
    assert "seed=" not in bundled  # the same in both
    assert all(len(x) <= 120 for x in lines if x.startswith("  "))
    for arguments, said in (
        (["first_lock"], "'first_lock' is no experiment: there are behaviours, dot_by_dot"),
        (["first_look", "--preset", "small"], "--preset 'small': first_look has tiny, bundled, paper"),
        (["first_look", "--set", "a=1"], "the settings are"),
        (["--set", "seed=1"], "name it"),
    ):
        assert runner.main(arguments) == 1
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


# -- figures --------------------------------------------------------------------------------------------------
def spoiled(made, tmp_path, **changes):
    """A copy of the run whose record says something else."""
    shutil.copytree(made[0], tmp_path, dirs_exist_ok=True)
    file = tmp_path / "first_look.tiny.json"
    file.write_text(json.dumps({**record.read(file), "dirty": False, **changes}), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"preset": "bundled"}, "is of first_look --preset bundled"),
        ({"experiment": "erasure"}, "is of erasure --preset tiny"),
        ({"dirty": True}, "is of code that is no commit"),
        ({"settings": {"seed": 5}}, "is of other settings"),
        (
            {"commit": "0" * 40},
            r"is not that of the record first_look.tiny.json \(commit",
        ),
        ({"texts": {"texts": {"n": 4, "sha256": "0"}}}, "texts"),
        ({"store": None}, "is missing"),
    ],
)
def test_a_figure_is_drawn_of_its_own_record_or_not_at_all(made, changes, said, tmp_path):
    runs = spoiled(made, tmp_path / "runs", **changes)
    with pytest.raises((ValueError, FileNotFoundError), match=said) as error:
        redraw("first_look", "tiny", tmp_path / "figures", runs)
    assert f"python -m experiments first_look --preset tiny --out {runs}" in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "figures").exists()


def test_a_figure_without_a_record_or_store_says_which_command_makes_it(made, tmp_path, capsys):
    assert draw(["first_look", "--preset", "bundled", "--runs", str(tmp_path), "--out", str(tmp_path / "f")]) == 1
    assert "there is no record first_look.bundled.json: python -m experiments first_look" in capsys.readouterr().err
    runs = spoiled(made, tmp_path / "runs")
    shutil.rmtree(runs / "first_look.tiny.zarr")
    with pytest.raises(
        FileNotFoundError, match=r"first_look\.tiny\.zarr of the record first_look\.tiny\.json is missing"
    ):
        redraw("first_look", "tiny", tmp_path / "f", runs)


def test_a_figure_is_drawn_as_pdf_and_png_and_says_of_what(made, tmp_path, capsys):
    files = redraw("first_look", "tiny", tmp_path, made[0], dirty=True)
    assert [f.name for f in files] == ["first_look.tiny.pdf", "first_look.tiny.png"]
    assert all(f.stat().st_size > 1000 for f in files)
    assert "first_look.tiny.json" in capsys.readouterr().out
