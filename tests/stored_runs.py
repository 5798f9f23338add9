"""Runs that the tests of measuring, of stores and of resuming share: whole, stopped, taken up again, compared."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from tiny import Norms, Spread, some_prompts, tiny

import tokinterp as ti
from tokinterp.files import owner
from tokinterp.run.checkpoint import share_folder
from tokinterp.run.facts import partial_folder

LENGTHS = [22, 30, 17, 30, 25, 19, 28]
BATCH = 60


def measurements():
    return {
        "norms": Norms(),
        "spread": Spread(),
        "dimension": ti.geometry.IntrinsicDimension(scales=(2, 4), k=4, tokens=None, small="nan"),
        "spectrum": ti.geometry.Spectrum(),
        "lens": ti.lens.LogitLens(tokens=None, top=2),
    }


def measured(prompts=None, model=None, which=None, **options):
    prompts = some_prompts(LENGTHS) if prompts is None else prompts
    return ti.measure(model or tiny(), prompts, which or measurements(), progress=False, **options)


def assert_same(a, b, exact=False):
    """Same groups, names, coordinates and whole numbers; other numbers to a few roundings, or to the bit."""
    assert sorted(n.path for n in a.subtree) == sorted(n.path for n in b.subtree)
    for node in a.subtree:
        one, two = node.to_dataset(inherit=False), b[node.path].to_dataset(inherit=False)
        assert set(one.variables) == set(two.variables)
        assert one.sizes == two.sizes
        for name, v in one.variables.items():
            x, y = v.values, two[name].values
            where = f"{node.path} {name}"
            assert x.dtype == y.dtype, where
            if exact or x.dtype.kind not in "f":
                np.testing.assert_array_equal(x, y, where)
            else:  # another batch shape is another order of float32 sums in the model
                np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5, err_msg=where)
        drop = {"created", "digests"}
        left = {k: v for k, v in one.attrs.items() if k not in drop}
        assert left == {k: v for k, v in two.attrs.items() if k not in drop}


def both():
    return {"norms": Norms(), "spread": Spread()}


class Log(list):
    """Written to by the copies that runs fill, too."""

    def __deepcopy__(self, memo):
        return self


class Stops(Norms):
    """Fails, or is interrupted, after so many batches of a run; keeps which prompts it saw."""

    def __init__(self, layers=None, per_token=True):
        super().__init__(layers, per_token)
        self.left = 10**9
        self.how = RuntimeError
        self.seen = Log()

    def update(self, batch):
        if self.left == 0:
            if self.how is RuntimeError:
                raise RuntimeError("stopped by the test")
            signal.raise_signal(signal.SIGINT)
        self.left -= 1
        self.seen += batch.numbers
        super().update(batch)


def assert_same_node(a, b, name):
    one, two = a[name].to_dataset(), b[name].to_dataset()
    assert set(one.variables) == set(two.variables)
    for v in one.variables:
        assert one[v].values.tobytes() == two[v].values.tobytes() or one[v].values.tolist() == two[v].values.tolist(), v


def stopped_at(store, left=2, **options):
    """A run that failed after some batches, with a checkpoint after each."""
    stops = Stops()
    stops.left = left
    with pytest.raises(RuntimeError, match="stopped by the test"):
        measured(which={"norms": stops}, store=store, batch_tokens=BATCH, checkpoint_every=0, **options)
    return share_folder(partial_folder(store), options.get("share", (0, 1)))


def resumed(store, **options):
    return measured(which={"norms": Stops()}, store=store, batch_tokens=BATCH, **options)


def ended_process():
    """Return the number of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def as_owner(folder, **record):
    """Make a folder look written by somebody."""
    child = {"token": "ab", "host": "node7", "machine": owner.machine(), "pid": os.getppid(), "started": "", **record}
    number = owner.last_owner(folder)[0] + 1
    (folder / f"owner-{number:06d}.json").write_text(json.dumps(child))
    return folder / f"owner-{number:06d}.json"
