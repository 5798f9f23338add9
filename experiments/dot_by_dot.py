"""Hidden computation in fillers: Match3 with fillers, without, and with a chain of thought (Pfau et al. 2024).

Three arms learn the same task, each evaluated on the answer alone:

``filler``            half filler, half parallel chain of thought;
``none``              half without fillers, half parallel chain of thought, equal data;
``none_equal_flops``  without fillers only, as many more examples as make the operations equal.

Then the trained filler network is probed: answers after a share of the fillers (frozen trunk; controls: random trunk,
the network trained without fillers), a linear probe of the answer at every layer and position, linear probes of the
digits, pair sums and matches at every filler, where fillers and answer position look, what is answered without the
fillers, and what the logit lens shows at them.

``bundled`` is for a CPU and half an hour: easy settings that show that everything works.  They have only m**(n d) =
6561, 81 and 27 different inputs, so that its networks may have learned them by heart; no gap is claimed from it.
``gpu10`` is n=8, d=3 for about ten minutes on one GPU.  ``paper`` is the published protocol over lengths and
dimensions (hours).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from tokinterp.fillers.tasks.dot_ablation import ablate_dots
from tokinterp.fillers.tasks.dot_probes import probe_contents
from tokinterp.fillers.tasks.dots import read_dots
from tokinterp.fillers.tasks.last import last_evaluation
from tokinterp.fillers.tasks.linear_probes import linear_probe
from tokinterp.fillers.tasks.network import Network, flops_per_example
from tokinterp.fillers.tasks.probe import probe_fillers
from tokinterp.fillers.tasks.schedule import Schedule
from tokinterp.fillers.tasks.task import Task
from tokinterp.fillers.tasks.training import train

from .runner.claims import Claim, Number, Results, given, mean, plain
from .runner.preset import Preset

ARMS = {
    "filler": {"filler": 0.5, "parallel": 0.5},
    "none": {"none": 0.5, "parallel": 0.5},
    "none_equal_flops": {"none": 1.0},
}


@dataclass
class Settings(Preset):
    """What is trained and probed; the first task is the one that is probed."""

    tasks: tuple[Task, ...] = (Task(n=8, d=3, fillers="square"),)
    network: Network = field(default_factory=Network)
    schedule: Schedule = field(default_factory=lambda: Schedule.budget(10_000_000))
    none_schedule: Schedule | None = None  # of the arm of equal operations; the schedule with more steps without one
    seeds: tuple[int, ...] = (0, 1, 2)
    arms: tuple[str, ...] = tuple(ARMS)
    probe: Schedule = field(default_factory=lambda: Schedule(steps=2000, batch=256, rate=1e-4))
    kept: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    examples: int = 2000

    checkpoint_every = 120.0  # between two checkpoints; no setting, since it decides no number


PRESETS = {
    "tiny": Settings(
        tasks=(Task(n=3, d=1, m=5, fillers="cot"),), network=Network(2, 16, 2, 32), seeds=(0,), kept=(0.0, 1.0),
        schedule=Schedule(steps=6, batch=16, evaluations=2), probe=Schedule(steps=2, batch=8), examples=64,
    ),
    "bundled": Settings(
        tasks=tuple(Task(n=n, d=d, m=3, fillers="cot") for n, d in ((4, 2), (4, 1), (3, 1))),
        network=Network(3, 64, 4, 128),
        schedule=Schedule(steps=2500, batch=64, rate=3e-3, evaluations=20, stop_at=0.995),
        probe=Schedule(steps=150, batch=64, rate=1e-3), kept=(0.0, 0.5, 1.0), examples=1000, device="cpu",
    ),
    "gpu10": Settings(
        seeds=(0,), probe=Schedule(steps=300, batch=1024, rate=3e-4), kept=(0.0, 0.25, 0.5, 0.75, 1.0)
    ),
    "paper": Settings(
        tasks=(
            Task(n=14, d=3, mode="released", fillers="cot"),
            *(Task(n=n, d=3, mode="released", fillers="cot") for n in (6, 8, 10, 12)),
            *(Task(n=8, d=d, mode="released", fillers="cot") for d in (4, 5, 6)),
        ),
        schedule=Schedule.paper(), none_schedule=Schedule.paper(no_filler=True),
        probe=Schedule(steps=10_000_000 // 256, batch=256, rate=1e-4), kept=tuple(round(0.1 * i, 1) for i in range(11)),
    ),
}  # fmt: skip


def equal_flops(task: Task, p: Settings) -> Schedule:
    """Return the schedule with which the arm without fillers or chain of thought does as many operations."""
    if p.none_schedule is not None:
        return p.none_schedule
    cost = {form: flops_per_example(task, p.network, form) for form in ("none", "filler", "parallel")}
    mixed = (cost["filler"] + cost["parallel"]) / 2
    return p.schedule.with_steps(round(p.schedule.steps * mixed / cost["none"]))


def run(p: Settings, kept: Path | None = None) -> dict[str, xr.Dataset]:
    """Train all arms on the tasks and probe the first; networks and their progress are kept in the folder.

    Returns ``training/TASK/ARM``, and of the first task ``probe``, ``linear_probe`` and ``dots/...`` (``contents``,
    ``probes``, ``attention``, ``attention_of_none``, ``ablation``, ``dimension``, ``spectrum``, ``lens``).
    """
    if unknown := [a for a in p.arms if a not in ARMS]:
        raise ValueError(f"arms {unknown}: there are {', '.join(ARMS)}")
    groups: dict[str, xr.Dataset] = {}
    trained: dict[str, dict[int, Any]] = {}
    for task in p.tasks:
        for arm in p.arms:
            ds, networks = train(
                task, ARMS[arm], network=p.network, seeds=p.seeds, device=p.device, test_examples=p.examples,
                schedule=equal_flops(task, p) if arm == "none_equal_flops" else p.schedule, progress=p.progress,
                checkpoint_every=p.checkpoint_every, folder=None if kept is None else kept / task.name / arm,
            )  # fmt: skip
            groups[f"training/{task.name}/{arm}"] = ds
            if task is p.tasks[0]:
                trained[arm] = networks
    return groups | (probes(p, trained) if "filler" in trained else {})


def probes(p: Settings, trained: dict[str, dict[int, Any]]) -> dict[str, xr.Dataset]:
    """Probe the seed of the filler arm that came first, beside the same seed of the arms without fillers."""
    task, seed = p.tasks[0], p.seeds[0]
    trunks = {arm: networks[seed] for arm, networks in trained.items() if arm != "none_equal_flops"}
    found = {
        f"probe/{variant}": probe_fillers(
            trunks, task, kept=p.kept, schedule=p.probe, variant=variant, seed=seed, device=p.device,
            test_examples=p.examples, progress=p.progress,
        )
        for variant in ("frozen", "released")
    }  # fmt: skip
    lm = trained["filler"][seed]
    where = np.unique(np.linspace(task.n, task.length("filler") - 2, 12).round().astype(int)).tolist()
    found["linear_probe"] = linear_probe(lm, task, positions=where, examples=p.examples, device=p.device)
    found["dots/probes"] = probe_contents(trunks, task, examples=2 * p.examples, seed=seed, device=p.device)
    found["dots/ablation"] = ablate_dots(trunks, task, prompts=min(400, p.examples), seed=seed, device=p.device)
    for name, trunk in trunks.items():
        for group, ds in read_dots(trunk, task, prompts=min(200, p.examples)).items():
            if name == "filler" or group == "attention":
                found[f"dots/{group}" if name == "filler" else f"dots/{group}_of_{name}"] = ds.to_dataset()
    return found


# -- claims ---------------------------------------------------------------------------------------------------
AUTHORS = "Pfau et al. 2024"


def first_task(r: Results) -> str:
    """Return the task that is probed."""
    return str(r["probe/frozen"].attrs["task"])


def accuracy(r: Results, arm: str, form: str) -> xr.DataArray:
    """Return the last accuracy of each seed on the task that is probed, on all kinds of examples."""
    ds = last_evaluation(r[f"training/{first_task(r)}/{arm}"])
    return ds["accuracy"].sel(format=form, stratum="all", drop=True)


def by_seed(arm: str, v: xr.DataArray) -> dict[str, Number]:
    """Return the value of each seed: one network, no interval."""
    return {f"{arm}, seed {int(s)}": plain(v.sel(seed=s), "one network") for s in v["seed"].values}


def learned(r: Results) -> dict[str, Any]:
    """Return the mean accuracy of the seeds with a chain of thought, and of each."""
    v = accuracy(r, "filler", "parallel")
    return {"mean of the seeds": mean(v, "seed"), **by_seed("filler", v)}


def gap(r: Results) -> dict[str, Any]:
    """Return the gain from fillers over the better arm without, seed by seed, and all accuracies.

    Fillers have to beat both arms: judged is the one whose interval reaches lower, so that nothing is chosen in favour.
    """
    arms = {"filler": "filler", "none": "none", "none_equal_flops": "none"}
    found = {a: accuracy(r, a, form) for a, form in arms.items() if f"training/{first_task(r)}/{a}" in r}
    gains = {f"filler less {a}": mean(found["filler"] - v, "seed") for a, v in found.items() if a != "filler"}
    gains = dict(sorted(gains.items(), key=lambda row: (np.nan_to_num(row[1].low, nan=-np.inf), row[1].value)))
    every = {n: x for a, v in found.items() for n, x in by_seed(a, v).items()}
    majority = last_evaluation(r[f"training/{first_task(r)}/filler"])["majority"]
    return {**gains, **every, "majority": plain(majority.max(), "a share of the test set")}


def kept_shares(r: Results) -> dict[str, Any]:
    """Return the gain of a frozen probe from all fillers over none, and the accuracies by trunk and share kept.

    Over the same test examples; of one network and one finetuning each.
    """
    right = r["probe/frozen"]["correct"].astype(float)
    one = right.sel(trunk="filler")
    out = {"all less none": mean(one.sel(kept=1.0) - one.sel(kept=0.0))}
    return out | {f"{t}, {k:g} kept": mean(right, trunk=t, kept=k)
                  for t in map(str, right["trunk"].values) for k in right["kept"].values}  # fmt: skip


def ablated(r: Results) -> dict[str, Any]:
    """Return the loss of accuracy by knocking the fillers out, and the accuracy after every intervention."""
    right = r["dots/ablation"]["correct"].sel(trunk="filler")
    whole = right.isel(intervention=0)
    names = [str(i) for i in right["intervention"].values]
    out = {f"{names[0]} less {n}": mean(whole - right.sel(intervention=n)) for n in names if n == "knock-out"}
    return {**out, **{n: mean(right, intervention=n) for n in names}}


def contents(r: Results, target: str) -> dict[str, Any]:
    """Return what is read of a target at the fillers of the last layer: of the filler network, and of the others."""
    ds = r["dots/probes"].isel(layer=-1).sel(target=target)
    out = {str(t): given(ds, "accuracy_mean", trunk=t) for t in ds["trunk"].values}
    return {**out, "labels permuted": given(ds, "shuffled_mean", trunk="filler")}


def above_none(r: Results, target: str) -> dict[str, Any]:
    """Return the difference to the network without fillers on the same test examples, and all of `contents`."""
    ds = r["dots/probes"].isel(layer=-1).sel(target=target)
    first, *others = map(str, ds["trunk"].values)
    less = given(ds, "advantage", trunk="none") if first == "filler" and "none" in others else plain(np.nan)
    return {"with less without fillers": less, **contents(r, target)}


def slots(r: Results) -> dict[str, Any]:
    """Return the change of the log-odds by the slots of completed matches, less that by the others."""
    ds = r["dots/ablation"]
    change = ds["slot_change"].sel(trunk="filler")
    out = {n: mean(change.where(ds["slot_match"] == v)) for n, v in (("completed", 1), ("not completed", 0))}
    own, rest = (change.where(ds["slot_match"] == v).mean("slot") for v in (1, 0))
    return {"completed less not": mean(own - rest), **out}  # slots that stand for no pair are neither


def sizes(r: Results) -> dict[str, Any]:
    """Return the number of different inputs of the task that is probed."""
    task = json.loads(r[f"training/{first_task(r)}/filler"].attrs["parameters"])["task"]
    n = float(task["m"] ** (task["n"] * task["d"]))
    return {"different inputs": Number(n, n, n)}  # a count


NEEDS = ("probe/frozen",)
CLAIMS = [
    Claim("the task cannot be learned by heart", "control", "different inputs", sizes, NEEDS, above=1e6),
    Claim(
        "with a parallel chain of thought the task is learned", AUTHORS, "accuracy, mean of the seeds", learned,
        NEEDS, above=0.99,
    ),
    Claim(
        "fillers raise the accuracy over an immediate answer", AUTHORS,
        "accuracy with fillers less without, mean of the seeds, the better arm", gap, NEEDS, above=0,
    ),
    Claim(
        "a frozen probe gains from more fillers", AUTHORS, "accuracy with all fillers less with none", kept_shares,
        NEEDS, above=0,
    ),
    Claim(
        "the answer needs the fillers", AUTHORS, "accuracy lost when they are knocked out", ablated,
        ("dots/ablation", "probe/frozen"), above=0,
    ),
    Claim(
        "the fillers hold sums of pairs", "control", "accuracy of a probe in the last layer, with less without fillers",
        lambda r: above_none(r, "pair sum"), ("dots/probes", "probe/frozen"), above=0,
    ),
    Claim(
        "the slot of the matching triple carries the answer", "control", "change of the log-odds when set to its mean",
        slots, ("dots/ablation", "probe/frozen"), below=0,
    ),
]  # fmt: skip
