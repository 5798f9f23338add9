"""Shares of a run, and what it holds of memory."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from stored_runs import LENGTHS, measured, resumed, stopped_at
from tiny import Norms, some_prompts, tiny

import tokinterp as ti
from tokinterp.linearity.maps import LinearMaps
from tokinterp.run.checkpoint import Checkpoint
from tokinterp.run.measurement import Measurement


def test_share_of_another_run_is_refused(tmp_path):
    """A folder of checkpoints that was moved in from another run is not taken up under this run's name."""
    other = stopped_at(tmp_path / "other.zarr", prompts=some_prompts(LENGTHS, seed=1))
    mine = stopped_at(tmp_path / "run.zarr")
    for file in other.glob("*.safetensors"):
        shutil.copy(file, mine)
    with pytest.raises(ValueError, match=r"state.safetensors belongs to another run: delete .*run.zarr.partial"):
        resumed(tmp_path / "run.zarr")


def test_the_checkpoints_of_a_share_are_not_those_of_another(tmp_path):
    """They hold other prompts: a copied folder would count its own twice and the others never."""
    store = tmp_path / "run.zarr"
    root = stopped_at(store, left=1, share=(0, 2)).parent
    shutil.copytree(root / "share-0-of-2", root / "share-1-of-2")
    with pytest.raises(ValueError, match=r"share-1-of-2.*state.safetensors belongs to another run"):
        resumed(store, share=(1, 2))


def test_number_of_shares_is_kept(tmp_path):
    store = tmp_path / "run.zarr"
    stopped_at(store)
    with pytest.raises(ValueError, match=r"differs in: shares \(1 there, 2 now\)"):
        resumed(store, share=(0, 2))


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
    runner = Runner(tiny(), some_prompts([20, 21]), range(2), {"norms": norms}, [], Checkpoint(None, {}), False)
    for n in range(1, 6):
        norms.rows.setdefault("x", []).append(OnGpu())
        runner._make_room()
        left = sum(isinstance(p, OnGpu) for p in norms.rows["x"])
        assert left == (n if n < 3 else n - 3), "rows of more than 256 MB stayed on the device, or left it too early"
    assert len(norms.rows["x"]) == 5
