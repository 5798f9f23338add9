"""Fits that are interrupted, or die, at a chosen step."""

import signal

from tokinterp.run.checkpoint import Checkpoint


class Killed(Exception):
    pass


def stopping(monkeypatch, number, how):
    """Let the fit be interrupted, or die, at a step; return the list of steps taken."""
    step, taken = Checkpoint.step, []

    def watched(self, said, state=None):
        taken.append(said)
        if len(taken) == number and how == "signal":
            signal.raise_signal(signal.SIGINT)
        step(self, said, state)
        if len(taken) == number and how == "kill":
            raise Killed

    monkeypatch.setattr(Checkpoint, "step", watched)
    return taken
