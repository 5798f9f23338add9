"""Writers that are killed before a file operation, and called again; a script of test_stores_killed.py.

    python killed_writers.py FOLDER

Every call is a fork that an audit hook kills.  zarr must not be used before a fork: it starts a thread.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
import zarr  # noqa: F401
from child_runs import fork, wait
from tiny import some_prompts, tiny

import tokinterp as ti

torch.set_num_threads(1)
OPERATIONS = {"open", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "ctypes.dlopen"}
PROMPTS = some_prompts([9, 12, 8, 10])
MODEL = tiny()


def watch(folder, act):
    """Call a function of an event for every file operation that changes something in a folder."""

    def hook(event, args):
        if event not in OPERATIONS or (event == "open" and not (isinstance(args[2], int) and args[2] & 3)):
            return
        place = os.fsdecode(args[0]) if isinstance(args[0], str | bytes | os.PathLike) else ""
        if event == "ctypes.dlopen" or str(folder) in place or (event != "open" and not place.startswith("/")):
            act(event)

    sys.addaudithook(hook)


def count(folder, act):
    """Return how many file operations a call makes."""
    seen = []

    def work():
        watch(folder, seen.append)
        act(folder)
        os.write(out, str(len(seen)).encode())

    into, out = os.pipe()
    status, _ = wait(fork(work))
    os.close(out)
    number = os.read(into, 20)
    os.close(into)
    assert status == 0
    return int(number)


def kill(folder, act, number):
    """Kill a call before one of its file operations; return the exit status."""
    left = iter(range(number - 1, -1, -1))

    def work():
        watch(folder, lambda event: os.kill(os.getpid(), signal.SIGKILL) if not next(left, 0) else None)
        act(folder)

    return wait(fork(work))[0]


def outcome(folder, read):
    """Return what a result says, and which files lie beside it."""
    return [read(folder), sorted(p.name for p in folder.iterdir())]


def attack(folder, setup, act, read, every):
    """Kill a call before file operations, then call again; return the faults."""
    whole = folder / "whole"
    whole.mkdir(parents=True)
    setup(whole)
    old = outcome(whole, read) if any(whole.iterdir()) else None
    total, faults = count(whole, act), []
    good = outcome(whole, read)
    for n in sorted({*range(1, total + 1, every), *range(max(1, total - 5), total + 1)}):
        here = folder / str(n)
        here.mkdir()
        setup(here)
        status = kill(here, act, n)
        if old and read(here) not in (old[0], good[0]):
            faults.append([n, "neither the old nor the new result"])
        again = wait(fork(lambda here=here: act(here)))[0]
        if status != -signal.SIGKILL or again or outcome(here, read) != good:
            faults.append([n, status, again, outcome(here, read)])
    return {"operations": total, "faults": faults}


def probes(**options):
    def act(folder):
        ti.erasure.fit_probes(
            MODEL,
            PROMPTS,
            layers=[1, 2],
            offsets=[0],
            store=folder / "p",
            checkpoint_every=0,
            progress=False,
            **options,
        )

    return act


def digest(folder):
    names = sorted(p.name for p in (folder / "p").iterdir())
    return [ti.erasure.TokenProbes.load(folder / "p").digest, names]


def main(folder):
    one, other = (
        ti.measure(MODEL, PROMPTS, {"norms": ti.geometry.TokenNorms(layers=[n])}, progress=False) for n in (1, 2)
    )

    FACTS = {"model": "x", "weights": "", "layers": [0]}
    lenses = [ti.lens.TunedLens(torch.full((1, 4, 4), x), torch.zeros(1, 4), FACTS) for x in (1.0, 2.0)]

    def lens(folder):
        return ti.lens.TunedLens.load(folder / "l.safetensors").digest

    jobs = {
        "ridge": (lambda _: None, probes(method="ridge"), digest, 4),
        "softmax": (lambda _: None, probes(method="softmax"), digest, 4),
        "lens": (lambda f: lenses[0].save(f / "l.safetensors"), lambda f: lenses[1].save(f / "l.safetensors"), lens, 1),
    }
    if "netcdf" in sys.argv:
        jobs["netcdf"] = (
            lambda f: ti.write(one, f / "r.nc"),
            lambda f: ti.write(other, f / "r.nc", overwrite=True),
            lambda f: ti.read(f / "r.nc")["norms"]["layer"].values.tolist(),
            1,
        )
    found = {name: attack(folder / name, *job) for name, job in jobs.items()}
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
