"""The first signal is a number that is read between batches; handlers of the caller are put back or left alone."""

import signal
import threading

import pytest
import torch

from tokinterp.run.checkpoint import Checkpoint
from tokinterp.run.signals import Terminated, at_once, stopped, stopping


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_the_first_signal_is_a_number_and_the_handler_comes_back(name, capsys):
    number, own = getattr(signal, name), signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
    before = signal.signal(number, own)  # a background job of a shell ignores some of them
    try:
        with stopping() as asked:
            assert asked() == 0
            signal.raise_signal(number)
            assert asked() == number
        assert signal.getsignal(number) == own
    finally:
        signal.signal(number, before)
    assert "finishing this batch" in capsys.readouterr().err


def test_a_second_ctrl_c_acts_at_once(capsys):
    with stopping() as asked:
        signal.raise_signal(signal.SIGINT)
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert "press again" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_after_the_last_step_stops_what_comes_after_the_fit(name, tmp_path, capsys):
    """A fit of several is whole, and the next one is not begun."""
    number, begun = getattr(signal, name), []

    @at_once()
    def fit(n):
        begun.append(n)
        with Checkpoint(tmp_path / str(n), {"n": n}) as keep:
            keep.step("after 1 of 1 steps")
            keep.finish(lambda path: (signal.raise_signal(number), path.write_text("whole")))

    with pytest.raises(KeyboardInterrupt, match="the same call goes on"):
        _ = [fit(n) for n in range(2)]
    assert begun == [0]
    assert [p.name for p in tmp_path.iterdir()] == ["0"]
    assert capsys.readouterr().err.count("\nstopped;") == (name == "SIGTERM")


def test_a_signal_after_the_last_step_leaves_the_folder_to_the_next(tmp_path):
    def fit():
        with Checkpoint(tmp_path / "a", {"n": 1}, 0) as keep:
            keep.step("after 1 of 1 steps", lambda: ({"done": 1}, {"x": torch.zeros(1)}))
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit()
    with Checkpoint(tmp_path / "a", {"n": 1}) as again:
        notes, _ = again.state() or ({}, {})
        assert notes == {"done": 1}


def test_a_signal_that_was_read_is_not_raised_again():
    with stopping() as asked:
        signal.raise_signal(signal.SIGINT)
        assert asked()
        assert asked()


def test_what_is_ignored_or_handled_by_the_program_stays_so():
    heard = []
    before = {n: signal.getsignal(n) for n in (signal.SIGHUP, signal.SIGUSR1)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, lambda n, f: heard.append(n))
        with stopping() as asked:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGUSR1)
            assert asked() == 0
        assert heard == [signal.SIGUSR1]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_other_threads_have_no_signals():
    found = []

    def work():
        with stopping() as asked:
            found.append(asked())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [0]


def test_the_exit_code_is_that_of_the_signal(capsys):
    assert type(stopped(signal.SIGINT, "m")) is KeyboardInterrupt
    error = stopped(signal.SIGTERM, "saved")
    assert isinstance(error, Terminated)
    assert error.code == 128 + signal.SIGTERM
    assert "saved" in capsys.readouterr().err
