"""Shares are merged from file to file: what is kept per prompt is never in memory as a whole."""

import errno
import mmap
import os
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from stored_runs import assert_same, measured
from tiny import Norms

import tokinterp as ti
from tokinterp.run import engine
from tokinterp.run.kept_states import KeptStates
from tokinterp.run.measurement import kept


def table():
    """Rows of three batches, out of order."""
    out = kept.Kept()
    for numbers in ([5, 0], [3], [1, 4, 2]):
        values = torch.tensor(numbers)
        out.append(prompt=values, twice=2.0 * values, row=values[:, None] + torch.arange(3) / 10)
    return out


def mapped(array):
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(array, mmap.mmap)


def test_columns_are_sorted_in_files_as_in_memory(tmp_path, monkeypatch):
    inside = table().table("prompt", "twice", "row")
    assert inside[0].tolist() == [0, 1, 2, 3, 4, 5]
    np.testing.assert_allclose(inside[2][:, 2], np.arange(6) + 0.2)
    other = table()
    other.sorted_in = tmp_path
    assert not any(map(mapped, other.table("prompt", "twice", "row"))), "so little needs no file"
    monkeypatch.setattr(kept, "IN_MEMORY", 40)
    found = other.table("prompt", "twice", "row")
    assert [mapped(c) for c in found] == [True, False, True]
    assert not list(tmp_path.iterdir()), "a file with a name is left if the process is killed"
    for a, b in zip(inside, found, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_columns_whose_parts_have_several_types_lose_no_digit(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "IN_MEMORY", 0)
    for folder in (None, tmp_path):
        out = kept.Kept()
        out.sorted_in = folder
        for values in (torch.zeros(0), torch.tensor([2.0**24]), torch.tensor([2.0**24 + 1], dtype=torch.float64)):
            out.append(prompt=torch.arange(len(values)), value=values)
        assert out.table("prompt", "value")[1].tolist() == [2.0**24, 2.0**24 + 1]


def test_a_full_disk_is_an_error_and_not_the_end_of_the_process(tmp_path, monkeypatch):
    """Which a write to a mapped file on a full disk is."""

    def full(handle, start, size):
        raise OSError(errno.ENOSPC, f"no room for {size} bytes")

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(kept, "IN_MEMORY", 40)
    other = table()
    other.sorted_in = tmp_path
    with pytest.raises(OSError, match="no room for 48 bytes"):
        other.table("prompt", "twice", "row")
    with pytest.raises(OSError, match=r"no room for \d+ bytes"):
        KeptStates(tmp_path / "states", (9, 2, 4), "float32", {})


def file_of(tensor):
    """Where the memory of a tensor lies, of Linux."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, stop = (int(x, 16) for x in line.split()[0].split("-"))
        if start <= tensor.data_ptr() < stop:
            return line
    raise AssertionError("nowhere")


@pytest.mark.slow
def test_a_run_that_is_sorted_in_files_is_the_same(tmp_path, monkeypatch):
    which = {"norms": Norms(), "lens": ti.lens.LogitLens(tokens=None, top=2)}
    runs = [measured(which=which, store=tmp_path / "one.zarr", share=(i, 3), batch_tokens=60) for i in range(3)]
    monkeypatch.setattr(kept, "IN_MEMORY", 0)
    seen = []
    merge = engine._merge_shares

    def watched(keep, measurements):
        merge(keep, measurements)
        for m in measurements.values():
            seen.extend(file_of(p) for parts in m.rows.values() for p in parts if p.numel())

    monkeypatch.setattr(engine, "_merge_shares", watched)
    again = [measured(which=which, store=tmp_path / "two.zarr", share=(i, 3), batch_tokens=60) for i in range(3)]
    assert_same(runs[-1], again[-1], exact=True)
    assert len(seen) > 9
    assert all("share-" in name for name in seen), "rows were read into memory to be merged"


def test_memory_of_a_merge_is_that_of_a_share(tmp_path, monkeypatch):
    """The sums of one share beside those that are merged, however many shares there are."""
    alive, most = [], []

    class Sums(Norms):
        def load(self, state, device):
            super().load(state, device)
            for sums in self.sums.values():
                alive.append(weakref.ref(sums))
            most.append(sum(r() is not None for r in alive))

    for i in range(4):
        alive.clear()
        most.clear()
        measured(which={"n": Sums()}, store=tmp_path / "r.zarr", share=(i, 4))
    each = most[1]
    assert (len(most), each > 0) == (5, True), "one to begin with, and four shares"
    assert max(most) <= 3 * each
