"""How linear the way from layer to layer is."""

from .linearity import Linearity
from .maps import LinearMaps
from .nonlinearity import TokenNonlinearity

__all__ = [
    "LinearMaps",
    "Linearity",
    "TokenNonlinearity",
]
