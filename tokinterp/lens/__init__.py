"""What each layer would answer: the logit lens and the tuned lens."""

from .fit import fit_tuned_lens
from .lens import LogitLens
from .tuned_lens import TunedLens

__all__ = [
    "LogitLens",
    "TunedLens",
    "fit_tuned_lens",
]
