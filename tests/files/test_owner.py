"""One writer at a time: locks, signs of life, dead and living writers."""

import errno
import os
import threading
import time

import pytest
from stored_runs import (
    BATCH,
    as_owner,
    assert_same_node,
    ended_process,
    measured,
    resumed,
    stopped_at,
)
from tiny import Norms

from tokinterp.files import owner

posix = pytest.mark.skipif(os.name != "posix", reason="processes and signals of POSIX")


@pytest.fixture(scope="module")
def whole():
    return measured(which={"norms": Norms()}, batch_tokens=BATCH)


@pytest.fixture(scope="module")
def dead():
    """The number of a process that has ended."""
    return ended_process()


# -- one writer -----------------------------------------------------------------------------------------------
@pytest.fixture
def no_locks(monkeypatch):
    """A file system without locks."""
    import fcntl

    def fail(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)


@posix
def test_second_writer_is_refused_without_locks(tmp_path, no_locks, whole):
    errors = []

    class Doubled(Norms):
        def update(self, batch):
            if not errors:
                try:
                    measured(which={"norms": Doubled()}, store=tmp_path / "run.zarr")
                except RuntimeError as error:
                    errors.append(str(error))
            super().update(batch)

    run = measured(which={"norms": Doubled()}, store=tmp_path / "run.zarr", batch_tokens=BATCH)
    assert len(errors) == 1
    assert f"another process is writing {tmp_path / 'run.zarr'} (process {os.getpid()} on " in errors[0]
    assert_same_node(run, whole, "norms")


@posix
def test_writer_that_lives_is_refused_and_a_dead_one_is_not(tmp_path, no_locks, dead, whole):
    store = tmp_path / "run.zarr"
    folder = stopped_at(store)
    as_owner(folder)
    with pytest.raises(RuntimeError, match=rf"process {os.getppid()} on node7\): wait for it, or choose another store"):
        resumed(store)
    as_owner(folder, pid=dead)
    as_owner(folder, started="12")  # the number of a dead process was given to another
    assert_same_node(resumed(store), whole, "norms")


@pytest.mark.slow
def test_writer_on_another_machine_is_known_by_its_signs_of_life(tmp_path, monkeypatch, whole, capsys):
    store = tmp_path / "run.zarr"
    file = as_owner(stopped_at(store), machine="another")
    monkeypatch.setattr(owner, "SILENCE", 20.0)
    beat = threading.Timer(0.3, os.utime, (file, (time.time() + 1, time.time() + 1)))
    beat.start()
    with pytest.raises(RuntimeError, match="another process is writing"):
        resumed(store)
    assert "node7 was writing it" in capsys.readouterr().err
    monkeypatch.setattr(owner, "SILENCE", 0.2)
    os.utime(file, (time.time() - 1, time.time() - 1))
    assert_same_node(resumed(store), whole, "norms")


def test_owner_shows_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(owner, "HEARTBEAT", 0.01)
    one = owner.Owner(tmp_path, "a store")
    (file,) = tmp_path.glob("owner-*")
    os.utime(file, (0, 0))
    end = time.monotonic() + 10
    while not (moved := file.stat().st_mtime > 0) and time.monotonic() < end:
        time.sleep(0.01)
    one.close()
    assert moved
    owner.Owner(tmp_path, "a store").close()
