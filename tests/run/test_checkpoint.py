"""What is kept of a run: damaged, on a full disk, and taken up again."""

import pytest
import torch
from stored_runs import BATCH, Stops, assert_same_node, both, measured
from tiny import Norms, Spread

from tokinterp.run.checkpoint import STATE
from tokinterp.run.facts import partial_folder


@pytest.fixture(scope="module")
def whole():
    return measured(which=both(), batch_tokens=BATCH)


def test_batch_size_of_the_first_call_is_kept(tmp_path, whole):
    """Another batch size would be another order of sums: a resumed run keeps the first."""
    store = tmp_path / "run.zarr"
    stops = Stops()
    stops.left = 2
    with pytest.raises(RuntimeError, match="stopped by the test"):
        measured(which={"norms": stops, "spread": Spread()}, store=store, batch_tokens=BATCH, checkpoint_every=0)
    run = measured(which={"norms": Stops(), "spread": Spread()}, store=store, batch_tokens=1000)
    assert_same_node(run, whole, "norms")
    assert_same_node(run, whole, "spread")


def test_damaged_checkpoint_is_named(tmp_path):
    store = tmp_path / "run.zarr"
    stops = Stops()
    stops.left = 2
    with pytest.raises(RuntimeError, match="stopped by the test"):
        measured(which={"norms": stops}, store=store, batch_tokens=BATCH, checkpoint_every=0)
    sums = partial_folder(store) / STATE
    sums.write_bytes(sums.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"is damaged or missing .*: delete .* and start anew"):
        measured(which={"norms": Stops()}, store=store)


def test_full_disk_keeps_what_is_finished(tmp_path, monkeypatch, whole):
    """The disk fills up at the third checkpoint; with space again the same call goes on."""
    from safetensors import torch as library

    store = tmp_path / "run.zarr"
    save, calls = library.save_file, []

    def full(tensors, path, notes=None):
        calls.append(path)
        if len(calls) > 4:
            raise OSError(28, "No space left on device")
        save(tensors, path, notes)

    monkeypatch.setattr(library, "save_file", full)
    with pytest.raises(OSError, match=r"No space left on device; free some space .*; the same call goes on"):
        measured(which={"norms": Stops(), "spread": Spread()}, store=store, batch_tokens=BATCH, checkpoint_every=0)
    assert not list(tmp_path.rglob("*.writing*"))
    monkeypatch.setattr(library, "save_file", save)
    run = measured(which={"norms": Stops(), "spread": Spread()}, store=store, batch_tokens=BATCH)
    assert_same_node(run, whole, "norms")
    assert_same_node(run, whole, "spread")


def test_state_is_taken_up_again():
    m = Norms()
    m.add("total", torch.arange(3.0))
    m.append(prompt=torch.tensor([1, 2]), norm=torch.ones(2, 3))
    m.append(prompt=torch.tensor([0]), norm=torch.zeros(1, 3))
    other = Norms()
    other.load(m.state())
    assert torch.equal(other.sums["total"], torch.arange(3.0))
    prompt, norm = other.table("prompt", "norm")
    assert prompt.tolist() == [0, 1, 2]
    assert norm[:, 0].tolist() == [0, 1, 1]
