"""Hidden computation in fillers: Match3 with fillers, without, and with a chain of thought (Pfau et al. 2024).

    python -m experiments.dot_by_dot --tier smoke --out runs/dot_by_dot.zarr --folder runs/dot_by_dot
    python -m experiments.dot_by_dot --tier gpu10 --out runs/dot_by_dot_gpu10.zarr --folder runs/dot_by_dot_gpu10

Three arms learn the same task, each evaluated on the answer alone:

``filler``            half filler, half parallel chain of thought;
``none``              half without fillers, half parallel chain of thought, equal data;
``none_equal_flops``  without fillers only, as many more examples as make the operations equal.

Then the trained filler network is probed: answers after a share of the fillers (frozen trunk; controls: random trunk,
the network trained without fillers), a linear probe of the answer at every layer and position, linear probes of the
digits, pair sums and matches at every filler, where fillers and answer position look, what is answered without the
fillers, and what the logit lens shows at them.

``smoke`` is for a CPU and minutes: easy settings that show that everything works.  They have only m**(n d) = 6561, 81
and 27 different inputs, so that its networks may have learned them by heart; no gap is claimed from it.
``gpu10`` is n=8, d=3 for about ten minutes on one GPU.  ``paper`` is the published protocol over lengths and
dimensions (hours).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import tokinterp as ti
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

from .record import about, write

RESULTS = Path("runs/dot_by_dot.zarr")
ARMS = {
    "filler": {"filler": 0.5, "parallel": 0.5},
    "none": {"none": 0.5, "parallel": 0.5},
    "none_equal_flops": {"none": 1.0},
}


@dataclass(frozen=True)
class Tier:
    """What a tier trains and probes; the first task is the one that is probed."""

    tasks: tuple[Task, ...]
    network: Network
    schedule: Schedule
    none_schedule: Schedule | None = None
    """Of the arm of equal operations; by default ``schedule`` with more steps."""
    seeds: tuple[int, ...] = (0, 1, 2)
    probe: Schedule = field(default_factory=lambda: Schedule(steps=2000, batch=256, rate=1e-4))
    kept: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    examples: int = 2000


TIERS = {
    "smoke": Tier(
        tuple(Task(n=n, d=d, m=3, fillers="cot") for n, d in ((4, 2), (4, 1), (3, 1))),
        Network(3, 64, 4, 128),
        Schedule(steps=2500, batch=64, rate=3e-3, evaluations=20, stop_at=0.995),
        seeds=(0, 1),
        probe=Schedule(steps=150, batch=64, rate=1e-3),
        kept=(0.0, 0.5, 1.0),
        examples=1000,
    ),
    "gpu10": Tier(
        (Task(n=8, d=3, fillers="square"),), Network(), Schedule.budget(10_000_000), seeds=(0,),
        probe=Schedule(steps=300, batch=1024, rate=3e-4), kept=(0.0, 0.25, 0.5, 0.75, 1.0),
    ),
    "paper": Tier(
        (
            Task(n=14, d=3, mode="released", fillers="cot"),
            *(Task(n=n, d=3, mode="released", fillers="cot") for n in (6, 8, 10, 12)),
            *(Task(n=8, d=d, mode="released", fillers="cot") for d in (4, 5, 6)),
        ),
        Network(), Schedule.paper(), Schedule.paper(no_filler=True),
        probe=Schedule(steps=10_000_000 // 256, batch=256, rate=1e-4),
        kept=tuple(round(0.1 * i, 1) for i in range(11)),
    ),
}  # fmt: skip


def equal_flops(task: Task, tier: Tier) -> Schedule:
    """Return the schedule with which the arm without fillers or chain of thought does as many operations."""
    if tier.none_schedule is not None:
        return tier.none_schedule
    cost = {form: flops_per_example(task, tier.network, form) for form in ("none", "filler", "parallel")}
    mixed = (cost["filler"] + cost["parallel"]) / 2
    return tier.schedule.with_steps(round(tier.schedule.steps * mixed / cost["none"]))


def run(
    model: Any = None,
    *,
    tier: str = "smoke",
    seeds: tuple[int, ...] | None = None,
    arms: tuple[str, ...] = tuple(ARMS),
    tasks: tuple[Task, ...] | None = None,
    small: bool = False,
    out: str | Path | None = None,
    folder: str | Path | None = None,
    device: str | None = None,
    save_seconds: float = 120.0,
    progress: bool = True,
) -> xr.DataTree:
    """Train all arms on the tasks of a tier and probe the first.

    Parameters
    ----------
    model : optional
        Not used: the networks are trained here.
    tier : {"smoke", "gpu10", "paper"}
        Sizes and durations.
    seeds, arms, tasks : tuple, optional
        Instead of those of the tier.
    small : bool
        Seconds instead of minutes, to see that everything runs; nothing is learned.
    out : path, optional
        Where the result is written.
    folder : path, optional
        Where networks and their progress are kept: a run that was stopped goes on.
    device : str, optional
        A GPU if there is one.
    save_seconds : float
        Time between two checkpoints in ``folder``.
    progress : bool
        Show bars.

    Returns
    -------
    DataTree
        ``training/TASK/ARM``, and of the first task ``probe``, ``linear_probe`` and ``dots/...`` (``contents``,
        ``probes``, ``attention``, ``attention_of_none``, ``ablation``, ``dimension``, ``spectrum``, ``lens``).
    """
    if tier not in TIERS:
        raise ValueError(f"tier {tier!r}: there are {', '.join(TIERS)}")
    if unknown := [a for a in arms if a not in ARMS]:
        raise ValueError(f"arms {unknown}: there are {', '.join(ARMS)}")
    plan = TIERS[tier]
    if small:
        plan = replace(
            plan, tasks=(Task(n=3, d=1, m=5, fillers="cot"),), network=Network(2, 16, 2, 32), seeds=(0,),
            kept=(0.0, 1.0), schedule=Schedule(steps=6, batch=16, evaluations=2), probe=Schedule(steps=2, batch=8),
            examples=64,
            none_schedule=None,
        )  # fmt: skip
    plan = replace(plan, seeds=seeds or plan.seeds, tasks=tasks or plan.tasks)
    groups: dict[str, xr.Dataset] = {}
    trained: dict[str, dict[int, Any]] = {}
    for task in plan.tasks:
        for arm in arms:
            ds, networks = train(
                task, ARMS[arm], network=plan.network, seeds=plan.seeds, device=device, test_examples=plan.examples,
                schedule=equal_flops(task, plan) if arm == "none_equal_flops" else plan.schedule, progress=progress,
                save_seconds=save_seconds, folder=None if folder is None else Path(folder) / task.name / arm,
            )  # fmt: skip
            groups[f"training/{task.name}/{arm}"] = ds
            if task is plan.tasks[0]:
                trained[arm] = networks
    if "filler" in trained:
        groups |= _probes(plan, trained, device, progress)
    tree = xr.DataTree.from_dict(groups)
    attrs = dict(next(iter(groups.values())).attrs)
    parameters = {"tier": tier, "small": small, "arms": list(arms), "tasks": [asdict(t) for t in plan.tasks]}
    tree.attrs = {**attrs, "parameters": json.dumps(parameters), "measurement": "dot_by_dot"}
    ti.check(tree)
    if out is not None:
        ti.write(tree, out, overwrite=True)
    return tree


def _probes(
    plan: Tier, trained: dict[str, dict[int, Any]], device: str | None, progress: bool
) -> dict[str, xr.Dataset]:
    """Probe the seed of the filler arm that came first, beside the same seed of the arms without fillers."""
    task, seed = plan.tasks[0], plan.seeds[0]
    trunks = {arm: networks[seed] for arm, networks in trained.items() if arm != "none_equal_flops"}
    found = {
        f"probe/{variant}": probe_fillers(
            trunks, task, kept=plan.kept, schedule=plan.probe, variant=variant, seed=seed, device=device,
            test_examples=plan.examples, progress=progress,
        )
        for variant in ("frozen", "released")
    }  # fmt: skip
    lm = trained["filler"][seed]
    where = np.unique(np.linspace(task.n, task.length("filler") - 2, 12).round().astype(int)).tolist()
    found["linear_probe"] = linear_probe(lm, task, positions=where, examples=plan.examples, device=device)
    found["dots/probes"] = probe_contents(trunks, task, examples=2 * plan.examples, seed=seed, device=device)
    found["dots/ablation"] = ablate_dots(trunks, task, prompts=min(400, plan.examples), seed=seed, device=device)
    for name, trunk in trunks.items():
        for group, ds in read_dots(trunk, task, prompts=min(200, plan.examples)).items():
            if name == "filler" or group == "attention":
                found[f"dots/{group}" if name == "filler" else f"dots/{group}_of_{name}"] = ds.to_dataset()
    return found


def summary(tree: xr.DataTree) -> dict[str, Any]:
    """Return what is worth keeping as a small JSON file: last accuracies of each seed and stratum, and the probes."""
    out: dict[str, Any] = about("dot_by_dot", tree.attrs)
    out |= {"parameters": json.loads(tree.attrs["parameters"]), "device": tree.attrs["device"]}
    rows = []
    for task, arms in tree["training"].children.items():
        of = json.loads(next(iter(arms.children.values())).attrs["parameters"])["task"]
        out.setdefault("different_inputs", {})[task] = of["m"] ** (of["n"] * of["d"])
        for arm, node in arms.children.items():
            ds = node.to_dataset(inherit=False)
            for seed in ds["seed"].values:
                last = last_evaluation(ds).sel(seed=seed)
                for form in ds["format"].values:
                    one = last.sel(format=form)
                    rows.append(
                        {
                            "task": task, "arm": arm, "seed": int(seed), "format": str(form),
                            "step": int(one["steps_taken"]),
                            "examples": int(one["examples_seen"]), "seconds": round(float(one["seconds"]), 1),
                            "majority": round(float(one["majority"]), 4), "auc": round(float(one["auc"]), 4),
                            "true_bias": round(float(one["true_bias"]), 4),
                            "accuracy": {
                                str(s): round(float(a), 4)
                                for s, a in zip(ds["stratum"].values, one["accuracy"].values, strict=True)
                                if np.isfinite(a)
                            },
                        }
                    )  # fmt: skip
    out["training"] = rows
    if "probe" in tree.children:
        for variant, node in tree["probe"].children.items():
            ds = node.to_dataset(inherit=False)
            out[f"probe_{variant}"] = {
                str(t): dict(zip(map(float, ds["kept"].values), ds["accuracy"].sel(trunk=t).values.round(4).tolist(),
                                 strict=True))
                for t in ds["trunk"].values
            }  # fmt: skip
        linear = tree["linear_probe"].to_dataset()
        for key, name in (("best", "accuracy"), ("best_shuffled", "shuffled")):  # of as many places, labels permuted
            out[f"linear_probe_{key}"] = {
                int(n): round(float(linear[name].sel(layer=n).max()), 4) for n in linear["layer"]
            }
        out |= _dots(tree.children["dots"])
        dots = tree["dots/contents"].to_dataset()
        for name in ("recovery", "recovery_shuffled"):
            out[f"{name}_of_digits"] = dots[name].isel(slot=slice(1, None, 2)).mean("slot").values.round(4).tolist()
    return out


def _dots(dots: xr.DataTree) -> dict[str, Any]:
    """Return means of the probes, the attention and the ablations, as numbers with three digits."""
    probes = dots["probes"].to_dataset()
    out: dict[str, Any] = {"probes_by_layer": {}, "probe_inputs": [int(probes["n_fit"]), int(probes["n_test"])]}
    for target in map(str, probes["target"].values):
        one = probes.sel(target=target)
        of = {str(t): _short(one["accuracy_mean"].sel(trunk=t)) for t in one["trunk"].values}
        first = {"trunk": str(one["trunk"].values[0])}
        of["permuted"] = _short(one["shuffled_mean"].sel(first))
        of["interval_of_last_layer"] = _short(one["accuracy_mean_interval"].sel(first).isel(layer=-1))
        out["probes_by_layer"][target] = {"chance": round(float(one["chance"]), 3), **of}
    for name in ("attention", "attention_of_none"):
        if name in dots.children:
            ds = dots[name].to_dataset()
            mass = ds["mass"].mean(("prompt", "head"))
            out[name] = {
                str(q): {str(k): _short(mass.sel(query_set=q, key_set=k)) for k in ds["key_set"].values}
                for q in ds["query_set"].values
            }
            pairs = ("own_rows", "two_other_rows", "slot_match", "slot_plain")
            out[name] |= {k: _short(ds[k].mean(("prompt", "head"))) for k in pairs}
    ablation = dots["ablation"].to_dataset()
    s = ti.summary(ablation[["correct"]])
    out["ablation"] = {
        str(t): {
            str(i): [round(float(s["correct"].sel(trunk=t, intervention=i)), 4),
                     *_short(s["correct_interval"].sel(trunk=t, intervention=i))]
            for i in s["intervention"].values
        }
        for t in s["trunk"].values
    }  # fmt: skip
    for name, match in (("completed", 1), ("not_completed", 0)):  # fillers that stand for no pair are neither
        change = ablation["slot_change"].isel(trunk=0).where(ablation["slot_match"] == match)
        out[f"slot_change_{name}"] = round(float(change.mean()), 4)
    return out


def _short(values: xr.DataArray) -> list[float | None]:
    return [round(float(v), 3) if np.isfinite(v) else None for v in values.values.ravel()]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.dot_by_dot", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--tier", default="smoke", choices=list(TIERS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--folder", type=Path, default=None, help="where networks are kept; the same call resumes")
    parser.add_argument("--seeds", type=int, nargs="+", default=None)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--json", type=Path, default=None, help="also write the small summary there")
    parser.add_argument("--device", default=None)
    parser.add_argument("--small", action="store_true", help="seconds, to see that everything runs")
    args = parser.parse_args()
    tree = run(
        tier=args.tier, seeds=None if args.seeds is None else tuple(args.seeds), arms=tuple(args.arms),
        small=args.small, out=args.out, folder=args.folder, device=args.device,
    )  # fmt: skip
    found = summary(tree)
    if args.json is not None:
        write(found, args.json)
    for row in found["training"]:
        print(
            row["task"], row["arm"], row["seed"], row["format"], row["accuracy"]["all"], f"majority {row['majority']}"
        )


if __name__ == "__main__":
    main()
