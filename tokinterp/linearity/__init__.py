"""How linear the way from layer to layer is (Razzhigaev et al. 2024)."""

from .fit_maps import BlockMaps, fit_linear_maps
from .linearity import Linearity
from .maps import LinearMaps
from .nonlinearity import TokenNonlinearity

__all__ = [
    "BlockMaps",
    "LinearMaps",
    "Linearity",
    "TokenNonlinearity",
    "fit_linear_maps",
]
