"""What each layer would answer: the logit lens, the tuned lens and the Jacobian lens."""

from .fit import fit_tuned_lens
from .jacobian import JacobianLens, fit_jacobian_lens
from .lens import LogitLens
from .tuned_lens import TunedLens

__all__ = [
    "JacobianLens",
    "LogitLens",
    "TunedLens",
    "fit_jacobian_lens",
    "fit_tuned_lens",
]
