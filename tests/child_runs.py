"""Runs in child processes that are killed, interrupted, or watched for memory; a script of test_resume.py.

    python child_runs.py kills FOLDER SEED | interrupt FOLDER | memory

The libraries are imported once; every run is a fork. zarr must not be used before a fork: it starts a thread.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import torch
from tiny import Norms, Spread, some_prompts, tiny

import tokinterp as ti

torch.set_num_threads(1)
TOTAL = 48
BATCH = 24  # tokens: two prompts of twelve


def fork(work):
    """Run something in a child process; return its id."""
    sys.stdout.flush()
    if child := os.fork():
        return child
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
        work()
        code = 0
    except KeyboardInterrupt as error:
        Path(os.environ["MESSAGE"]).write_text(str(error))
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait(child):
    """Return the exit status (negative: the signal) and the peak memory in MB of a child."""
    _, status, used = os.wait4(child, 0)
    return os.waitstatus_to_exitcode(status), used.ru_maxrss / 1024


def run(store, sleep=0.0):
    Norms.sleep = sleep
    which = {"norms": Norms(), "spread": Spread(), "lens": ti.LogitLens(tokens=None, top=2)}
    prompts = some_prompts([12] * TOTAL)
    ti.measure(tiny(), prompts, which, store=store, batch_tokens=BATCH, checkpoint_every=0, progress=False)


def done(store):
    """How many prompts the checkpoint counts, over both readings; -1 without one."""
    try:
        at = json.loads((Path(f"{store}.partial") / "share-0-of-1" / "progress.json").read_text())
    except FileNotFoundError:
        return -1
    return 2 * TOTAL + 1 if at["finished"] else at["reading"] * TOTAL + at["done"]


def kills(folder, seed):
    """Kill -9 at ten random moments of a run and once or more while the result is written; then let it finish."""
    draw = random.Random(seed)
    plain, killed = folder / "plain.zarr", folder / "killed.zarr"
    assert wait(fork(lambda: run(plain)))[0] == 0
    moments = sorted(draw.randrange(2 * TOTAL) for _ in range(10)) + [2 * TOTAL + 1] * 2
    landed = []
    for moment in moments:
        child = fork(lambda: run(killed, 0.004))
        while (
            done(killed) < moment
            and not killed.exists()
            and not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        ):
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.006 if moment <= 2 * TOTAL else 0.05))
        os.kill(child, signal.SIGKILL)
        status, _ = wait(child)
        landed.append((moment, done(killed), status))
    finished_early = killed.exists()
    assert wait(fork(lambda: run(killed)))[0] == 0
    print(
        json.dumps(
            {"landed": landed, "finished_early": finished_early, "left": sorted(p.name for p in folder.iterdir())}
        )
    )


def interrupt(folder):
    """Ctrl-C in the middle, the same call once more, then Ctrl-C twice."""
    store, plain = folder / "run.zarr", folder / "plain.zarr"
    assert wait(fork(lambda: run(plain)))[0] == 0
    os.environ["MESSAGE"] = str(folder / "message")
    child = fork(lambda: run(store, 0.02))
    while done(store) < 10:
        time.sleep(0.001)
    os.kill(child, signal.SIGINT)
    status, _ = wait(child)
    at = done(store)
    child = fork(lambda: run(store, 1.0))  # inside a batch of one second
    time.sleep(0.3)
    os.kill(child, signal.SIGINT)
    time.sleep(0.1)
    started = time.monotonic()
    os.kill(child, signal.SIGINT)
    twice, _ = wait(child)
    took = time.monotonic() - started
    message = (folder / "message").read_text()
    assert wait(fork(lambda: run(store)))[0] == 0
    print(json.dumps({"status": status, "done": at, "twice": twice, "took": took, "message": message}))


def memory():
    """Peak memory of a run over 50 and over 1,000 prompts of 64 tokens, in MB, and what holding on would cost."""
    model = tiny()

    def work(n):
        which = {"norms": Norms(per_token=False), "spectrum": ti.Spectrum(), "lens": ti.LogitLens(tokens=0)}
        ti.measure(model, some_prompts([64] * n), which, batch_tokens=2048, progress=False)

    wait(fork(lambda: work(50)))
    peaks = [wait(fork(lambda n=n: work(n))) for n in (50, 1000)]
    held = 1000 * 64 * 32 * 4 * 4 / 2**20
    print(json.dumps({"status": [s for s, _ in peaks], "few": peaks[0][1], "many": peaks[1][1], "held": held}))


if __name__ == "__main__":
    np.seterr(all="raise")
    what, *given = sys.argv[1:]
    if what == "kills":
        kills(Path(given[0]), int(given[1]))
    elif what == "interrupt":
        interrupt(Path(given[0]))
    else:
        memory()
