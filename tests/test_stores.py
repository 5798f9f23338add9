"""Stores that several processes, killed ones, other machines, full disks and careless users come near."""

import json
import os
import shutil
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from result_trees import tree
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
from tokinterp.files import whole as files
from tokinterp.files.paths import local_path
from tokinterp.linearity.maps import LinearMaps
from tokinterp.run import signals
from tokinterp.run.checkpoint import Checkpoint, partial_folder
from tokinterp.run.measurement import Measurement
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


def test_share_of_another_run_is_refused(tmp_path):
    """A folder of checkpoints that was moved in from another run is not taken up under this run's name."""
    other = stopped_at(tmp_path / "other.zarr", prompts=some_prompts(LENGTHS, seed=1))
    mine = stopped_at(tmp_path / "run.zarr")
    shutil.rmtree(mine)
    shutil.copytree(other, mine)
    with pytest.raises(ValueError, match=r"share-0-of-1 holds another run's checkpoints: delete .*run.zarr.partial"):
        resumed(tmp_path / "run.zarr")


def test_the_checkpoints_of_a_share_are_not_those_of_another(tmp_path):
    """They hold other prompts: a copied folder would count its own twice and the others never."""
    store = tmp_path / "run.zarr"
    root = stopped_at(store, left=1, share=(0, 2)).parent
    shutil.copytree(root / "share-0-of-2", root / "share-1-of-2")
    with pytest.raises(ValueError, match=r"share-1-of-2 holds another run's checkpoints"):
        resumed(store, share=(1, 2))


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


def test_number_of_shares_is_kept(tmp_path):
    store = tmp_path / "run.zarr"
    stopped_at(store)
    with pytest.raises(ValueError, match=r"differs in: shares \(1 there, 2 now\)"):
        resumed(store, share=(0, 2))


def test_writer_that_was_replaced_writes_nothing_more(tmp_path, whole):
    """A process that stood still for long is taken for dead; when it goes on, it sees that another has taken over."""
    store = tmp_path / "run.zarr"

    class Replaced(Norms):
        left = 2

        def update(self, batch):
            super().update(batch)
            type(self).left -= 1
            if not self.left:
                as_owner(partial_folder(store) / "share-0-of-1", machine="another")

    with pytest.raises(RuntimeError, match=r"was deleted or taken over by another process .*: call measure\(\) again"):
        measured(which={"norms": Replaced()}, store=store, batch_tokens=BATCH, checkpoint_every=0)
    at = json.loads((partial_folder(store) / "share-0-of-1" / "progress.json").read_text())
    assert at["done"] == 2


@pytest.mark.parametrize(("numbers", "said"), [([0, 1, 1, 2], "prompt 1 2 times"), ([0, 2], "prompt 1 0 times")])
def test_every_prompt_occurs_once(numbers, said, tmp_path, monkeypatch):
    """Whatever went wrong before: a result with other rows than prompts is never made."""
    store = tmp_path / "run.zarr"
    load = Checkpoint.load

    def mixed(self, at, measurements, device, with_rows):
        load(self, at, measurements, device, with_rows)
        if with_rows:
            book = measurements["_prompts"]
            book.rows = {k: [torch.cat(v)[torch.tensor(numbers)]] for k, v in book.rows.items()}

    monkeypatch.setattr(Checkpoint, "load", mixed)
    with pytest.raises(RuntimeError, match=rf"have {len(numbers)} rows for 3 prompts \({said}\)"):
        measured(some_prompts([20, 21, 22]), which={"norms": Norms()}, store=store)
    assert not store.exists()


# -- damage ---------------------------------------------------------------------------------------------------
def flipped(file):
    data = bytearray(file.read_bytes())
    data[-3] ^= 0x55
    file.write_bytes(bytes(data))


def edited(file, **changes):
    record = {k: v for k, v in {**json.loads(file.read_text()), **changes}.items() if v is not None}
    file.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda d: flipped(next(d.glob("rows-*"))), r"rows-0-\S+ is damaged or missing \(its checksum is another\)"),
        (lambda d: flipped(next(d.glob("sums-*"))), r"sums-0-\S+ is damaged or missing \(its checksum"),
        (lambda d: next(d.glob("rows-*")).unlink(), r"rows-0-\S+ is damaged or missing \(No such file"),
        (lambda d: os.truncate(d / "progress.json", 20), "progress.json is damaged"),
        (lambda d: os.truncate(d / "progress.json", 0), "progress.json is damaged"),
        (lambda d: edited(d / "progress.json", done=2), "progress.json is damaged, or of another version"),
        (lambda d: edited(d / "progress.json", new=2), "progress.json is damaged, or of another version"),
        (lambda d: edited(d / "progress.json", rows=None), "progress.json is damaged, or of another version"),
        (lambda d: os.truncate(d.parent / "run.json", 20), "run.json is damaged"),
        (lambda d: edited(d.parent / "run.json", format=None), r"differs in: format \(null there, 2 now\)"),
    ],
)
def test_damaged_checkpoint_is_named_before_the_run(spoil, named, tmp_path, monkeypatch):
    store = tmp_path / "run.zarr"
    spoil(stopped_at(store))
    monkeypatch.setattr(type(tiny()), "run", lambda *_, **__: pytest.fail("the model was run"))
    with pytest.raises(ValueError, match=named) as caught:
        resumed(store)
    assert "delete" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_leftover_files_of_an_unfinished_step_do_not_count(tmp_path, whole):
    folder = stopped_at(tmp_path / "run.zarr")
    shutil.copy(next(folder.glob("rows-*")), folder / "rows-0-000009-1.safetensors")
    (folder / ".rows-0-000010-1.safetensors.writing-ab").write_bytes(b"half")
    stopped_at(tmp_path / "run.zarr", left=0)
    assert not list(folder.glob("*000009*")) + list(folder.glob(".rows*"))
    assert_same_node(resumed(tmp_path / "run.zarr"), whole, "norms")


def with_record(path, change):
    record = json.loads(path.read_text())
    change(record["attributes"])
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("file", "change", "named"),
    [
        ("a/zarr.json", {"model": "somebody/else"}, r"/a/\(attributes\)"),
        ("a/x/zarr.json", {"units": "bit"}, r"/a/x \(attributes\)"),
        ("zarr.json", {"seed": 5}, r"/\(attributes\)"),
        ("a/zarr.json", {"more": 1}, r"/a/\(attributes\)"),
    ],
)
def test_changed_attributes_are_noticed(file, change, named, tmp_path):
    path = ti.write(tree(), tmp_path / "run.zarr")
    with_record(path / file, lambda attrs: attrs.update(change))
    with pytest.raises(ValueError, match=f"is damaged: {named} differ from what was written"):
        ti.read(path)


@pytest.mark.slow
def test_attributes_of_any_plain_kind_come_back_with_their_digest(tmp_path):
    run = tree()
    odd = {"i": np.int32(3), "f": np.float32(0.1), "l": [1.5, 2.0], "one": [7], "array": np.arange(3), "t": "é"}
    run["a"].attrs.update(odd)
    run["a"]["x"].attrs.update(odd)
    for name in ("run.zarr", "run.nc") if shutil.which("true") and _has_netcdf() else ("run.zarr",):
        assert ti.read(ti.write(run, tmp_path / name))["a"].attrs["t"] == "é"


def _has_netcdf():
    try:
        import h5netcdf  # noqa: F401
    except ImportError:
        return False
    return True


def test_store_from_before_attributes_had_digests_is_read(tmp_path):
    path = ti.write(tree(), tmp_path / "run.zarr")

    def older(attrs):
        known = json.loads(attrs["digests"])
        attrs["digests"] = json.dumps({k: v for k, v in known.items() if "(attributes)" not in k})

    with_record(path / "zarr.json", older)
    assert_same(ti.read(path), tree(), exact=True)


# -- replacing ------------------------------------------------------------------------------------------------
def test_kill_between_the_two_renames_of_overwriting_keeps_the_old_result(tmp_path, dead):
    path = ti.write(tree(), tmp_path / "run.zarr")
    os.rename(path, tmp_path / f".run.zarr.old-{owner.machine()}-{dead}-1-ab")
    (tmp_path / f".run.zarr.writing-{owner.machine()}-{dead}-1-ab").mkdir()
    assert_same(ti.read(path), tree(), exact=True)
    ti.write(tree(), path, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["run.zarr"]


def test_old_result_is_moved_aside_only_while_it_is_replaced(tmp_path, monkeypatch):
    path, seen, replace = ti.write(tree(), tmp_path / "run.zarr"), [], os.replace

    def watched(a, b):
        replace(a, b)
        if path in (a, b):
            seen.append((path.exists(), sorted(p.name.split("-")[0] for p in tmp_path.iterdir())))

    monkeypatch.setattr(os, "replace", watched)
    monkeypatch.setattr(files, "_exchange", lambda a, b: False)  # as on systems that cannot swap two names
    ti.write(tree(), path, overwrite=True)
    assert seen == [
        (False, [".run.zarr.old", ".run.zarr.writing"]),
        (True, [".run.zarr.old", ".run.zarr.writing", "run.zarr"]),
    ]


def test_result_that_appears_meanwhile_is_not_replaced(tmp_path, monkeypatch):
    from xarray import DataTree

    path, to_zarr = tmp_path / "run.zarr", DataTree.to_zarr

    def slowly(self, *args, **kwargs):
        to_zarr(self, *args, **kwargs)
        path.mkdir()
        (path / "zarr.json").write_text("of somebody else")

    monkeypatch.setattr(DataTree, "to_zarr", slowly)
    with pytest.raises(FileExistsError, match="exists: give another name"):
        ti.write(tree(), path)
    assert (path / "zarr.json").read_text() == "of somebody else"
    assert [p.name for p in tmp_path.iterdir()] == ["run.zarr"]


def test_tree_without_a_result_is_not_written(tmp_path):
    import xarray as xr

    for empty in (xr.DataTree(), xr.DataTree.from_dict({"/": xr.Dataset(attrs=tree().attrs)})):
        with pytest.raises(ValueError, match="the tree holds no result to write; a share that is not the last"):
            ti.write(empty, tmp_path / "run.zarr")
    assert list(tmp_path.iterdir()) == []


# -- shares and memory ----------------------------------------------------------------------------------------
class Numbered(Measurement):
    """Looks prompts up by number, as measurements with labels do, and runs out of memory once per share."""

    full = True

    def sites(self, info):
        return ti.resid([1])

    def begin(self, info, prompts):
        super().begin(info, prompts)
        self.lengths = list(prompts.lengths)

    def update(self, batch):
        if self.full and len(batch) > 1:
            self.full = False
            raise torch.OutOfMemoryError("CUDA out of memory")
        assert [self.lengths[n] for n in batch.numbers] == batch.lengths
        self.append(prompt=torch.tensor(batch.numbers), length=torch.tensor([self.lengths[n] for n in batch.numbers]))

    def result(self):
        prompt, length = self.table("prompt", "length")
        v = ti.results.dataset.variable
        import xarray as xr

        return xr.Dataset({"length": v("prompt", length, "length", "token")}, {"prompt": v("prompt", prompt, "n", "1")})


def test_out_of_memory_in_a_share_keeps_the_numbers_of_the_whole(tmp_path):
    lengths = [20, 21, 20, 23, 20, 25, 20, 27]
    for i in range(2):
        run = measured(
            some_prompts(lengths), which={"n": Numbered()}, store=tmp_path / "r.zarr", share=(i, 2), batch_tokens=90
        )
    assert run["n"]["length"].values.tolist() == lengths


@pytest.mark.slow
def test_given_maps_go_through_shares(tmp_path):
    prompts, info = some_prompts(LENGTHS), tiny().info
    maps = ti.linearity.fit_linear_maps(tiny(), prompts, exclude=(), progress=False)
    assert isinstance(maps, LinearMaps)
    which = {"error": ti.linearity.TokenNonlinearity(maps=maps, exclude=())}
    for i in range(2):
        run = measured(prompts, which=which, store=tmp_path / "r.zarr", share=(i, 2))
    expected = measured(prompts, which=which)
    np.testing.assert_allclose(run["error"]["nonlinearity"], expected["error"]["nonlinearity"], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(run["error"]["linearity"], expected["error"]["linearity"])
    assert info.n_layers == run["error"].sizes["block"]


def test_finished_rows_leave_a_gpu_in_time(monkeypatch):
    from tokinterp.run.loop import Runner

    class OnGpu:
        device, nbytes = SimpleNamespace(type="cuda"), 2**27

        def cpu(self):
            return torch.zeros(1)

    norms = Norms()
    runner = Runner(tiny(), some_prompts([20, 21]), range(2), {"norms": norms}, [], None, 60.0, False)
    for n in range(1, 6):
        norms.rows.setdefault("x", []).append(OnGpu())
        runner._make_room()
        left = sum(isinstance(p, OnGpu) for p in norms.rows["x"])
        assert left == (n if n < 3 else n - 3), "rows of more than 256 MB stayed on the device, or left it too early"
    assert len(norms.rows["x"]) == 5


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
        ({"store": "file/run.zarr"}, "cannot write the store .*file/run.zarr"),
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
    with pytest.raises(KeyboardInterrupt, match="of 7 prompts; the same call resumes"):
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
