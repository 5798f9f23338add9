"""What more prompts cost: work counted, not timed, and memory that what is kept holds."""

import numpy as np
import torch
from stored_runs import LENGTHS
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp.run.measurement import Measurement


class Counted(np.ndarray):
    """Counts the entries that are read or computed with."""

    seen = 0

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        Counted.seen += sum(np.size(x) for x in inputs)
        return getattr(ufunc, method)(*[np.asarray(x) for x in inputs], **options)

    def __array_function__(self, function, types, args, options):
        Counted.seen += self.size
        return function(*[np.asarray(x) if isinstance(x, Counted) else x for x in args], **options)

    def __getitem__(self, which):
        found = np.asarray(self)[which]
        Counted.seen += np.size(found)
        return found


class CountedList(list):
    def __getitem__(self, which):
        Counted.seen += 1
        return super().__getitem__(which)

    def __iter__(self):
        Counted.seen += len(self)
        return super().__iter__()


def test_a_batch_costs_the_same_among_more_prompts():
    def entries(n):
        prompts = some_prompts([5, 3, 4] * n)
        prompts.starts, prompts.token_ids = prompts.starts.view(Counted), prompts.token_ids.view(Counted)
        prompts.lengths = CountedList(prompts.lengths)
        Counted.seen = 0
        ti.capture(tiny(), prompts, [2, 0, 1], ti.resid([1]))
        return Counted.seen

    assert entries(300) == entries(3) > 0


class Slices(Measurement):
    """Keeps one entry of a large tensor of each batch."""

    fields = {"first": ti.Field(("prompt",), "first entry of the stream")}
    layers = (1,)

    def update(self, batch):
        self.keep(batch, first=batch.resid(1)[:, 0, 0])


def test_a_row_holds_no_more_memory_than_it_has():
    m = Slices()
    large = torch.arange(600.0, device="cpu").reshape(3, 200)
    m.append(first=large[:, 0], whole=large)
    assert m.rows["first"][0].untyped_storage().nbytes() == 12
    assert m.rows["first"][0].tolist() == [0, 200, 400]
    assert m.rows["whole"][0].data_ptr() == large.data_ptr()


def test_rows_go_once_they_are_in_the_result(monkeypatch):
    filled, left = [], []
    update, result = Slices.update, Slices.result
    monkeypatch.setattr(Slices, "update", lambda m, batch: (filled.append(m), update(m, batch))[1])
    monkeypatch.setattr(Slices, "result", lambda m: (left.append(len({id(f) for f in filled if f.rows})), result(m))[1])
    run = ti.measure(tiny(), some_prompts(LENGTHS), {"a": Slices(), "b": Slices()}, batch_tokens=20, progress=False)
    assert left[-1] == left[-2] - 1  # beside those of the trial before the run
    np.testing.assert_array_equal(run["a"]["first"], run["b"]["first"])
