"""What each layer would answer: the logit lens, the tuned lens and the Jacobian lens."""

from ..settings.libraries import on_touch
from .fit import fit_tuned_lens
from .jacobian import JacobianLens, fit_jacobian_lens
from .jspace import jacobian_space, project_out, steer, swap
from .lens import LogitLens
from .quick import QuickLens
from .tuned_lens import TunedLens

__all__ = [
    "JacobianLens",
    "LogitLens",
    "QuickLens",
    "TunedLens",
    "fit_jacobian_lens",
    "fit_tuned_lens",
    "jacobian_space",
    "project_out",
    "steer",
    "swap",
]

__getattr__ = on_touch(__name__, "plots")
