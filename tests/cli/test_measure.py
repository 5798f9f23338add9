"""Runs of the command line: what is replaced, quiet pipes, seeds, and that no option is passed over."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

import tokinterp as ti
from tokinterp.cli.main import main


@pytest.fixture
def call(capsys, tmp_path, tiny_folder):
    (tmp_path / "a.txt").write_text("The river to the sea and the singing.\nOne thing and the other.\n")

    def run(*arguments):
        words = [
            "measure",
            tiny_folder,
            tmp_path / "a.txt",
            "--per-line",
            "-o",
            tmp_path / "run.zarr",
            "--device",
            "cpu",
        ]
        with pytest.raises(SystemExit) as end:
            main([str(a) for a in (*words, *arguments)])
        return end.value.code, *capsys.readouterr()

    return run


def test_another_run_is_replaced_only_when_told_so_and_the_same_is_kept(call, tmp_path):
    store = tmp_path / "run.zarr"
    assert call("-m", "norms")[0] == 0
    assert call("-m", "curvature")[0] == 2
    assert set(ti.read(store).children) == {"prompts", "norms"}
    code, _, err = call("-m", "curvature", "--overwrite")
    assert code == 0, err
    assert set(ti.read(store).children) == {"prompts", "curvature"}
    before = {f: f.stat().st_mtime_ns for f in store.rglob("*")}
    assert call("-m", "curvature", "--overwrite")[0] == 0
    assert {f: f.stat().st_mtime_ns for f in store.rglob("*")} == before, "measured again"
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


def test_what_a_share_has_begun_is_replaced_too(call, tmp_path):
    assert call("-m", "norms", "--share", "0/2")[0] == 0
    assert (tmp_path / "run.zarr.partial").is_dir()
    assert call("-m", "curvature")[0] == 2
    assert call("-m", "curvature", "--overwrite")[0] == 0
    assert not (tmp_path / "run.zarr.partial").exists()


def test_layers_and_seed_reach_the_measurements(call, tmp_path):
    code, _, err = call("-m", "similarity", "-m", "norms", "--layers", "0,2-3", "--seed", "7")
    assert code == 0, err
    run = ti.read(tmp_path / "run.zarr")
    assert run["norms"]["layer"].values.tolist() == [0, 2, 3]
    assert run["similarity"].attrs["seed"] == 7
    assert run["norms"].attrs["seed"] == 0


@pytest.mark.slow
def test_results_go_to_a_pipe_and_nothing_else_does(tmp_path, tiny_folder):
    (tmp_path / "a.txt").write_text("The river to the sea and the singing.")
    words = ["measure", tiny_folder, tmp_path / "a.txt", "-m", "norms", "-o", tmp_path / "run.zarr", "--device", "cpu"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tokinterp", *map(str, words)], capture_output=True, text=True, env=env, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("model")
    assert "\x1b" not in done.stdout + done.stderr
    assert "norms (TokenNorms)" in done.stdout
