"""Train small Llamas on a task, with or without fillers and chain of thought, and keep how they learn as a Dataset."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from safetensors.torch import load_file
from tqdm.auto import tqdm

from ..checkpoint import compare_facts, fingerprint
from ..dataset import check, provenance, variable
from ..files import write_tensors, write_text
from ..received import plain_name
from .evaluation import evaluate, loss_sum
from .formats import IGNORED, Sequences
from .network import Network, build, network_info, parameters_hash
from .schedule import Schedule
from .tasks import Samples, Task, majority

REFERENCE = "Pfau, Merrill and Bowman 2024, arXiv 2404.15758"
TEST_SEED = 1
CHUNK = 8
"""Batches drawn at once."""


def train(
    task: Task,
    mixture: Mapping[str, float] | None = None,
    *,
    network: Network | None = None,
    schedule: Schedule | None = None,
    seeds: Sequence[int] = (0,),
    folder: str | Path | None = None,
    device: torch.device | str | None = None,
    test_examples: int = 2000,
    save_seconds: float = 120.0,
    compile: bool | None = None,
    progress: bool = True,
) -> tuple[xr.Dataset, dict[int, Any]]:
    """Train one network per seed and evaluate each format on its own test set.

    Parameters
    ----------
    task : Task
        What is learned.
    mixture : mapping of str -> float, optional
        Format -> share of each batch; half filler and half parallel chain of thought by default.  Shares are rounded
        to whole examples, the same in every batch.
    network : Network, optional
        Shape of the Llama.
    schedule : Schedule, optional
        `Schedule.budget` by default.
    seeds : sequence of int
        One run each: of the weights and of the data.
    folder : path, optional
        Where networks and progress are kept (``seed-N/``); the same call goes on where it was stopped.
    device : torch.device or str, optional
        A GPU if there is one.
    test_examples : int
        Per format.
    save_seconds : float
        Time between two checkpoints, which are also written at each evaluation; 0 writes one after each step.
    compile : bool, optional
        Whether ``torch.compile`` is used; by default on a GPU.  Matrix products are bfloat16 there (autocast).
    progress : bool
        Show a bar.

    Returns
    -------
    Dataset, dict
        ``accuracy`` (seed, step, format, stratum), ``auc``, ``true_bias`` and ``loss`` (seed, step, format),
        ``majority`` (format), ``count`` (format, stratum), ``examples_seen``, ``seconds``; and seed -> network on the
        CPU.

    Raises
    ------
    ValueError
        For an unknown format, shares that are not positive, no or repeated seeds, or a folder of another run.

    Examples
    --------
    >>> small = Schedule(steps=2, batch=8, evaluations=1)
    >>> ds, networks = train(Task(n=3, d=1), {"none": 1}, network=Network(1, 16, 2, 32), schedule=small, device="cpu",
    ...                      test_examples=20, progress=False)
    >>> ds["accuracy"].dims
    ('seed', 'step', 'format', 'stratum')
    """
    mixture = {"filler": 0.5, "parallel": 0.5} if mixture is None else dict(mixture)
    network, schedule = network or Network(), schedule or Schedule.budget()
    shares = _shares(task, mixture, schedule.batch)
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds={list(seeds)}: give at least one, each once")
    if test_examples < 2:
        raise ValueError(f"test_examples={test_examples}: take at least 2")
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    facts = {
        "task": asdict(task), "mixture": mixture, "network": asdict(network), "schedule": asdict(schedule),
        "test_examples": test_examples,
    }  # fmt: skip
    tests = {form: task.test_set(form, test_examples, TEST_SEED, place) for form in mixture}
    runs: dict[int, Run] = {}
    for seed in seeds:
        run = Run(
            task, shares, network, schedule, seed, place, bool(place.type == "cuda" if compile is None else compile)
        )
        home = None if folder is None else Path(folder) / f"seed-{seed}"
        if home is not None:
            run.open(home, {**facts, "seed": seed})
        with tqdm(total=schedule.steps, initial=run.step, disable=not progress, desc=f"{task.name} seed {seed}") as bar:
            for _ in run.go(tests, save_seconds):
                bar.update(run.step - bar.n)
                if run.history:
                    bar.set_postfix(_shown(run.history[-1]))
        runs[seed] = run
    return _dataset(task, facts, tests, runs), {seed: run.lm.to("cpu").eval() for seed, run in runs.items()}


class Run:
    """The training of one network, which can be stopped after any step and taken up again."""

    def __init__(
        self, task: Task, shares: dict[str, int], network: Network, schedule: Schedule, seed: int,
        device: torch.device, compile: bool,
    ) -> None:  # fmt: skip
        self.task, self.shares, self.schedule, self.seed, self.device = task, shares, schedule, seed, device
        self.lm = build(task, network, seed).to(device)
        self.forward = torch.compile(self.lm) if compile else self.lm
        # "All parameters" decay, as published.
        self.optimiser = torch.optim.AdamW(
            self.lm.parameters(), lr=schedule.rate, betas=schedule.betas, weight_decay=schedule.weight_decay,
            fused=device.type == "cuda",
        )  # fmt: skip
        self.step, self.seconds, self.stopped = 0, 0.0, False
        self.history: list[dict[str, Any]] = []
        self.home: Path | None = None

    @property
    def finished(self) -> bool:
        """Whether nothing is left to train."""
        return self.stopped or self.step >= self.schedule.steps

    def streams(self) -> list[Iterator[Sequences]]:
        """Return the batches of each format, from the present step on."""
        whole = self.schedule.train_examples
        size = None if whole is None else max(1, whole // self.schedule.batch)
        return [
            self.task.stream(form, count, self.seed, CHUNK, self.device, first=self.step, size=size)
            for form, count in self.shares.items()
        ]

    def go(self, tests: Mapping[str, Samples], save_seconds: float = 120.0) -> Iterator[int]:
        """Train to the end, yielding the number of the step after each."""
        if self.finished:
            return
        streams, due = self.streams(), set(self.schedule.evaluate_at)
        saved = start = time.monotonic()
        spent = self.seconds
        while not self.finished:
            self.take_step([next(s) for s in streams])
            self.seconds = spent + time.monotonic() - start
            if self.step in due:
                self.evaluate(tests)
            if self.home is not None and (self.step in due or time.monotonic() - saved >= save_seconds):
                self.save()
                saved = time.monotonic()
            yield self.step

    def take_step(self, batches: list[Sequences]) -> None:
        """Take one optimiser step: the mean loss over all supervised words of all formats."""
        self.lm.train()
        for group in self.optimiser.param_groups:
            group["lr"] = self.schedule.rate_at(self.step)
        fast = torch.autocast(self.device.type, torch.bfloat16) if self.device.type == "cuda" else nullcontext()
        total = sum((b.targets != IGNORED).sum() for b in batches)
        for same in _by_width(batches):
            ids, targets = (torch.cat([getattr(b, k) for b in same]) for k in ("ids", "targets"))
            with torch.enable_grad():
                with fast:
                    logits = self.forward(input_ids=ids, use_cache=False).logits
                (loss_sum(logits, targets, self.task) / total).backward()
        torch.nn.utils.clip_grad_norm_(self.lm.parameters(), self.schedule.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1

    def evaluate(self, tests: Mapping[str, Samples]) -> None:
        """Score every format and decide whether to stop."""
        found = {form: asdict(evaluate(self.lm, self.task, test)) for form, test in tests.items()}
        self.history.append({"step": self.step, "seconds": self.seconds, "formats": found})
        goal = self.schedule.stop_at
        self.stopped = goal is not None and found[next(iter(self.shares))]["accuracy"][0] >= goal

    # -- files ------------------------------------------------------------------------------------------------
    def open(self, home: Path, facts: dict[str, Any]) -> None:
        """Take up what was kept in a folder, or begin there."""
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        file = home / "progress.json"
        if not file.exists():
            write_text(home / "run.json", json.dumps(facts, sort_keys=True, indent=1))
            return
        compare_facts(json.loads((home / "run.json").read_text(encoding="utf-8")), facts, home)
        kept = json.loads(file.read_text(encoding="utf-8"))
        try:
            tensors = load_file(plain_name(kept["tensors"], home))
        except Exception as error:
            raise ValueError(f"{home / kept['tensors']} is damaged or missing ({error}): delete {home}") from error
        self.step, self.seconds, self.stopped = kept["step"], kept["seconds"], kept["stopped"]
        self.history = kept["history"]
        self.lm.load_state_dict({k[3:]: v for k, v in tensors.items() if k.startswith("lm/")})
        state = self.optimiser.state_dict()
        for key, value in tensors.items():
            kind, _, rest = key.partition("/")
            if kind == "opt":
                number, _, name = rest.partition("/")
                state["state"].setdefault(int(number), {})[name] = value
        self.optimiser.load_state_dict(state)

    def save(self) -> None:
        """Write a checkpoint in one step; the one before is deleted afterwards."""
        assert self.home is not None
        tensors = {f"lm/{k}": v for k, v in self.lm.state_dict().items()}
        for number, values in self.optimiser.state_dict()["state"].items():
            tensors |= {f"opt/{number}/{k}": v for k, v in values.items()}
        name = f"step-{self.step:09d}.safetensors"
        try:
            write_tensors(self.home / name, tensors)
        except Exception as error:
            raise OSError(
                f"cannot write {self.home / name}: {error}; free some space and call train() again"
            ) from error
        progress = {
            "tensors": name, "step": self.step, "seconds": self.seconds, "stopped": self.stopped,
            "history": self.history,
        }  # fmt: skip
        write_text(self.home / "progress.json", json.dumps(progress))
        for old in self.home.glob("step-*.safetensors"):
            if old.name != name:
                old.unlink(missing_ok=True)


def load_networks(folder: str | Path) -> tuple[Task, dict[int, Any]]:
    """Return the task and the networks (seed -> network) that `train` kept in a folder.

    Raises
    ------
    ValueError
        If there are none.
    """
    homes = sorted(Path(folder).glob("seed-*/progress.json"))
    if not homes:
        raise ValueError(f"{folder} has no trained networks: looked for seed-*/progress.json; train some there first")
    out: dict[int, Any] = {}
    task = None
    for file in homes:
        facts = json.loads((file.parent / "run.json").read_text(encoding="utf-8"))
        task = Task(**facts["task"])
        lm = build(task, Network(**facts["network"]), facts["seed"])
        kept = load_file(plain_name(json.loads(file.read_text(encoding="utf-8"))["tensors"], file.parent))
        lm.load_state_dict({k[3:]: v for k, v in kept.items() if k.startswith("lm/")})
        out[facts["seed"]] = lm
    assert task is not None
    return task, out


def discard(folder: str | Path) -> None:
    """Delete the networks kept in a folder."""
    for home in Path(folder).glob("seed-*"):
        shutil.rmtree(home)


def _shares(task: Task, mixture: Mapping[str, float], batch: int) -> dict[str, int]:
    """Return the examples of each format in a batch."""
    for form, share in mixture.items():
        task.check_format(form)
        if not share > 0:
            raise ValueError(f"mixture gives {form} the share {share}: shares are positive")
    if not mixture:
        raise ValueError("the mixture is empty: name a format, for example {'filler': 0.5, 'parallel': 0.5}")
    total = sum(mixture.values())
    counts = {form: int(batch * share / total) for form, share in mixture.items()}
    counts[next(iter(counts))] += batch - sum(counts.values())
    if min(counts.values()) < 1:
        raise ValueError(
            f"a batch of {batch} leaves a format of {dict(mixture)} without an example: take a larger batch"
        )
    return counts


def _by_width(batches: Sequence[Sequences]) -> list[list[Sequences]]:
    """Group batches of equal length, so that each group is one pass without padding."""
    groups: dict[int, list[Sequences]] = {}
    for b in batches:
        groups.setdefault(b.ids.shape[1], []).append(b)
    return list(groups.values())


def _shown(last: dict[str, Any]) -> dict[str, str]:
    return {form: f"{found['accuracy'][0]:.3f}" for form, found in last["formats"].items()}


def _dataset(task: Task, facts: dict[str, Any], tests: Mapping[str, Samples], runs: Mapping[int, Run]) -> xr.Dataset:
    schedule = next(iter(runs.values())).schedule
    steps, forms, seeds = schedule.evaluate_at, list(tests), list(runs)
    shape = (len(seeds), len(steps), len(forms))
    accuracy = np.full((*shape, len(task.strata)), np.nan)
    single = {name: np.full(shape, np.nan) for name in ("auc", "true_bias", "loss")}
    seconds = np.full(shape[:2], np.nan)
    count = np.zeros((len(forms), len(task.strata)), np.int64)
    for s, run in enumerate(runs.values()):
        for entry in run.history:
            t = steps.index(entry["step"])
            seconds[s, t] = entry["seconds"]
            for f, form in enumerate(forms):
                found = entry["formats"][form]
                accuracy[s, t, f] = [np.nan if x is None else x for x in found["accuracy"]]
                count[f] = found["count"]
                for name, values in single.items():
                    values[s, t, f] = np.nan if found[name] is None else found[name]
    v, full = variable, ("seed", "step", "format")
    per_step = next(iter(runs.values())).shares
    data = {
        "accuracy": v((*full, "stratum"), accuracy, "accuracy of the answer", "1", REFERENCE),
        "auc": v(full, single["auc"], "area under the ROC curve of logit(True) - logit(False)", "1"),
        "true_bias": v(full, single["true_bias"], "share answered True minus share that is True", "1"),
        "loss": v(full, single["loss"], "mean loss of the supervised words", "nat"),
        "majority": v("format", [majority(t.answer) for t in tests.values()], "share of the most common answer", "1"),
        "count": v(("format", "stratum"), count, "test examples", "1"),
        "examples_seen": v(
            ("step", "format"), np.outer(steps, [per_step[f] for f in forms]), "training examples seen", "1"
        ),
        "seconds": v(("seed", "step"), seconds, "time spent training", "s"),
    }
    coords = {
        "seed": v("seed", np.asarray(seeds, np.int64), "seed of weights and data", "1"),
        "step": v("step", np.asarray(steps, np.int64), "optimiser steps taken", "1"),
        "format": v("format", np.array(forms), "format of the test set", "1"),
        "stratum": v("stratum", np.array(task.strata), "kind of example", "1"),
    }
    hashes = json.dumps([parameters_hash(run.lm) for run in runs.values()])
    info = network_info(next(iter(runs.values())).lm, task, hashes)
    parameters = {**facts, "seeds": seeds, "n_fillers": task.n_fillers}
    attrs = provenance(info, task.hash, parameters, fingerprint({**parameters, "weights": hashes}), seeds[0])
    ds = xr.Dataset(data, coords, {**attrs, "measurement": "FillersTraining", "task": task.name})
    check(ds)
    return ds
