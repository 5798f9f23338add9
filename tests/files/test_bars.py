"""Bars say tokens per second and the time left on a terminal, and nothing in pipes."""

import io
import sys

import pytest
from transformers.utils import logging

from tokinterp.files.bars import progress_bar
from tokinterp.models import load_model


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


@pytest.mark.parametrize(("file", "said"), [(io.StringIO(), False), (Terminal(), True)])
def test_the_bar_of_the_weights_is_quiet_in_pipes_too_and_on_again_afterwards(monkeypatch, tiny_folder, file, said):
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    monkeypatch.setattr(sys, "stderr", file)
    load_model(tiny_folder)
    assert ("Loading weights" in file.getvalue()) is said
    assert logging.is_progress_bar_enabled()
