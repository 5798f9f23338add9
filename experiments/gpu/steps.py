"""The steps, in order: which module does each, how long it may take, and which letter stands for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes
    ----------
    module : str
        Has ``run(job)``.
    letter : str
        Names it together with its like: a tests, b speed, c bundled models, d dot by dot.
    limit : float
        Seconds after which it is stopped; 0: a share of the time that is left.
    weight : float
        That share, against the other steps without a limit that are still to come.
    """

    module: str
    letter: str
    limit: float = 0.0
    weight: float = 0.0


STEPS: Mapping[str, Step] = {
    "tests": Step("experiments.gpu.checks", "a", limit=90),
    "ceilings": Step("experiments.gpu.ceilings", "b", limit=30),
    "llama": Step("experiments.gpu.llama", "b", limit=150),
    "clouds": Step("experiments.gpu.clouds", "b", limit=30),
    "probes": Step("experiments.gpu.token_probes", "b", limit=40),
    "match3": Step("experiments.gpu.match3", "b", limit=75),
    "narrow": Step("experiments.gpu.bundled", "c", weight=3),
    "full": Step("experiments.gpu.bundled", "c", weight=2),
    "dots": Step("experiments.gpu.dots", "d", weight=4),
}
LEAST = 75.0
"""Seconds: a step without a limit whose share is smaller is left for a later call."""


def chosen(names: str, steps: Mapping[str, Step] = STEPS) -> list[str]:
    """Return the steps named by letters or names, in their order.

    Raises
    ------
    ValueError
        For an unknown name.
    """
    asked = [n for n in names.replace(",", " ").split() if n]
    letters = {s.letter for s in steps.values()}
    if unknown := [n for n in asked if n not in steps and n not in letters]:
        raise ValueError(f"--steps {unknown[0]}: there are {', '.join([*sorted(letters), *steps])}")
    return [n for n, s in steps.items() if n in asked or s.letter in asked]


def share(name: str, to_come: list[str], steps: Mapping[str, Step], left: float) -> float:
    """Return the seconds that a step may take, of those that are left for it and the ones to come.

    Examples
    --------
    >>> steps = {"x": Step("x", "b", limit=30), "y": Step("y", "c", weight=3), "z": Step("z", "c", weight=1)}
    >>> [share(n, list("xyz")[i:], steps, 100.0) for i, n in enumerate("xyz")]
    [30.0, 75.0, 100.0]
    """
    step = steps[name]
    if step.limit:
        return min(step.limit, left)
    left -= sum(steps[n].limit for n in to_come)
    return left * step.weight / sum(steps[n].weight for n in to_come if not steps[n].limit)
