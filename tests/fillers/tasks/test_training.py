"""Training on the synthetic tasks: it learns, it resumes bit for bit, and it says what it did."""

import json

import pytest
import torch
import xarray as xr
from safetensors.torch import load_file

import tokinterp as ti
from tokinterp.fillers.tasks.last import last_evaluation
from tokinterp.fillers.tasks.network import Network, parameters_hash
from tokinterp.fillers.tasks.schedule import Schedule
from tokinterp.fillers.tasks.task import Task
from tokinterp.fillers.tasks.training import Run, load_networks, train
from tokinterp.fitted import read_note
from tokinterp.run.checkpoint import KIND

TINY = Network(2, 32, 2, 64)
TASK = Task(n=3, d=1, m=5, fillers="cot")


def quick(task=TASK, mixture=None, steps=6, **options):
    schedule = options.pop("schedule", Schedule(steps=steps, batch=16, rate=1e-3, evaluations=3))
    options = {"network": TINY, "test_examples": 40, "device": "cpu", "progress": False, **options}
    return train(task, mixture, schedule=schedule, **options)


@pytest.mark.slow
def test_a_small_network_beats_the_majority_in_seconds():
    task = Task(n=3, d=1, m=3)
    schedule = Schedule(steps=100, batch=32, rate=3e-3, evaluations=2)
    ds, networks = quick(task, {"parallel": 1}, network=Network(2, 64, 4, 128), schedule=schedule, test_examples=500)
    assert float(ds["majority"][0]) == 0.5
    last = last_evaluation(ds).squeeze()
    assert float(last["accuracy"].sel(stratum="all")) > 0.9
    assert float(last["auc"]) > 0.95
    # What the Dataset says is what the network answers.
    test = task.test_set("parallel", 500, 1)
    logits = networks[0](input_ids=test.sequences.ids).logits
    said = logits[torch.arange(500), test.sequences.answer_at].argmax(-1)
    assert float((said == test.answer).double().mean()) == float(last["accuracy"].sel(stratum="all"))
    true, said_true = test.answer == task.words.true, said == task.words.true
    assert float(last["true_bias"]) == pytest.approx(float(said_true.double().mean() - true.double().mean()))
    parts = last["accuracy"].isel(stratum=slice(1, None)).fillna(0) * ds["count"].isel(format=0, stratum=slice(1, None))
    assert float(parts.sum()) == pytest.approx(500 * float(last["accuracy"].sel(stratum="all")))


@pytest.mark.slow
def test_resuming_gives_the_same_bits(tmp_path):
    def run(folder):
        return quick(seeds=(0, 1), steps=9, folder=folder, checkpoint_every=0)

    class Killed(Exception):
        pass

    whole, straight = run(tmp_path / "a")
    step = Run.take_step

    def dies(self, batches):
        step(self, batches)
        if (self.seed, self.step) == (1, 5):
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "take_step", dies)
        with pytest.raises(Killed):
            run(tmp_path / "b")
    state = tmp_path / "b" / "seed-1.safetensors.partial" / "state.safetensors"
    assert read_note(state, KIND, "state")["facts"]["notes"]["step"] == 4
    with pytest.raises(ValueError, match="is being trained or unfinished"):
        load_networks(tmp_path / "b")
    again, resumed = run(tmp_path / "b")
    for seed in (0, 1):
        assert parameters_hash(straight[seed]) == parameters_hash(resumed[seed])
    xr.testing.assert_equal(whole.drop_vars("seconds"), again.drop_vars("seconds"))
    assert whole.attrs["fingerprint"] == again.attrs["fingerprint"]
    a, b = (load_file(tmp_path / x / "seed-1.safetensors") for x in "ab")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert sorted(f.name for f in (tmp_path / "b").iterdir()) == ["seed-0.safetensors", "seed-1.safetensors"]
    task, networks = load_networks(tmp_path / "b")
    assert task == TASK
    assert parameters_hash(networks[1]) == parameters_hash(straight[1])
    assert parameters_hash(straight[0]) != parameters_hash(straight[1])


def test_a_folder_of_another_run_and_a_damaged_one_are_refused(tmp_path):
    quick(steps=2, folder=tmp_path)
    with pytest.raises(ValueError, match=r"belongs to another run; it differs in: schedule \(steps\)"):
        quick(steps=3, folder=tmp_path)
    file = tmp_path / "seed-0.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 0x10
    for damaged in (bytes(raw), b"broken"):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged"):
            quick(steps=2, folder=tmp_path)
        with pytest.raises(ValueError, match="is damaged"):
            load_networks(tmp_path)
    with pytest.raises(ValueError, match="has no trained networks"):
        load_networks(tmp_path / "nothing")


@pytest.mark.slow
def test_result_follows_the_conventions(tmp_path):
    ds, _ = quick(mixture={"filler": 1, "parallel": 1, "serial": 1, "none": 1}, seeds=(3, 5))
    assert ds["accuracy"].dims == ("seed", "step", "format", "stratum")
    assert ds["seed"].values.tolist() == [3, 5]
    assert ds["examples_seen"].sel(format="none").values.tolist() == [8, 16, 24]
    assert json.loads(ds.attrs["parameters"])["task"]["n"] == 3
    xr.testing.assert_equal(ti.read(ti.write(ds, tmp_path / "a.zarr")).to_dataset(), ds)
    pictures = ti.plots.draw(ds)
    assert [p.name for p in pictures] == ["accuracy", "auc"]
    assert not any("seconds" in p.caption for p in pictures)


@pytest.mark.slow
def test_match2_is_learned_with_its_own_loss():
    task = Task("match2", n=4, d=1, m=3)
    schedule = Schedule(steps=60, batch=32, rate=3e-3, evaluations=2)
    ds, _ = quick(task, {"none": 0.5, "filler": 0.25, "parallel": 0.25}, schedule=schedule)
    loss = ds["loss"].isel(seed=0)
    assert (loss.isel(step=-1) < loss.isel(step=0)).all()
    assert ds["auc"].isnull().all()
    assert ds["accuracy"].sel(stratum="all").notnull().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixture": {"dots": 1}}, "match3 has no format 'dots'"),
        ({"mixture": {"none": 0}}, "mixture={'none': 0}: give a dictionary .*above 0"),
        ({"mixture": {}}, "mixture={}: give at least 1"),
        ({"mixture": {"none": 1, "filler": 1e-9}}, "without an example"),
        ({"seeds": ()}, "seeds="),
        ({"seeds": (1, 1)}, "each once"),
        ({"test_examples": 1}, "test_examples=1"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        quick(**options)
    with pytest.raises(ValueError, match="even width"):
        Network(d_model=30, n_heads=4)
    with pytest.raises(ValueError, match="fill no batch"):
        Schedule(train_examples=5)
