"""How long, how fast and on how much data a network is trained."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...settings import checked, count, fraction, number, pair, positive


@checked(
    steps=count(1),
    batch=count(1),
    rate=positive,
    warmup=number(0, below=1),
    weight_decay=number(0),
    clip=number(0),
    betas=pair(number(0, below=1), number(0, below=1)),
    train_examples=count(1),
    evaluations=count(1),
    stop_at=fraction,
)
@dataclass(frozen=True)
class Schedule:
    """Optimisation of one network: AdamW, linear warm-up, linear decay.

    Attributes
    ----------
    steps, batch : int
        Optimiser steps, and examples of all formats in each.
    rate : float
        Highest learning rate: it rises linearly over the first ``warmup`` share of the steps, then is
        ``rate * (1 - step / steps)``, which begins at 1 - warmup (as published).
    warmup, weight_decay, clip : float
        Share of the steps; decay of all parameters; largest norm of the gradient.
    betas : tuple of float
        Of AdamW.
    train_examples : int, optional
        Size of the training set, which then repeats; fresh examples for ever when left out.
    evaluations : int
        During a run, evenly spaced.
    stop_at : float, optional
        Stop when the accuracy of the first format of the mixture reaches this at an evaluation.

    Examples
    --------
    >>> Schedule.paper().steps, Schedule.paper(no_filler=True).steps
    (195312, 976562)
    >>> Schedule(steps=100).rate_at(0) < Schedule(steps=100).rate_at(4)
    True
    """

    steps: int = 10_000
    batch: int = 1024
    rate: float = 3e-4
    warmup: float = 0.05
    weight_decay: float = 0.01
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.95)
    train_examples: int | None = None
    evaluations: int = 25
    stop_at: float | None = None

    def __post_init__(self) -> None:
        if self.train_examples is not None and self.train_examples < self.batch:
            raise ValueError(f"train_examples={self.train_examples} fill no batch of {self.batch}")

    @classmethod
    def paper(cls, no_filler: bool = False) -> Schedule:
        """Return the published schedule: 1e7 examples, 5 epochs, or 25 and stronger regularisation without fillers."""
        epochs = 25 if no_filler else 5
        return cls(
            steps=epochs * 10_000_000 // 256, batch=256, rate=1e-4, train_examples=10_000_000,
            weight_decay=0.1 if no_filler else 0.01, clip=0.5 if no_filler else 1.0,
        )  # fmt: skip

    @classmethod
    def budget(cls, examples: int = 10_000_000, batch: int = 1024) -> Schedule:
        """Return a schedule of minutes on one GPU: fresh examples, larger batches, a stop when the task is solved."""
        return cls(steps=max(1, examples // batch), batch=batch, stop_at=0.995)

    def with_steps(self, steps: int) -> Schedule:
        """Return the same schedule with another number of steps."""
        return replace(self, steps=steps)

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        first = self.warmup * self.steps
        if step < first:
            return self.rate * (step + 1) / max(1.0, first)
        return self.rate * (1 - step / self.steps)

    @property
    def evaluate_at(self) -> list[int]:
        """Numbers of steps taken at the evaluations, the last at the end."""
        return sorted({max(1, round(self.steps * (i + 1) / self.evaluations)) for i in range(self.evaluations)})
