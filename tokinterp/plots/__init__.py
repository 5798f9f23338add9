"""Results as figures: each function takes a Dataset and returns the matplotlib Axes that it drew on.

Nothing here computes more than means and intervals over prompts (`tokinterp.summary`); nothing changes matplotlib's
settings.  Without ``ax=`` a function makes a figure of its own, 3.4 inches wide, with 8 pt type; with ``ax=`` it draws
under the settings in force (``with plots.style():`` puts those of the package in force).
"""

try:
    import matplotlib as _matplotlib
except ImportError as error:
    raise ImportError("figures need matplotlib, which is not installed: pip install 'tokinterp[plots]'") from error

from .dimension import dimension_by_layer, dimension_by_scale, local_dimension_map
from .layers import by_layer
from .lens import lens_by_layer, lens_table
from .spectrum import eigenvalues, spectrum_by_layer
from .style import COLOURS, figure, panel_letters, save, style
from .tokens import token_layer_map, tokens_of

__all__ = [
    "COLOURS", "by_layer", "dimension_by_layer", "dimension_by_scale", "eigenvalues", "figure", "lens_by_layer",
    "lens_table", "local_dimension_map", "panel_letters", "save", "spectrum_by_layer", "style", "token_layer_map",
    "tokens_of",
]  # fmt: skip
