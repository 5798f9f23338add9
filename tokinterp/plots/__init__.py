"""Results as figures: each function takes a Dataset and returns the matplotlib Axes that it drew on.

Nothing here computes more than means and intervals over prompts (`tokinterp.summary`); nothing changes matplotlib's
settings.  Without ``ax=`` a function makes a figure of its own, 3.4 inches wide, with 8 pt type; with ``ax=`` it draws
under the settings in force (``with plots.paper_style():`` puts those of the package in force).
"""

from importlib.util import find_spec as _find_spec

if _find_spec("matplotlib") is None:
    raise ImportError("figures need matplotlib, which is not installed: pip install 'tokinterp[plots]'")

from .dimension import dimension_by_layer, dimension_by_scale, local_dimension_map
from .layers import by_layer
from .lens import lens_by_layer, lens_table
from .overviews import overview
from .spectrum import eigenvalues, spectrum_by_layer
from .style import COLOURS, figure, panel_letters, paper_style, save
from .tokens import token_layer_map, tokens_of

__all__ = [
    "COLOURS",
    "by_layer",
    "dimension_by_layer",
    "dimension_by_scale",
    "eigenvalues",
    "figure",
    "lens_by_layer",
    "lens_table",
    "local_dimension_map",
    "overview",
    "panel_letters",
    "paper_style",
    "save",
    "spectrum_by_layer",
    "token_layer_map",
    "tokens_of",
]  # fmt: skip
