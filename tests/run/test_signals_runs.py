"""Signals stop a run, a command or a proof, and leave everything saved."""

import os
import signal
import subprocess
import sys
import threading

import pytest
from stored_runs import (
    BATCH,
    assert_same_node,
    measured,
)
from tiny import Norms, tiny_lm

import tokinterp as ti
from tokinterp.cli import main as cli
from tokinterp.cli import options as cli_options
from tokinterp.run import signals
from tokinterp.run.signals import at_once, stopping

posix = pytest.mark.skipif(os.name != "posix", reason="processes and signals of POSIX")


measure_module = sys.modules["tokinterp.run.engine"]


@pytest.fixture(scope="module")
def whole():
    return measured(which={"norms": Norms()}, batch_tokens=BATCH)


class Signalled(Norms):
    """Sends signals in its second batch."""

    def __init__(self, *numbers):
        super().__init__()
        self.numbers, self.left = numbers, 2

    def update(self, batch):
        self.left -= 1
        if not self.left:
            for number in self.numbers:
                signal.raise_signal(number)
        super().update(batch)

    def settings(self):
        return {}


@posix
@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGUSR1", 138)])
def test_signals_of_schedulers_finish_the_batch_and_save(name, status, tmp_path, capsys, whole):
    number, store = getattr(signal, name), tmp_path / "run.zarr"
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)}
    with pytest.raises(KeyboardInterrupt, match="stopped after 4 of 7 prompts; the same call goes on") as caught:
        measured(which={"norms": Signalled(number, number)}, store=store, batch_tokens=BATCH, checkpoint_every=1000)
    assert isinstance(caught.value, SystemExit)
    assert caught.value.code == status
    assert "the same call goes on from there" in capsys.readouterr().err
    assert {s: signal.getsignal(s) for s in before} == before
    assert_same_node(measured(which={"norms": Signalled()}, store=store, batch_tokens=BATCH), whole, "norms")


@posix
def test_uncaught_stop_ends_the_process_with_the_status_of_its_signal():
    code = f"""
import importlib.util, signal
spec = importlib.util.spec_from_file_location("signals", {str(signals.__file__)!r})
spec.loader.exec_module(found := importlib.util.module_from_spec(spec))
raise found.stopped(signal.SIGTERM, "stopped after 4")
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert out.returncode == 143
    assert out.stderr.strip() == "stopped after 4"


@posix
def test_second_signal_acts_at_once_and_ignored_ones_stay_ignored(monkeypatch):
    calls = []
    with monkeypatch.context() as patched:
        patched.setattr("tokinterp.run.signals.TWICE", 0.0)
        before = signal.signal(signal.SIGTERM, lambda number, frame: calls.append(number))
        ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        own = signal.signal(signal.SIGUSR1, lambda number, frame: calls.append(number))
        try:
            with stopping() as asked:
                signal.raise_signal(signal.SIGHUP)
                assert asked() == 0
                signal.raise_signal(signal.SIGUSR1)  # the program's own meaning of it
                assert (asked(), calls.pop()) == (0, signal.SIGUSR1)
                signal.raise_signal(signal.SIGTERM)
                assert (asked(), calls) == (signal.SIGTERM, [])
                signal.raise_signal(signal.SIGTERM)
                assert calls == [signal.SIGTERM]
        finally:
            signal.signal(signal.SIGTERM, before)
            signal.signal(signal.SIGHUP, ignored)
            signal.signal(signal.SIGUSR1, own)


def swallowing(number, how):
    """Send a signal from where a library makes another error of it, or none."""
    try:
        signal.raise_signal(number)
    except KeyboardInterrupt:
        if how == "passes":
            raise
        if how == "changes":
            raise ValueError("could not determine the shape of an object") from None


@posix
@pytest.mark.parametrize("how", ["passes", "changes", "swallows"])
@pytest.mark.parametrize(("name", "status"), [("SIGINT", None), ("SIGTERM", 143), ("SIGUSR1", 138)])
def test_a_signal_stops_at_once_whatever_a_library_makes_of_it(how, name, status, capsys, monkeypatch):
    monkeypatch.setattr(signals, "TWICE", 0.0)
    number = getattr(signal, name)
    before = signal.getsignal(number)

    @at_once("go on")
    def work():
        with stopping() as asked:  # the one inside has its own way, and gives it back
            signal.raise_signal(number)
            assert asked() == number
        swallowing(number, "swallows")
        swallowing(number, how)

    with pytest.raises(KeyboardInterrupt, match=r"^stopped; go on$") as caught:
        work()
    assert getattr(caught.value, "code", None) == status
    assert signal.getsignal(number) == before
    assert ("stopped; go on" in capsys.readouterr().err) == (status is not None)
    with pytest.raises(ValueError, match="no signal"), at_once():
        raise ValueError("no signal")


@posix
@pytest.mark.parametrize("how", ["passes", "changes", "swallows"])
@pytest.mark.parametrize("place", ["identity", "opening", "writing"])
@pytest.mark.slow
def test_a_run_is_stopped_while_it_is_set_up_or_written(how, place, tmp_path, monkeypatch, whole):
    store, name = tmp_path / "run.zarr", {"identity": "run_facts", "opening": "Checkpoint", "writing": "_result"}[place]
    with monkeypatch.context() as patched:
        real = getattr(measure_module, name)

        def found(*args):
            swallowing(signal.SIGTERM, how)
            return real(*args)

        patched.setattr(measure_module, name, found)
        with pytest.raises(KeyboardInterrupt, match="the same call goes on with what is kept"):
            measured(which={"norms": Norms()}, store=store, batch_tokens=BATCH)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert_same_node(measured(which={"norms": Norms()}, store=store, batch_tokens=BATCH), whole, "norms")
    assert [p.name for p in tmp_path.iterdir()] == ["run.zarr"]


@posix
def test_a_model_is_not_returned_when_its_proof_was_stopped(monkeypatch):
    monkeypatch.setattr("tokinterp.models.proof.check_causal", lambda _: swallowing(signal.SIGINT, "swallows"))
    with pytest.raises(KeyboardInterrupt, match="stopped; call it again"):
        ti.wrap(tiny_lm())


@posix
@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_command_that_is_stopped_while_it_loads_says_how_to_go_on(name, status, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli_options, "load_named", lambda *_, **__: swallowing(getattr(signal, name), "changes"))
    (tmp_path / "a.txt").write_text("A river.")
    with pytest.raises(SystemExit) as end:
        cli.main(["measure", "bundled", str(tmp_path / "a.txt"), "-m", "norms", "-o", str(tmp_path / "run.zarr")])
    assert end.value.code == status
    assert capsys.readouterr().err.strip().endswith("stopped: the same command goes on with what is kept")


def test_threads_leave_signals_alone():
    found = []

    def work():
        with stopping() as asked:
            found.append((asked(), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(0, signal.getsignal(signal.SIGINT))]
