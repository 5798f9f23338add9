"""Train small Llamas on a task, with or without fillers and chain of thought, and keep how they learn as a Dataset."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import torch
import xarray as xr

from ...files.bars import progress_bar
from ...files.paths import local_path
from ...fitted import Tensors, load_tensors, save_tensors
from ...results.dataset import check, numbers_version, provenance, variable
from ...run.checkpoint import EVERY, Checkpoint, State
from ...run.facts import fingerprint
from ...run.signals import at_once
from ...settings import checked, count, mapping, positive, several
from .evaluation import evaluate, loss_sum
from .formats import IGNORED, Sequences
from .network import Network, build, network_info, parameters_hash
from .schedule import Schedule
from .task import Samples, Task, check_format, majority

REFERENCE = "Pfau, Merrill and Bowman 2024, arXiv 2404.15758"
TEST_SEED = 1
FORMAT = "tokinterp network 1"
CHUNK = 8
"""Batches drawn at once."""


class Training(TypedDict, total=False):
    """Where networks are trained, and how they are judged and kept.

    Attributes
    ----------
    device : torch.device or str, optional
        A GPU if there is one.
    test_examples : int
        Examples of the test, 2000 by default.
    checkpoint_every : float
        Seconds between two saved states, at least ten times as long as saving takes; 60 by default, 0 saves every step.
    progress : bool
        Show a bar, as by default.
    """

    device: torch.device | str | None
    test_examples: int
    checkpoint_every: float
    progress: bool


@at_once()
@checked(mixture=mapping(positive, 1), seeds=several(count(), 1, once=True), test_examples=count(2))
def train(
    task: Task,
    mixture: Mapping[str, float] | None = None,
    *,
    network: Network | None = None,
    schedule: Schedule | None = None,
    seeds: Sequence[int] = (0,),
    folder: str | Path | None = None,
    compile: bool | None = None,
    **how: Unpack[Training],
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
        Where networks are kept (``seed-N.safetensors``), and the state of training beside them: the same call goes on
        where it was stopped and ends in the same bits.
    compile : bool, optional
        Whether ``torch.compile`` is used; by default on a GPU.  Matrix products are bfloat16 there (autocast).
    **how
        ``device``, ``test_examples`` (of each format), ``checkpoint_every``, ``progress``: see `Training`.

    Returns
    -------
    Dataset, dict
        ``accuracy`` (seed, step, format, stratum), ``auc``, ``true_bias`` and ``loss`` (seed, step, format),
        ``majority`` (format), ``count`` (format, stratum), ``examples_seen``, ``seconds``; and seed -> network on the
        CPU.

    Raises
    ------
    ValueError
        For an unknown format, shares that are not positive, no or repeated seeds, or a folder of another run; after
        training, if the weights are NaN.
    KeyboardInterrupt
        After Ctrl-C, once the step in progress has been finished and kept.

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
    place, test_examples = device_of(how), how.get("test_examples", 2000)
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
        file = None if folder is None else network_file(folder, seed)
        own = {**facts, "seed": seed, "device": place.type, "tokinterp": numbers_version()}
        with Checkpoint(file, own, how.get("checkpoint_every", EVERY), name="folder") as keep:
            if keep.finished:
                run.take_result(keep)
            else:
                run.go(tests, keep, how.get("progress", True))
        runs[seed] = run
    return _dataset(task, facts, tests, runs), {seed: run.lm.to("cpu").eval() for seed, run in runs.items()}


def device_of(how: Training) -> torch.device:
    """Return the device on which networks are trained."""
    return torch.device(how.get("device") or ("cuda" if torch.cuda.is_available() else "cpu"))


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

    def go(self, tests: Mapping[str, Samples], keep: Checkpoint, progress: bool = False) -> None:
        """Train to the end, from the state that was kept."""
        if (begin := keep.state()) is not None:
            self.take_up(begin)
        streams, due = self.streams(), set(self.schedule.evaluate_at)
        start, spent, total = time.monotonic(), self.seconds, self.schedule.steps
        title = f"{self.task.name} seed {self.seed}"
        with progress_bar(progress, total, initial=self.step, desc=title) as bar:
            while not self.finished:
                self.take_step([next(s) for s in streams])
                self.seconds = spent + time.monotonic() - start
                if self.step in due:
                    self.evaluate(tests)
                    bar.set_postfix(_shown(self.history[-1]))
                bar.update(1)
                keep.step(f"after {self.step} of {total} steps of seed {self.seed}", self.state)
        said = {"fit": keep.facts, **self.notes()}
        keep.finish(lambda path: save_tensors(path, self.weights(), FORMAT, said, commits=keep.commits))

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

    # -- what is kept -----------------------------------------------------------------------------------------
    def weights(self) -> Tensors:
        """Return the parameters of the network."""
        return {f"lm/{k}": v for k, v in self.lm.state_dict().items()}

    def notes(self) -> dict[str, Any]:
        """Return how far training has come and what was found on the way."""
        return {k: getattr(self, k) for k in ("step", "seconds", "stopped", "history")}

    def state(self) -> State:
        """Return all that training needs to go on."""
        return self.notes(), self.weights() | optimiser_tensors(self.optimiser)

    def take_up(self, begin: State) -> None:
        """Take what `state` returned."""
        notes, tensors = begin
        for k in self.notes():
            setattr(self, k, notes[k])
        self.lm.load_state_dict(network_tensors(tensors))
        load_optimiser(self.optimiser, tensors)

    def take_result(self, keep: Checkpoint) -> None:
        """Take the network that the same call has finished."""
        assert keep.path is not None
        facts, tensors = load_tensors(keep.path, FORMAT, "trained network")
        keep.belongs(facts["fit"])
        self.take_up((facts, tensors))


def network_file(folder: str | Path, seed: int) -> Path:
    """Return the file of the network of a seed."""
    return local_path(folder, "folder") / f"seed-{seed}.safetensors"


def network_tensors(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Return the state of a network among the tensors of a file."""
    return {k[3:]: v for k, v in tensors.items() if k.startswith("lm/")}


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> Tensors:
    """Return the state of an optimiser as named tensors, for a file."""
    found = optimiser.state_dict()["state"]
    return {f"opt/{n}/{k}": v for n, s in found.items() for k, v in s.items()}


def load_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give an optimiser the state that `optimiser_tensors` returned."""
    state = optimiser.state_dict()
    for key, value in tensors.items():
        kind, _, rest = key.partition("/")
        if kind == "opt":
            number, _, name = rest.partition("/")
            state["state"].setdefault(int(number), {})[name] = value
    optimiser.load_state_dict(state)


@checked()
def load_networks(folder: str | Path) -> tuple[Task, dict[int, Any]]:
    """Return the task and the networks (seed -> network) that `train` kept in a folder.

    Parameters
    ----------
    folder : path
        That was given to `train`.

    Raises
    ------
    ValueError
        If there are none, training is unfinished, or a file is damaged.

    Examples
    --------
    >>> import tempfile, tokinterp as ti
    >>> tasks, folder = ti.fillers.tasks, tempfile.mkdtemp() + "/net"
    >>> how = {"schedule": tasks.Schedule(steps=2, batch=8, rate=1e-3), "network": tasks.Network(1, 16, 2, 16)}
    >>> _ = train(tasks.Task(n=4, d=2, m=3), folder=folder, test_examples=20, device="cpu", progress=False, **how)
    >>> assert list(load_networks(folder)[1]) == [0]  # one seed
    """
    folder = local_path(folder, "folder")
    if unfinished := sorted(p.name for p in folder.glob("seed-*.safetensors.partial")):
        raise ValueError(f"{folder} is being trained or unfinished ({unfinished[0]}): run the same training again")
    found = sorted(folder.glob("seed-*.safetensors"))
    if not found:
        raise ValueError(f"{folder} has no trained networks: looked for seed-*.safetensors; train some there first")
    out: dict[int, Any] = {}
    task = None
    for file in found:
        facts, tensors = load_tensors(file, FORMAT, "trained network")
        facts = facts["fit"]
        task = Task(**facts["task"])
        lm = build(task, Network(**facts["network"]), facts["seed"])
        lm.load_state_dict(network_tensors(tensors))
        out[facts["seed"]] = lm
    assert task is not None
    return task, out


def _shares(task: Task, mixture: Mapping[str, float], batch: int) -> dict[str, int]:
    """Return the examples of each format in a batch."""
    for form in mixture:
        check_format(task, form)
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
        "accuracy": v(
            (*full, "stratum"), accuracy, "accuracy of the answer", "1", REFERENCE, short="accuracy of the answer",
            range=(0, 1), chance="majority",
        ),
        "auc": v(
            full, single["auc"], "area under the ROC curve of logit(True) - logit(False)", "1", short="AUC",
            range=(0, 1), chance=0.5,
        ),
        "true_bias": v(full, single["true_bias"], "share answered True minus share that is True", "1", chance=0),
        "loss": v(full, single["loss"], "mean loss of the supervised words", "nat", short="loss", range=(0, None)),
        "majority": v(
            "format", [majority(t.answer) for t in tests.values()], "share of the most common answer", "1",
            short="majority",
        ),
        "count": v(("format", "stratum"), count, "test examples", "1"),
        "examples_seen": v(
            ("step", "format"), np.outer(steps, [per_step[f] for f in forms]), "training examples seen", "1"
        ),
        "seconds": v(("seed", "step"), seconds, "time spent training", "s"),
    }  # fmt: skip
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
