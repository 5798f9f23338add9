"""Shares from several folders are gathered once, and only of one run."""

import pytest
import xarray as xr
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.run.checkpoint import STATE
from tokinterp.run.facts import partial_folder
from tokinterp.run.shares import gather_shares


def share(folder, n, of=2, **options):
    asked = {"norms": ti.geometry.TokenNorms()}
    prompts = some_prompts([9, 8, 7, 5])
    ti.measure(tiny(), prompts, asked, store=folder / f"{n}.zarr", share=(n, of), progress=False, **options)
    return folder / f"{n}.zarr"


def test_the_gathered_shares_are_the_whole_run(tmp_path):
    stores = [share(tmp_path, n) for n in (0, 1)]
    out = tmp_path / "all" / "run.zarr"
    assert gather_shares(stores[:1], out) == [1]
    assert gather_shares(stores, out) == []
    asked, prompts = {"norms": ti.geometry.TokenNorms()}, some_prompts([9, 8, 7, 5])
    run = ti.measure(tiny(), prompts, asked, store=out, share=(1, 2), progress=False)
    whole = ti.measure(tiny(), prompts, asked, progress=False)
    xr.testing.assert_allclose(run["norms"].to_dataset(), whole["norms"].to_dataset())


def test_shares_of_another_run_are_refused(tmp_path):
    first = share(tmp_path, 0)
    other = tmp_path / "other"
    second = share(other, 1, edits=[ti.edits.zero(ti.Site("attn_out", 0))])
    with pytest.raises(ValueError, match=r"belongs to another run; it differs in: edits"):
        gather_shares([first, second], tmp_path / "all.zarr")
    with pytest.raises(ValueError, match="is no unfinished run of shares"):
        gather_shares([tmp_path / "none.zarr"], tmp_path / "all.zarr")


def test_what_is_half_done_is_not_taken(tmp_path):
    stores = [share(tmp_path, n) for n in (0, 1)]
    record = partial_folder(stores[1]) / "share-1-of-2" / STATE
    record.unlink()
    assert gather_shares(stores, tmp_path / "all.zarr") == [1]
