"""What each layer would answer: the logit lens, the tuned lens and the Jacobian lens."""

from importlib import import_module

from .fit import fit_tuned_lens
from .jacobian import JacobianLens, fit_jacobian_lens
from .jspace import jacobian_space, project_out, steer, swap
from .lens import LogitLens
from .tuned_lens import TunedLens

__all__ = [
    "JacobianLens",
    "LogitLens",
    "TunedLens",
    "fit_jacobian_lens",
    "fit_tuned_lens",
    "jacobian_space",
    "project_out",
    "steer",
    "swap",
]


def __getattr__(name: str) -> object:
    """Load what draws when it is first touched."""
    if name == "plots":
        return import_module(f"{__name__}.plots")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
