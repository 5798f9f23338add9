"""How token probes are trained: the default schedule, and the one of the paper that introduced them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..settings import checked, count, instance, number, one_of, positive


@checked(lr=positive, weight_decay=number(0), epochs=count(1), rows=count(1), clip=number(0))
@dataclass(frozen=True)
class ProbeSettings:
    """Optimiser, schedule and data of softmax and factored probes.

    Attributes
    ----------
    lr : float
        Highest learning rate of AdamW.
    width : int
        The d_model for which ``lr`` is meant: it is divided by ``sqrt(d_model / width)``; 0 leaves it as it is.
    weight_decay, betas
        Of AdamW.
    epochs : int
        Readings of the kept states at most.
    rows : int
        Token states per step, drawn without replacement from all documents.
    documents : int
        If not 0, each batch is so many whole documents instead (their order is drawn).
    patience : int
        Stop a probe after so many epochs without a lower validation loss; the best epoch is kept.  0: never.
    decay : bool
        Let the learning rate fall linearly to 0 over all epochs.
    warmup : int
        Batches over which the learning rate grows linearly.
    clip : float
        Largest norm of a probe's gradient; 0: any.
    accumulate : int
        If not 0, step only at batches whose number in the epoch is a positive multiple of it, with the *sum* of the
        gradients since the last step.
    plateau : int
        If not 0, divide the learning rate by 10 after more than so many epochs without a lower validation loss.
    zeros : bool
        Start from zeros (the problem is convex); otherwise uniform within +-1/sqrt(d).
    standardise : bool
        Train on (state - mean) / standard deviation, per layer and coordinate.
    bos : bool
        Whether special tokens (BOS) are labels and sources.
    all_types : bool
        Give weights to every type of the vocabulary, not only to those that occur as labels.
    """

    lr: float = 0.01
    width: int = 64
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    epochs: int = 3
    rows: int = 1024
    documents: int = 0
    patience: int = 1
    decay: bool = True
    warmup: int = 0
    clip: float = 0.0
    accumulate: int = 0
    plateau: int = 0
    zeros: bool = True
    standardise: bool = True
    bos: bool = False
    all_types: bool = False

    def facts(self) -> dict[str, Any]:
        """Return the settings as JSON types."""
        return {**asdict(self), "betas": list(self.betas)}


FEUCHT2024 = ProbeSettings(
    lr=0.1, width=0, weight_decay=0.001, betas=(0.9, 0.999), epochs=16, documents=4, patience=0, decay=False,
    warmup=1999, clip=0.1, accumulate=30, plateau=3, zeros=False, standardise=False, bos=True, all_types=True,
)  # fmt: skip
NAMED = {"default": ProbeSettings(), "feucht2024": FEUCHT2024}


@checked(settings=one_of(*NAMED) | instance("ProbeSettings"))
def choose_settings(settings: str | ProbeSettings) -> ProbeSettings:
    """Return settings given by name or as they are.

    ``"feucht2024"`` is what the published code of Feucht et al. (2024, arXiv 2406.20086) does with the paper's
    numbers, bugs included: 4 documents per batch, gradients of 30 batches (31 at first; the rest of an epoch leaks into
    the next) added up before each step, a warm-up of 1,999 *batches*, clipping at 0.1, all 16 epochs whatever the
    validation loss, raw states, BOS as a label, weights for the whole vocabulary.

    Raises
    ------
    ValueError
        For an unknown name or numbers out of range.

    Examples
    --------
    >>> choose_settings("feucht2024").warmup
    1999
    """
    return NAMED[settings] if isinstance(settings, str) else settings
