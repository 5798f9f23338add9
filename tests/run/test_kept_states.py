"""States in a folder are those in memory, are found again, and are refused where they are of something else."""

import gc
import os

import numpy as np
import pytest
import torch
import xarray as xr
from tiny import byte_tokenizer, tiny_lm

import tokinterp as ti
from tokinterp.files.owner import machine
from tokinterp.results import dataset, stores
from tokinterp.run import kept_states

TEXTS = ["The river runs.", "A river and the other river.", "Sea."]


@pytest.fixture(scope="module")
def model():
    return ti.wrap(tiny_lm("llama"), byte_tokenizer(), id="tiny")


def test_the_file_holds_what_memory_would(model, tmp_path):
    whole = ti.states(model, TEXTS, [0, 1])
    kept = ti.states(model, TEXTS, [0, 1], folder=tmp_path / "a")
    assert kept.identical(whole.assign_attrs(created=kept.attrs["created"]))
    assert isinstance(kept["state"].variable._data, np.memmap) or isinstance(kept["state"].values.base, np.memmap)
    layer = np.load(tmp_path / "a" / "states.npy", mmap_mode="r")
    np.testing.assert_array_equal(layer[1], whole["state"].isel(layer=1))


def test_the_same_call_finds_it_without_running_the_model(model, tmp_path, monkeypatch):
    first = ti.states(model, TEXTS, [1], folder=tmp_path / "a")
    monkeypatch.setattr("tokinterp.run.states.stream", lambda *a, **k: iter([None]))
    again = ti.states(model, TEXTS, [1], folder=tmp_path / "a")
    np.testing.assert_array_equal(again["state"], first["state"])
    with pytest.raises(ValueError, match=r"a belongs to another run; it differs in: prompts"):
        ti.states(model, TEXTS[:2], [1], folder=tmp_path / "a")
    with pytest.raises(ValueError, match=r"differs in: settings \(layers\)"):
        ti.states(model, TEXTS, [0], folder=tmp_path / "a")


def test_states_of_another_model_or_of_other_settings_are_no_damage(model, tmp_path):
    ti.states(model, TEXTS, [1], folder=tmp_path / "a")
    lm = tiny_lm("llama", attention="eager")
    lm.load_state_dict(model.lm.state_dict())
    for other, how, says in (
        (ti.wrap(lm, byte_tokenizer(), id="tiny"), {}, "attention"),
        (ti.wrap(tiny_lm("llama", seed=1), byte_tokenizer(), id="tiny"), {}, "model"),
        (ti.wrap(tiny_lm("llama").double(), byte_tokenizer(), id="tiny"), {}, "dtype"),
        (model, {"dtype": "float16"}, r"settings \(dtype\)"),
        (model, {"where": "last"}, r"settings \(places\)"),
        (model, {"edits": [ti.edits.zero(ti.Site("resid", 1), [0])]}, r"settings \(edits\)"),
    ):
        with pytest.raises(ValueError, match=f"differs in: .*{says}"):
            ti.states(other, TEXTS, [1], folder=tmp_path / "a", **how)


def test_a_changed_or_cut_file_is_damaged(model, tmp_path):
    ti.states(model, TEXTS, [1], folder=tmp_path / "a")
    values = np.load(tmp_path / "a" / "states.npy", mmap_mode="r+")
    values[0, 3, 5] += 1
    values.flush()
    with pytest.raises(ValueError, match=r"states.npy is damaged: delete .*a and call again"):
        ti.states(model, TEXTS, [1], folder=tmp_path / "a")
    np.save(tmp_path / "a" / "states.npy", np.zeros((1, 2, 3), np.float32))
    with pytest.raises(ValueError, match="is damaged"):
        ti.states(model, TEXTS, [1], folder=tmp_path / "a")
    (tmp_path / "a" / "states.npy").unlink()
    with pytest.raises(ValueError, match="is damaged or missing"):
        ti.states(model, TEXTS, [1], folder=tmp_path / "a")


def test_what_a_stopped_call_left_is_begun_anew(model, tmp_path, monkeypatch):
    kept = kept_states.KeptStates.put

    def stop(self, *args):
        kept(self, *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(kept_states.KeptStates, "put", stop)
    with pytest.raises(KeyboardInterrupt):
        ti.states(model, TEXTS, [1], folder=tmp_path / "a")
    gc.collect()
    assert not list((tmp_path / "a").iterdir()), "a large file stays as long as this process"
    for pid in (2**22 + 1, os.getpid()):  # one that was killed, and one that is there
        (tmp_path / "a" / f".states.npy.writing-{machine()}-{pid}-0-abcd").touch()
    monkeypatch.undo()
    ds = ti.states(model, TEXTS, [1], folder=tmp_path / "a")
    left = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert left == [f".states.npy.writing-{machine()}-{os.getpid()}-0-abcd", "facts.json", "states.npy"]
    np.testing.assert_array_equal(ds["state"], ti.states(model, TEXTS, [1])["state"])


def test_two_processes_do_not_write_into_each_others_file(tmp_path):
    shape, rows = (2, 1, 3), np.arange(2)
    one, same, other = (
        kept_states.KeptStates(tmp_path / "a", shape, "float32", {"prompts": p}) for p in ("x", "x", "y")
    )
    for value, kept in enumerate((one, same, other)):
        kept.put(rows[:1], 0, np.full((1, 3), value, np.float32))
    found = one.finish()
    one.stamp(xr.Dataset(attrs={"fingerprint": "f"}))
    for value, kept in enumerate((one, same, other)):
        if kept is not one:
            kept.put(rows[1:], 0, np.full((1, 3), value, np.float32))
    assert found[0].tolist() == [[0, 0, 0]]
    assert np.isnan(found[1]).all(), "the numbers of another process"
    with pytest.raises(ValueError, match="belongs to another run; it differs in: prompts"):
        other.finish()
    again = kept_states.KeptStates(tmp_path / "a", shape, "float32", {"prompts": "x"})
    np.testing.assert_array_equal(again.values, found)
    assert same.finish()[:, 0, 0].tolist() == [1, 1]


def test_a_folder_of_other_things_is_left_alone(model, tmp_path):
    (tmp_path / "thesis.tex").write_text("a")
    with pytest.raises(FileExistsError, match="holds other things: choose the name of a new one"):
        ti.states(model, TEXTS, [1], folder=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_half_precision_is_rounded_and_too_large_a_state_refused(model, tmp_path):
    whole = ti.states(model, TEXTS, [1])
    half = ti.states(model, TEXTS, [1], dtype="float16", folder=tmp_path / "a")
    assert half["state"].dtype == np.float16
    np.testing.assert_array_equal(half["state"], whole["state"].astype(np.float16))
    assert half.attrs["fingerprint"] != whole.attrs["fingerprint"]
    huge = [ti.edits.scale(ti.Site("resid", 1), 1e8)]
    with pytest.raises(
        ValueError, match=r"dtype='float16' holds numbers up to 65504, and a state has .*: take 'float32'"
    ):
        ti.states(model, TEXTS, [1], dtype="float16", edits=huge)


def test_tokens_of_a_prompt_that_is_left_out_are_nan(model, tmp_path):
    prompts = ti.Prompts.from_texts(TEXTS, model)
    broken = ti.edits.fill(ti.Site("resid", 1), torch.full((1, 32), torch.nan), [2])
    with pytest.raises(ValueError, match=r"NaN|finite"):
        ti.states(model, prompts, [1], edits=[broken], folder=tmp_path / "all")
    kept = kept_states.KeptStates(tmp_path / "a", (3, 1, 2), "float32", {})
    kept.put(np.array([0, 2]), 0, np.ones((2, 2), np.float32))
    np.testing.assert_array_equal(kept.finish()[:, 0, 0], [1, np.nan, 1])


def test_provenance_reads_a_large_array_block_by_block(model, monkeypatch, tmp_path):
    whole = ti.states(model, TEXTS, [0, 1])
    seen = []
    kept = np.ascontiguousarray
    monkeypatch.setattr(dataset, "BLOCK", 2000)
    monkeypatch.setattr(stores.np, "ascontiguousarray", lambda a, **k: (seen.append(a), kept(a, **k))[1])
    parts = ti.states(model, TEXTS, [0, 1], folder=tmp_path / "a")
    assert parts.attrs["fingerprint"] == whole.attrs["fingerprint"]
    assert max(a.nbytes for a in seen if np.ndim(a) == 3) <= 2000 < whole["state"].nbytes
