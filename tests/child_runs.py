"""Runs in child processes that are killed, interrupted, or watched for memory; a script of test_resume.py.

    python child_runs.py FOLDER SEED

All libraries are imported once and every run is a fork. zarr must not be used before a fork: it starts a thread.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
import zarr  # noqa: F401
from tiny import Norms, Spread, some_prompts, tiny

import tokinterp as ti
from tokinterp.run.checkpoint import STATE
from tokinterp.run.loop import read_progress

torch.set_num_threads(1)
TOTAL = 48
BATCH = 24  # tokens: two prompts of twelve


def fork(work, message=None):
    """Run something in a child process and return its id; the message of a KeyboardInterrupt goes to a file."""
    sys.stdout.flush()
    if child := os.fork():
        return child
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
        work()
        code = 0
    except KeyboardInterrupt as error:
        code = 130
        if message:
            message.write_text(str(error))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait(child):
    """Return the exit status (negative: the signal) and the peak memory in MB of a child."""
    _, status, used = os.wait4(child, 0)
    return os.waitstatus_to_exitcode(status), used.ru_maxrss / 1024


class Marks(Norms):
    """Writes a file when a batch begins, and takes its time over it."""

    sleep = 0.0
    mark = None

    def update(self, batch):
        if self.mark:
            self.mark.write_text("in a batch")
        time.sleep(self.sleep)
        super().update(batch)


def run(store=None, sleep=0.0, mark=None):
    Marks.sleep, Marks.mark = sleep, mark
    which = {"norms": Marks(), "spread": Spread(), "lens": ti.lens.LogitLens(tokens=None, top=2)}
    prompts = some_prompts([12] * TOTAL)
    ti.measure(tiny(), prompts, which, store=store, batch_tokens=BATCH, checkpoint_every=0, progress=False)


def done(store):
    """How many prompts the checkpoint counts, over both readings; -1 without one."""
    folder = Path(f"{store}.partial")
    if not (folder / STATE).is_file():
        return -1
    at = read_progress(folder)
    return 2 * TOTAL + 1 if at.finished else at.reading * TOTAL + at.done


def kills(folder, plain, draw):
    """Kill -9 at ten random moments of a run and twice while the result is written; then let it finish."""
    store = folder / "killed.zarr"
    moments = sorted(draw.randrange(2 * TOTAL) for _ in range(10)) + [2 * TOTAL + 1] * 2
    landed = []
    for moment in moments:
        child = fork(lambda: run(store, 0.004))
        while done(store) < moment and not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.006 if moment <= 2 * TOTAL else 0.05))
        os.kill(child, signal.SIGKILL)
        landed.append((moment, done(store), wait(child)[0]))
    return {"landed": landed, "last": wait(fork(lambda: run(store)))[0]}


def interrupt(folder):
    """Ctrl-C in the middle, then twice in one batch of ten seconds; then let it finish."""
    store, mark = folder / "interrupted.zarr", folder / "mark"
    child = fork(lambda: run(store, 0.01), folder / "once")
    while done(store) < 10:
        time.sleep(0.002)
    os.kill(child, signal.SIGINT)
    out = {"once": wait(child)[0], "done": done(store), "message": (folder / "once").read_text()}
    child = fork(lambda: run(store, 10.0, mark))
    while not mark.exists():
        time.sleep(0.002)
    started = time.monotonic()
    while not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        os.kill(child, signal.SIGINT)  # of two that come before the child runs again, it sees one
        time.sleep(0.2)
    return {
        **out,
        "twice": wait(child)[0],
        "took": time.monotonic() - started,
        "last": wait(fork(lambda: run(store)))[0],
    }


def memory():
    """Peak memory in MB of runs over 400 and 3,000 prompts of 64 tokens, and what holding all layers would add.

    Both runs have many batches, so that what the allocator keeps after the first few is in both.
    """
    model = tiny()

    def work(n):
        which = {
            "norms": Norms(per_token=False),
            "spectrum": ti.geometry.Spectrum(),
            "lens": ti.lens.LogitLens(tokens=0),
        }
        ti.measure(model, some_prompts([64] * n), which, batch_tokens=2048, progress=False)

    (one, few), (other, many) = (wait(fork(lambda n=n: work(n))) for n in (400, 3000))
    return {"status": [one, other], "few": few, "many": many, "held": 2600 * 64 * 32 * 4 * 4 / 2**20}


def main(folder, seed):
    run()  # everything is imported now, and nothing has used zarr
    plain = folder / "plain.zarr"
    assert wait(fork(lambda: run(plain)))[0] == 0
    report = {"kills": kills(folder, plain, random.Random(seed)), "interrupt": interrupt(folder), "memory": memory()}
    print(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
