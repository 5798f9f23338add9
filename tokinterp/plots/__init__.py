"""Results as figures: `draw` shows any of them, `curves`, `rows`, `maps` and `tokens` one variable as you want it.

Each takes a Dataset, a node of a run, or a run in which one result has the variable, and returns the matplotlib Axes
that it drew on.  Nothing here computes more than means and intervals over prompts (`tokinterp.summary`); nothing
changes matplotlib's settings.  Without ``ax=`` a function makes a figure of its own, 3.3 inches wide, with 8 pt type;
with ``ax=`` it draws under the settings in force (``with plots.paper_style():`` puts those of the package in force).
What only one topic draws is in its ``plots``: ``tokinterp.lens.plots.lens_table``,
``tokinterp.erasure.plots.erasure_map``.
"""

from .heatmaps import maps
from .intervals import rows
from .lines import curves
from .style import COLOURS, figure, panel_letters, paper_style, save
from .tokenview import tokens
from .views import Picture, Pictures, draw

__all__ = [
    "COLOURS",
    "Picture",
    "Pictures",
    "curves",
    "draw",
    "figure",
    "maps",
    "panel_letters",
    "paper_style",
    "rows",
    "save",
    "tokens",
]
