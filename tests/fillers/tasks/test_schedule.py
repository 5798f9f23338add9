"""The schedule of training: rates, evaluations, published numbers."""

import pytest

from tokinterp.fillers.tasks.schedule import Schedule


def test_rates_rise_over_the_warmup_and_fall_to_the_end():
    s = Schedule(steps=100, rate=2.0, warmup=0.1)
    rates = [s.rate_at(n) for n in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (n + 1) for n in range(10)])
    assert rates[10:] == pytest.approx([2 * (1 - n / 100) for n in range(10, 100)])
    assert Schedule(steps=10, rate=1.0, warmup=0).rate_at(0) == 1


def test_evaluations_are_evenly_spaced_and_the_last_is_at_the_end():
    assert Schedule(steps=100, evaluations=4).evaluate_at == [25, 50, 75, 100]
    assert Schedule(steps=3, evaluations=25).evaluate_at == [1, 2, 3]


def test_published_and_short_schedules():
    one, other = Schedule.paper(), Schedule.paper(no_filler=True)
    assert (one.steps * one.batch, other.steps * other.batch) == (49_999_872, 249_999_872)
    assert (one.weight_decay, one.clip) == (0.01, 1.0)
    assert (other.weight_decay, other.clip) == (0.1, 0.5)
    short = Schedule.budget(examples=5000, batch=100)
    assert (short.steps, short.stop_at, short.train_examples) == (50, 0.995, None)
    assert short.with_steps(7) == Schedule(steps=7, batch=100, stop_at=0.995)


def test_a_training_set_fills_a_batch():
    with pytest.raises(ValueError, match="train_examples=3 fill no batch of 8"):
        Schedule(steps=5, batch=8, train_examples=3)


def test_schedule_is_the_published_one():
    s = Schedule.paper()
    assert s.steps == 5 * 10_000_000 // 256
    first = round(0.05 * s.steps)
    assert s.rate_at(0) == pytest.approx(1e-4 / (0.05 * s.steps))
    assert s.rate_at(first + 1) == pytest.approx(0.95e-4, rel=1e-3)
    assert s.rate_at(s.steps - 1) < 1e-9
    assert len(s.evaluate_at) == 25
    assert s.evaluate_at[-1] == s.steps
