"""Bars say tokens per second and the time left on a terminal, and nothing in pipes."""

import io
import sys

import pytest

from tokinterp.files.bars import progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def written(monkeypatch, file, progress):
    monkeypatch.setattr(sys, "stderr", file)
    with progress_bar(progress, 4000, unit="tok", mininterval=0) as bar:
        bar.update(2000)
        bar.refresh()
    return file.getvalue()


def test_a_terminal_is_told_tokens_a_second_and_the_time_left(monkeypatch):
    said = written(monkeypatch, Terminal(), True)
    assert "tok/s" in said
    assert "2.00k/4.00k" in said
    assert "<" in said, "the time left"


@pytest.mark.parametrize(("file", "progress"), [(io.StringIO(), True), (Terminal(), False)])
def test_pipes_and_who_wants_none_get_nothing(monkeypatch, file, progress):
    assert written(monkeypatch, file, progress) == ""
