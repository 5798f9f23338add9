"""Match3 and Match2: labels, certificates, lengths and published shares of True."""

import pytest
import torch

from tokinterp.fillers.tasks import match3
from tokinterp.fillers.tasks.formats import Sequences
from tokinterp.fillers.tasks.task import Task


def test_examples_depend_on_seed_and_format():
    task = Task(n=4, d=2)
    a, b, c = (task.test_set("filler", 50, s).rows for s in (0, 1, 0))
    assert torch.equal(a, c)
    assert not torch.equal(a, b)
    first = {form: next(task.stream(form, 50, 0, 2)).ids[:, :4] for form in ("none", "filler")}
    assert not torch.equal(first["none"], first["filler"])
    assert not torch.equal(first["filler"], task.test_set("filler", 50).sequences.ids[:, :4])


def test_streams_begin_anywhere_and_repeat_after_an_epoch():
    task = Task(n=4, d=2)

    def batches(first, how_many, **options):
        s = task.stream("parallel", 8, 5, 3, first=first, **options)
        return [next(s).ids for _ in range(how_many)]

    whole = batches(0, 8)
    assert all(torch.equal(a, b) for a, b in zip(whole[4:], batches(4, 4), strict=True))
    assert len({tuple(b.flatten().tolist()) for b in whole}) == 8
    again = batches(0, 8, size=4)
    assert all(torch.equal(again[i], again[i + 4]) for i in range(4))
    other = next(task.stream("parallel", 8, 6, 3)).ids
    assert not torch.equal(other, whole[0])


def test_test_sets_have_the_same_rows_in_every_format_and_count_strata():
    task = Task(n=6, d=2, mode="released")
    sets = {form: task.test_set(form, 400) for form in ("none", "filler", "parallel")}
    assert all(torch.equal(s.rows, sets["none"].rows) for s in sets.values())
    s = sets["filler"]
    true = s.answer == task.words.true
    assert torch.equal(true, (s.stratum == 1) | (s.stratum == 2))
    near = match3.near_misses(s.rows, 10)
    assert torch.equal(s.stratum[~true], 3 + near[~true].clamp_max(3))
    assert (s.stratum == 2).any()
    assert isinstance(s.sequences, Sequences)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 2}, "n=2 is too small for match3: a triple needs three rows"),
        ({"family": "match2", "n": 30, "d": 4}, r"n\*d = 120 digits exceed the key table of 100"),
        ({"family": "match4"}, "family='match4'"),
        ({"mode": "loose"}, "mode='loose'"),
        ({"fillers": "many"}, "fillers='many'"),
        ({"fillers": -1}, "fillers=-1"),
        ({"d": 0}, "d=0"),
        ({"d": 40}, "10\\*\\*40 row words"),
        ({"true_rate": 1.0}, "true_rate=1.0"),
        ({"serial_quantile": 0.0}, "serial_quantile=0.0"),
        ({"family": "match2", "serial_quantile": 0.9}, "of the serial format of match3"),
    ],
)
def test_impossible_tasks_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Task(**settings)
