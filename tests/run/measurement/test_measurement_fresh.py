"""What is given to a run stays as it is: measure fills copies, which share the settings."""

import pickle
import threading

import pytest
import torch
from stored_runs import assert_same
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.run.measurement import Field, Measurement

LENGTHS = [20, 30, 17, 25]


class Own(Measurement):
    """Keeps things in attributes of its own, which is not asked for, and stops at a batch if told to."""

    fields = {"length": Field(("prompt",), "length of the prompt", "token")}
    tried = False

    def __init__(self, weight, layers=None, stop=None):
        super().__init__()
        self.weight, self.layers, self.stop = weight, layers, stop
        self.log, self.total, self.lock = [], torch.zeros(3), threading.Lock()

    def begin(self, info, prompts):
        super().begin(info, prompts)
        self.log.append("begin")

    def update(self, batch):
        self.log.append(len(batch))
        self.total += self.weight.sum()
        if len(self.log) == self.stop:
            raise KeyboardInterrupt
        self.add("seen", torch.ones(1))
        self.keep(batch, length=torch.tensor(batch.lengths))


def state(m):
    """All attributes as bytes, but for the lock."""
    return pickle.dumps({k: v for k, v in vars(m).items() if k != "lock"})


@pytest.mark.parametrize("stop", [None, 3])
def test_a_measurement_given_stays_as_it_is_also_when_the_run_is_stopped(stop, tmp_path):
    m = Own(torch.ones(5), stop=stop)
    m.rows, m.sums = {"old": [torch.ones(2)]}, {"old": torch.ones(1)}
    before = state(m)

    def run():
        return ti.measure(
            tiny(), some_prompts(LENGTHS), {"m": m}, batch_tokens=1, store=tmp_path / "r.zarr", progress=False
        )

    if stop:
        with pytest.raises(KeyboardInterrupt):
            run()
    else:
        assert run()["m"]["length"].values.tolist() == LENGTHS
        assert "old" not in run()["m"]
    assert state(m) == before


def test_a_copy_shares_the_settings_and_owns_the_rest():
    m = Own(torch.ones(5))
    m.itself = m.update
    copy = m.fresh()
    assert copy.weight is m.weight
    assert copy.lock is m.lock
    assert copy.log is not m.log
    assert copy.total.data_ptr() != m.total.data_ptr()
    assert copy.itself.__self__ is copy


def test_one_measurement_serves_several_runs():
    m = ti.geometry.CosineSimilarity(layers=[1, 2])
    first = ti.measure(tiny(), some_prompts(LENGTHS), {"m": m}, progress=False)
    ti.measure(tiny(), some_prompts([9, 8]), {"m": m}, progress=False)
    assert_same(ti.measure(tiny(), some_prompts(LENGTHS), {"m": m}, progress=False), first, exact=True)


def test_one_measurement_may_have_two_names():
    same, prompts = Own(torch.ones(2), layers=[0]), some_prompts(LENGTHS)
    tree = ti.measure(tiny(), prompts, {"a": same, "b": same, "c": Own(torch.ones(2), layers=[0])}, progress=False)
    assert tree["a"]["length"].values.tolist() == LENGTHS
    first = tree["a"].to_dataset()
    assert all(tree[n].to_dataset().identical(first) for n in ("b", "c"))
