"""A run that is stopped, however, goes on where it was and ends in the same numbers."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest
import torch
from stored_runs import BATCH, LENGTHS, Stops, assert_same, assert_same_node, both, measured
from tiny import Norms, Spread, some_prompts, tiny, tiny_lm

import tokinterp as ti
from tokinterp.fitted import load_tensors, save_tensors
from tokinterp.results import dataset
from tokinterp.run.facts import partial_folder

S = ti.Site


@pytest.fixture(scope="module")
def whole():
    return measured(which=both(), batch_tokens=BATCH)


# -- stopped from outside -------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def children(pytestconfig, tmp_path_factory):
    """Folder and report of the script of child processes."""
    folder = tmp_path_factory.mktemp("children")
    command = [sys.executable, str(pytestconfig.rootpath / "tests" / "child_runs.py"), str(folder), "0"]
    env = {**os.environ, "PYTHONPATH": str(pytestconfig.rootpath), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    out = subprocess.run(command, capture_output=True, text=True, env=env, timeout=900)
    assert out.returncode == 0, out.stderr[-3000:]
    return folder, json.loads(out.stdout.strip().splitlines()[-1])


@pytest.mark.slow
def test_kill_at_ten_random_moments_changes_no_bit(children):
    folder, report = children[0], children[1]["kills"]
    assert [status for _, _, status in report["landed"]] == [-signal.SIGKILL] * 12
    assert report["last"] == 0
    kept = [at for _, at, _ in report["landed"]]
    assert kept == sorted(kept), "a resumed run began again"
    assert all(at >= moment for moment, at, _ in report["landed"])
    assert len(set(kept)) > 5
    assert_same(ti.read(folder / "killed.zarr"), ti.read(folder / "plain.zarr"), exact=True)
    assert not list(folder.glob("*.partial")), "the finished run left its checkpoints"


@pytest.mark.slow
def test_interrupt_stops_cleanly_and_says_how_to_resume(children):
    folder, report = children[0], children[1]["interrupt"]
    assert report["once"] == 130
    assert 10 <= report["done"] < 96
    assert f"stopped after {report['done'] % 48} of 48 prompts; the same call goes on from there" in report["message"]
    assert report["twice"] == 130
    assert report["took"] < 5, "a second Ctrl-C waited for the batch"
    assert report["last"] == 0
    assert_same(ti.read(folder / "interrupted.zarr"), ti.read(folder / "plain.zarr"), exact=True)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_prompts(children):
    report = children[1]["memory"]
    assert report["status"] == [0, 0]
    # Holding on to the four layers of the prompts that one run has more would add this much.
    assert report["many"] - report["few"] < 0.4 * report["held"], report


# -- stopped inside this process ------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [0, 1, 2, 3])
@pytest.mark.parametrize("checkpoint_every", [0, 1000])
@pytest.mark.slow
def test_failure_in_the_middle_is_taken_up_again(left, checkpoint_every, tmp_path, whole):
    store = tmp_path / "run.zarr"
    options = {"store": store, "batch_tokens": BATCH, "checkpoint_every": checkpoint_every}
    stops = Stops()
    stops.left = left
    with pytest.raises(RuntimeError, match="stopped by the test"):
        measured(which={"norms": stops, "spread": Spread()}, **options)
    assert not store.exists()
    kept = partial_folder(store).exists()
    assert kept == (left > 0 and checkpoint_every == 0), "nothing was finished, or nothing was kept"
    if kept:
        with pytest.raises(FileNotFoundError, match="the run is unfinished: call measure"):
            ti.read(store)
    again = Stops()
    run = measured(which={"norms": again, "spread": Spread()}, **options)
    seen = again.seen
    assert len(seen) == len(set(seen)) == len(LENGTHS) - (2 * left if kept else 0), "finished prompts were run again"
    for name in ("norms", "spread"):
        assert_same_node(run, whole, name)
    assert [p.name for p in tmp_path.iterdir()] == ["run.zarr"]


@pytest.mark.parametrize("begun", ["stopped", "share", "not"])
def test_a_run_that_other_code_began_names_it_in_every_group(begun, tmp_path, monkeypatch):
    options = {"store": tmp_path / "run.zarr", "batch_tokens": BATCH, "checkpoint_every": 0}
    stops, share = Stops(), {"share": (1, 2)} if begun == "share" else {}
    stops.left = 2
    monkeypatch.setattr(dataset, "git_commit", lambda: "a" * 40)
    if begun == "stopped":
        with pytest.raises(RuntimeError, match="stopped by the test"):
            measured(which={"norms": stops}, **options)
    elif begun == "share":
        assert not measured(which={"norms": Stops()}, share=(0, 2), **options).children
    monkeypatch.setattr(dataset, "git_commit", lambda: "b" * 40)
    run = measured(which={"norms": Stops()}, **share, **options)
    for node in run.subtree:
        assert node.attrs["git_commit"] == "b" * 40
        named = json.loads(node.attrs.get("source_commits", "[]"))
        assert named == ([] if begun == "not" else ["a" * 40, "b" * 40]), node.path


def test_a_run_that_another_version_began_is_refused(tmp_path):
    options = {"store": tmp_path / "run.zarr", "batch_tokens": BATCH, "checkpoint_every": 0}
    stops = Stops()
    stops.left = 2
    with pytest.raises(RuntimeError, match="stopped by the test"):
        measured(which={"norms": stops}, **options)
    file = partial_folder(options["store"]) / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 2}))
    with pytest.raises(ValueError, match=r"differs in: format \(2 there, 3 now\)\. Choose another store, or delete"):
        measured(which={"norms": Stops()}, **options)


def test_interrupt_keeps_the_batch_in_progress(tmp_path, whole, capsys):
    store = tmp_path / "run.zarr"
    stops = Stops()
    stops.left, stops.how = 1, KeyboardInterrupt
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="stopped after 4 of 7 prompts; the same call goes on from there"):
        measured(which={"norms": stops, "spread": Spread()}, store=store, batch_tokens=BATCH, checkpoint_every=1000)
    assert signal.getsignal(signal.SIGINT) is before
    assert "finishing this batch" in capsys.readouterr().err
    run = measured(which={"norms": Stops(), "spread": Spread()}, store=store, batch_tokens=BATCH)
    assert_same_node(run, whole, "norms")
    stops = Stops()
    stops.left, stops.how = 1, KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt, match="give store= to be able to go on"):
        measured(which={"norms": stops}, batch_tokens=BATCH)


# -- the store ------------------------------------------------------------------------------------------------
def test_finished_store_is_returned_without_running(tmp_path, monkeypatch):
    store = tmp_path / "run.zarr"
    run = measured(which=both(), store=store)
    monkeypatch.setattr(type(tiny()), "run", lambda *_, **__: pytest.fail("the model was run again"))
    assert_same(measured(which=both(), store=store), run, exact=True)


def test_kill_after_the_result_is_written_leaves_no_checkpoints(tmp_path, monkeypatch):
    from tokinterp.run.checkpoint import Checkpoint

    store = tmp_path / "run.zarr"
    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "_clear", lambda self: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            measured(which=both(), store=store)
    assert store.exists()
    assert partial_folder(store).exists()
    assert_same_node(measured(which=both(), store=store), measured(which=both()), "norms")
    assert not partial_folder(store).exists()


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"which": {"norms": Stops(layers=[1])}}, r"measurements \(norms\)"),
        ({"which": {"other": Stops()}}, r"measurements \(norms, other\)"),
        ({"prompts": some_prompts(LENGTHS, seed=1)}, "prompts"),
        ({"edits": [ti.edits.zero(S("resid", 1))]}, "edits"),
        ({"model": ti.wrap(tiny_lm(seed=1))}, "weights"),
        ({"model": ti.wrap(tiny_lm().bfloat16())}, r"dtype \(\"float32\" there, \"bfloat16\" now\)"),
    ],
)
@pytest.mark.slow
def test_store_of_another_run_is_refused_and_named(options, named, finished, tmp_path):
    store = tmp_path / "run.zarr"
    stops = Stops()
    if not finished:
        stops.left = 2
        with pytest.raises(RuntimeError, match="stopped by the test"):
            measured(which={"norms": stops}, store=store, batch_tokens=BATCH, checkpoint_every=0)
    else:
        measured(which={"norms": stops}, store=store)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    with pytest.raises(ValueError, match=f"belongs to another run; it differs in: .*{named}.*Choose another store"):
        measured(**{"which": {"norms": Stops()}, "store": store, **options})
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before, "the store of another run was changed"


def test_store_that_is_no_run_is_refused(tmp_path):
    path = tmp_path / "result.zarr"
    ds = measured(which={"norms": Norms()})["norms"].to_dataset()
    ti.write(ds, path)
    with pytest.raises(ValueError, match=r"is a result, but not of measure\(\)"):
        measured(which={"norms": Norms()}, store=path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="is a folder that is no result"):
        measured(which={"norms": Norms()}, store=tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_second_writer_is_refused(tmp_path):
    store = tmp_path / "run.zarr"
    errors = []

    class Doubled(Norms):
        def update(self, batch):
            def again():
                try:
                    measured(which={"norms": Doubled()}, store=store)
                except RuntimeError as error:
                    errors.append(str(error))

            if not errors:
                thread = threading.Thread(target=again)
                thread.start()
                thread.join()
            super().update(batch)

    run = measured(which={"norms": Doubled()}, store=store)
    assert len(errors) == 1
    assert "another process is writing" in errors[0]
    assert_same_node(run, measured(which={"norms": Norms()}), "norms")


def test_merge_refuses_other_settings():
    a, b = Norms(), Norms(layers=[1])
    with pytest.raises(ValueError, match=r"cannot merge Norms .*: the settings must be equal"):
        a.merge(b)


def test_sums_that_are_taken_up_lie_as_new_ones_do(tmp_path):
    # A product is added to a matrix in an order that depends on where the matrix begins.
    m = ti.linearity.Linearity()
    model, prompts = tiny(), some_prompts([9, 8, 7])
    m.begin(model.info, prompts)
    m.update(ti.capture(model, prompts, range(3), m.sites(model.info)))
    kept = {k: torch.cat([v.flatten()[:1], v.flatten()])[1:].view(v.shape) for k, v in m.sums.items()}
    assert any(v.data_ptr() % 64 for v in kept.values())
    m.load({"sums": kept, "rows": {}})
    assert all(v.data_ptr() % 64 == 0 for v in m.sums.values())
    assert all(torch.equal(v, kept[k]) for k, v in m.sums.items())
    m.add("slanted", torch.zeros(3, 2).T)
    assert m.sums["slanted"].is_contiguous()
    file = tmp_path / "odd.safetensors"
    save_tensors(file, {"a": torch.zeros(1), "b": torch.zeros(5)}, "example", {})
    assert all(t.data_ptr() % 64 == 0 for t in load_tensors(file, "example", "example")[1].values())
