"""Tasks that need a step in between: do fillers after the question raise the accuracy, and do they hold the item?

Brauer et al. 2026 read what stands in fillers of a large model that works out systems of equations, letters of elements
and sums of two facts.  Nobody else has found a gain in open models of 4 to 35 billion weights; a small model does none
of the tasks, and its result is a null that says so.

=========================================================  ============================================================
published                                                  here
=========================================================  ============================================================
accuracy by number and kind of fillers, McNemar's test     ``TASK/tests``: accuracy_change, helped, hurt, mcnemar_p;
                                                           controls: fillers before the question, only announced,
                                                           untrained
answer of the donor after a transplant between items       ``TASK/interventions``: donor_change, donor_rank; the
                                                           question's keys and values instead say what is possible
read-outs by cell that differ between items                ``TASK/lens``: fingerprint, cell_fingerprint; control: the
                                                           answer of another item
=========================================================  ============================================================

The published accuracies are those of DeepSeek V4 Flash (35.0 to 46.3 % of 300 items with dots), which no preset loads.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

import tokinterp as ti
from tokinterp.fillers import (
    equation_questions,
    fact_questions,
    insert,
    insertion_tests,
    intervene,
    letter_questions,
    read_fillers,
)

from .runner.claims import Claim, Number, Results, given, mean, plain
from .runner.preset import Preset

TASKS = {"equations": equation_questions, "letters": letter_questions, "facts": fact_questions}
SWAPS = ("transplant", "transplant of the question")


@dataclass
class Settings(Preset):
    """Numbers of items and fillers."""

    tasks: tuple[str, ...] = tuple(TASKS)
    n_items: int = 60  # of each task
    grid: tuple[int, ...] = (0, 2, 10, 50)
    n_fillers: int = 10  # of transplants and read-outs
    kinds: tuple[str, ...] = ("dots", "counting")


PRESETS = {
    "tiny": Settings(model="bundled/narrow", n_items=8, grid=(0, 4), n_fillers=4),
    "bundled": Settings(),
    "paper": Settings(model="Qwen/Qwen3-8B", n_items=285, grid=(0, 5, 10, 50, 100, 300), n_fillers=50),
}


def run(p: Settings, kept: Path | None = None) -> dict[str, xr.Dataset]:
    """Return insertion, tests, interventions and lens of every task, and the first two of the untrained network."""
    unknown = [t for t in p.tasks if t not in TASKS]
    if unknown:
        raise ValueError(f"tasks={unknown[0]!r}: the tasks are {', '.join(TASKS)}")
    blank = ti.untrained(p.lm, seed=p.seed)
    nodes: dict[str, xr.Dataset] = {}
    p.found["questions"] = []
    for task in p.tasks:
        questions = TASKS[task](p.n_items)
        p.found["questions"] += [f"{question}{answer}" for question, answer in questions]
        for name, model, kinds in (("", p.lm, p.kinds), ("untrained_", blank, p.kinds[:1])):
            found = insert(model, questions, n_fillers=p.grid, kinds=kinds)
            nodes[f"{task}/{name}insertion"], nodes[f"{task}/{name}tests"] = found, insertion_tests(found)
        nodes[f"{task}/interventions"] = intervene(p.lm, questions, n_fillers=p.n_fillers, interventions=SWAPS)
        nodes[f"{task}/lens"] = read_fillers(p.lm, questions, n_fillers=p.n_fillers)
    return nodes


# -- claims ---------------------------------------------------------------------------------------------------
BRAUER = "Brauer et al. 2026"


def gain(r: Results, task: str) -> dict[str, Any]:
    """Return the change of the accuracy by the most fillers, the controls, and the items that they helped and hurt."""
    tests = r[f"{task}/tests"].isel(n_fillers=-1)
    first, *others = map(str, tests["filler"].values)
    after = tests.sel(placement="post", filler=first)

    def change(filler: str, placement: str = "post", network: str = "") -> Number:
        right = r[f"{task}/{network}insertion"]["correct"].sel(filler=filler, placement=placement)
        return mean(right.isel(n_fillers=-1) - right.isel(n_fillers=0))

    return {
        f"{first} after the question": change(first), **{f"{k} after it": change(k) for k in others},
        f"{first} before it": change(first, "pre"), "untrained": change(first, network="untrained_"),
        "accuracy with them": plain(after["accuracy"]), "helped, items": plain(after["helped"]),
        "hurt, items": plain(after["hurt"]), "p of McNemar's test": plain(after["mcnemar_p"]),
        "change of log p(answer)": given(after, "log_prob_change"),
    }  # fmt: skip


def moved(r: Results, task: str) -> dict[str, Any]:
    """Return what another item's fillers, and its question, do to that item's answer and to the own one."""
    ds = r[f"{task}/interventions"]
    said = {"transplant": "its fillers", "transplant of the question": "its question"}
    out = {text: mean(ds["donor_change"], intervention=n) for n, text in said.items()}
    out |= {f"own answer, {text}": mean(ds["log_prob_change"], intervention=n) for n, text in said.items()}
    return {**out, "rank of the donor's answer": mean(ds["donor_rank"], intervention="transplant")}


def held(r: Results, task: str) -> dict[str, Any]:
    """Return how often the answer is among the tokens that set an item's fillers apart, less another item's answer."""
    v = r[f"{task}/lens"]["fingerprint"].sel(variant="residual")
    own, other = (v.sel(target=t, drop=True) for t in ("answer", "answer of another item"))
    return {"own less another item's": mean(own - other), "own": mean(own), "another item's": mean(other)}


SAID = {"equations": "systems of equations", "letters": "letters of elements", "facts": "sums of two facts"}
CLAIMS = [
    claim
    for task, text in SAID.items()
    for claim in (
        Claim(f"fillers raise the accuracy on {text}", BRAUER, "change of the accuracy by the most of them",
              lambda r, t=task: gain(r, t),
              (f"{task}/tests", f"{task}/insertion", f"{task}/untrained_insertion"), above=0),
        Claim(f"fillers carry the answer of their item, {text}", BRAUER, "change of log p(the donor's answer) by the "
              "donor's fillers (nat)", lambda r, t=task: moved(r, t), (f"{task}/interventions",), above=0),
        Claim(f"fillers are read as the answer, {text}", BRAUER, "share of cells whose residual read-out holds the "
              "answer, less another item's", lambda r, t=task: held(r, t), (f"{task}/lens",), above=0),
    )
]  # fmt: skip
