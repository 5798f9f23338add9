"""Shares from several folders are gathered once, and only of one run."""

import pytest
import xarray as xr
from tiny import Norms, some_prompts, tiny

import tokinterp as ti
from tokinterp.run.checkpoint import STATE
from tokinterp.run.facts import partial_folder
from tokinterp.run.shares import gather_shares


def share(folder, n, of=2, which=None, name=None, **options):
    store = folder / f"{n if name is None else name}.zarr"
    asked = {"norms": which or ti.geometry.TokenNorms()}
    prompts = some_prompts([9, 8, 7, 5])
    often = {"batch_tokens": 9, "checkpoint_every": 0, "progress": False}
    ti.measure(tiny(), prompts, asked, store=store, share=(n, of), **often, **options)
    return store


def test_the_gathered_shares_are_the_whole_run(tmp_path):
    stores = [share(tmp_path, n) for n in (0, 1)]
    out = tmp_path / "all" / "run.zarr"
    assert gather_shares(stores[:1], out) == [1]
    assert gather_shares(stores, out) == []
    asked, prompts = {"norms": ti.geometry.TokenNorms()}, some_prompts([9, 8, 7, 5])
    run = ti.measure(tiny(), prompts, asked, store=out, share=(1, 2), progress=False)
    whole = ti.measure(tiny(), prompts, asked, progress=False)
    xr.testing.assert_allclose(run["norms"].to_dataset(), whole["norms"].to_dataset())


def test_shares_of_another_run_are_refused(tmp_path, monkeypatch):
    first = share(tmp_path, 0)
    other = tmp_path / "other"
    second = share(other, 1, edits=[ti.edits.zero(ti.Site("attn_out", 0))])
    with pytest.raises(ValueError, match=r"belongs to another run; it differs in: edits"):
        gather_shares([first, second], tmp_path / "all.zarr")
    with pytest.raises(ValueError, match="is no unfinished run of shares"):
        gather_shares([tmp_path / "none.zarr"], tmp_path / "all.zarr")
    stopped_share(monkeypatch, tmp_path, 2, of=1)
    with pytest.raises(ValueError, match=r"2\.zarr is no share but a whole run"):
        gather_shares([tmp_path / "2.zarr"], tmp_path / "alone" / "run.zarr")
    assert not (tmp_path / "alone").exists()


class Stops(Norms):
    """Fails after so many batches."""

    left = 99

    def update(self, batch):
        super().update(batch)
        Stops.left -= 1
        if Stops.left < 0:
            raise RuntimeError("stopped")


def stopped_share(monkeypatch, folder, n, of):
    """Leave a run that has kept its first batch."""
    with monkeypatch.context() as m:
        m.setattr(Stops, "left", 1)
        with pytest.raises(RuntimeError, match="stopped"):
            share(folder, n % of, of=of, which=Stops(), name=n)
    assert list(partial_folder(folder / f"{n}.zarr").rglob(STATE))


def test_a_share_that_was_begun_where_they_are_gathered_makes_room_for_the_finished_one(tmp_path, monkeypatch):
    out = tmp_path / "out" / "0.zarr"
    stores = [share(tmp_path, n, which=Stops()) for n in (0, 1)]
    stopped_share(monkeypatch, out.parent, 0, of=2)
    assert gather_shares(stores, out) == []
    monkeypatch.setattr("tokinterp.run.loop.Runner._capture", None)
    again = share(out.parent, 0, which=Stops())
    assert ti.read(again)["prompts"]["prompt"].values.tolist() == [0, 1, 2, 3]


def test_what_is_half_done_is_not_taken(tmp_path):
    stores = [share(tmp_path, n) for n in (0, 1)]
    record = partial_folder(stores[1]) / "share-1-of-2" / STATE
    record.unlink()
    assert gather_shares(stores, tmp_path / "all.zarr") == [1]
