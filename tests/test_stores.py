"""Stores that several processes, killed ones, other machines, full disks and careless users come near."""

import os
import signal
import time

import pytest
import torch
from stored_runs import (
    BATCH,
    LENGTHS,
    Stops,
    as_owner,
    assert_same,
    assert_same_node,
    ended_process,
    measured,
    resumed,
    stopped_at,
)
from tiny import Norms, Spread, some_prompts, tiny

import tokinterp as ti
from tokinterp.files import owner
from tokinterp.files.paths import local_path
from tokinterp.run import engine, signals
from tokinterp.run.facts import partial_folder
from tokinterp.run.loop import read_progress, take_up
from tokinterp.run.signals import stopping


@pytest.fixture(scope="module")
def whole():
    return measured(which={"norms": Norms()}, batch_tokens=BATCH)


@pytest.fixture(scope="module")
def dead():
    """The number of a process that has ended."""
    return ended_process()


# -- whose a partial folder is --------------------------------------------------------------------------------
def test_partial_folder_that_does_not_say_whose_it_is_is_refused(tmp_path):
    store = tmp_path / "run.zarr"
    stopped_at(store)
    (partial_folder(store) / "run.json").unlink()
    before = sorted(p.name for p in tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"run\.json is missing, so that nothing says .*; delete .*run.zarr.partial"):
        resumed(store)
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


def test_kill_while_clearing_up_leaves_only_litter(tmp_path, monkeypatch, whole):
    store = tmp_path / "run.zarr"
    delete = owner._delete
    with monkeypatch.context() as killed:
        killed.setattr(owner, "_delete", lambda path: None if ".partial." in path.name else delete(path))
        resumed(store)
    (litter,) = (p for p in tmp_path.iterdir() if p != store)
    assert litter.name.startswith(".run.zarr.partial.litter-")
    os.rename(store, tmp_path / "monday.zarr")
    prompts = some_prompts(LENGTHS, seed=1)
    run = resumed(store, prompts=prompts)
    assert_same_node(run, measured(prompts, which={"norms": Norms()}, batch_tokens=BATCH), "norms")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["monday.zarr", "run.zarr"]


def test_nothing_but_what_is_surely_nobodys_is_swept(tmp_path, dead):
    here = owner.machine()
    kept = [
        owner.private_name(tmp_path / "run.zarr", "writing").name, ".run.zarr.writing-00000000-1-1-ab",
        ".run.zarr.mine", "run.zarr.partial", f".other.zarr.writing-{here}-{dead}-1-ab",
        f".run.zarr.thesis-{here}-{dead}-1-ab",
    ]  # fmt: skip
    gone = [
        f".run.zarr.writing-{here}-{dead}-1-ab", f".run.zarr.partial.new-{here}-{dead}-1-ab",
        ".run.zarr.partial.litter-00000000-1-1-ab", ".run.zarr.writing-00000000-2-1-ab",
    ]  # fmt: skip
    for name in kept + gone:
        (tmp_path / name).mkdir()
    old = time.time() - 2 * owner.A_DAY
    os.utime(tmp_path / gone[-1], (old, old))
    owner.sweep(tmp_path / "run.zarr")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(kept)


def test_run_that_finished_nothing_makes_room_for_another(tmp_path):
    """A share that failed at its first batch leaves its folder to the other shares, but not in the way of others."""
    store = tmp_path / "run.zarr"
    stops = Stops()
    stops.left = 0
    with pytest.raises(RuntimeError, match="stopped by the test"):
        measured(which={"norms": stops}, store=store, share=(0, 2))
    assert [p.name for p in partial_folder(store).iterdir()] == ["run.json"]
    run = measured(which={"norms": Stops(layers=[1])}, store=store)
    assert run["norms"]["layer"].values.tolist() == [1]


def test_writer_that_was_replaced_writes_nothing_more(tmp_path, whole):
    """A process that stood still for long is taken for dead; when it goes on, it sees that another has taken over."""
    store = tmp_path / "run.zarr"

    class Replaced(Norms):
        left = 2

        def update(self, batch):
            super().update(batch)
            type(self).left -= 1
            if not self.left:
                as_owner(partial_folder(store), machine="another")

    with pytest.raises(RuntimeError, match=r"was deleted or taken over by another process .*: the same call goes on"):
        measured(which={"norms": Replaced()}, store=store, batch_tokens=BATCH, checkpoint_every=0)
    assert read_progress(partial_folder(store)).done == 2


@pytest.mark.parametrize(("numbers", "said"), [([0, 1, 1, 2], "prompt 1 2 times"), ([0, 2], "prompt 1 0 times")])
def test_every_prompt_occurs_once(numbers, said, tmp_path, monkeypatch):
    """Whatever went wrong before: a result with other rows than prompts is never made."""
    store = tmp_path / "run.zarr"

    def mixed(keep, measurements, device, with_rows):
        take_up(keep, measurements, device, with_rows)
        if with_rows:
            book = measurements["_prompts"]
            book.rows = {k: [torch.cat(v)[torch.tensor(numbers)]] for k, v in book.rows.items()}

    monkeypatch.setattr(engine, "take_up", mixed)
    with pytest.raises(RuntimeError, match=rf"have {len(numbers)} rows for 3 prompts \({said}\)"):
        measured(some_prompts([20, 21, 22]), which={"norms": Norms()}, store=store)
    assert not store.exists()


# -- what is refused before the run ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": (True, 2), "store": "x.zarr"}, r"share=\(True, 2\): give \(i, n\)"),
        ({"share": (0.5, 2), "store": "x.zarr"}, r"share=\(0.5, 2\): give \(i, n\)"),
        ({"share": "02", "store": "x.zarr"}, "share='02': give"),
        ({"share": (0, 1, 2)}, "share="),
        ({"checkpoint_every": float("nan")}, "checkpoint_every=nan: give a number of at least 0"),
        ({"checkpoint_every": -1}, "checkpoint_every=-1"),
        ({"checkpoint_every": True}, "checkpoint_every=True"),
        ({"checkpoint_every": "60"}, "checkpoint_every='60'"),
        ({"store": "s3://bucket/run.zarr"}, r"store='s3://bucket/run.zarr' is a URL: give a file or folder"),
        ({"store": "https://host/run.zarr"}, "is a URL"),
        ({"store": ""}, "store='': give a path"),
        ({"store": 5}, "store=5: give a path"),
        ({"store": "~nobody-has-this-name/x"}, "no such home folder"),
        ({"store": "file"}, "file' is a file: choose the name of a new folder"),
        ({"store": "file/run.zarr"}, "file/run.zarr.*file is a file, not a folder; choose another place"),
    ],
)
def test_refused_before_the_model_runs(options, message, tmp_path, monkeypatch):
    monkeypatch.setattr(type(tiny()), "run", lambda *_, **__: pytest.fail("the model was run"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises((ValueError, TypeError, OSError), match=message):
        measured(**{"which": {"norms": Norms()}, **options})
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_home_is_expanded(tmp_path, monkeypatch, whole):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    measured(which={"norms": Norms()}, store="~/runs/run.zarr", batch_tokens=BATCH)
    assert_same(ti.read("~/runs/run.zarr"), whole, exact=True)
    assert (tmp_path / "runs" / "run.zarr" / "zarr.json").is_file()
    assert local_path("~/x", "store") == tmp_path / "x"


def test_relative_store_does_not_follow_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)

    class Moves(Norms):
        def update(self, batch):
            os.chdir(tmp_path / "elsewhere")
            super().update(batch)

    measured(which={"norms": Moves()}, store="run.zarr")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere", "run.zarr"]
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.slow
def test_signal_in_the_last_batch(tmp_path):
    """A signal in the very last batch: everything is kept, and the same call only writes the result."""
    store = tmp_path / "run.zarr"

    class Last(Spread):
        def __init__(self):
            super().__init__()
            self.stop = False

        def update(self, batch):
            super().update(batch)
            if self.stop and self.reading == 1 and 17 in batch.lengths:
                signal.raise_signal(signal.SIGINT)

    stopped = Last()
    stopped.stop = True
    with pytest.raises(KeyboardInterrupt, match="of 7 prompts; the same call goes on from there"):
        measured(which={"spread": stopped}, store=store, batch_tokens=BATCH)
    run = measured(which={"spread": Last()}, store=store)
    assert_same_node(run, measured(which={"spread": Spread()}, batch_tokens=BATCH), "spread")


# -- what is not this run's own -------------------------------------------------------------------------------
@pytest.mark.slow
def test_nulls_neither_take_nor_delete_results_beside_them(tmp_path):
    asked, prompts = {"norms": ti.geometry.CosineSimilarity(layers=[1])}, some_prompts(LENGTHS)
    for name in ("run.none.zarr", "run.shuffle_1.zarr"):
        measured(prompts, which=asked, store=tmp_path / name)
    for name in ("run.zarr", "run.v1", "run.v2"):
        ti.measure_nulls(tiny(), prompts, asked, ("none", "shuffle:1"), store=tmp_path / name, progress=False)
    there = ["run.none.zarr", "run.shuffle_1.zarr", "run.v1", "run.v2", "run.zarr"]
    assert sorted(p.name for p in tmp_path.iterdir()) == there


def test_handlers_from_before_are_put_back():
    def now():
        return [signal.getsignal(n) for n in (*signals.SIGNALS, *signals.WARNINGS)]

    before = now()
    with stopping():
        assert signal.getsignal(signal.SIGTERM) not in before
    assert now() == before
