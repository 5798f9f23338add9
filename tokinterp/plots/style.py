"""What all figures share: widths, fonts, colours, labels with units, and strings that every font can show."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, TypedDict

import matplotlib as mpl
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from ..files.paths import local_path
from ..files.whole import replacing
from ..results.facts import show
from ..settings import checked, refuse

WIDTHS = {"column": 3.3, "double": 6.8}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours that show on white, told apart with any colour vision."""
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
RC = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 3,
    "figure.dpi": 150,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.hashsalt": "tokinterp",
    "image.cmap": "viridis",
}


@contextmanager
@checked()
def paper_style() -> Iterator[None]:
    """Draw and save what is inside with fonts, lines and colours for print; nothing changes outside.

    Examples
    --------
    >>> import matplotlib
    >>> with paper_style():
    ...     matplotlib.rcParams["pdf.fonttype"]
    42
    """
    with mpl.rc_context(RC):  # pyright: ignore[reportArgumentType]
        yield


@checked()
def figure(
    width: str | float = "column", height: float | None = None, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, np.ndarray]:
    """Return a figure for print and its axes, without touching pyplot.

    Parameters
    ----------
    width : {"column", "double"} or float
        3.3 or 6.8 inches, or a number of inches.
    height : float, optional
        In inches; by default 0.68 of the width of one panel for each row.
    rows, columns : int
        Of panels.
    **options
        For ``Figure.subplots``.

    Returns
    -------
    Figure, numpy.ndarray
        (rows, columns) axes.

    Examples
    --------
    >>> fig, axes = figure("double", columns=2)
    >>> float(fig.get_figwidth()), axes.shape
    (6.8, (1, 2))
    """
    inches = inches_of(width)
    with paper_style():
        fig = Figure(figsize=(inches, height or 0.68 * inches / columns * rows), layout="constrained")
    return fig, _panels(fig, rows, columns, **options)


def _panels(fig: Figure, rows: int = 1, columns: int = 1, **options: Any) -> np.ndarray:
    """Return new axes, whose ticks keep their size when matplotlib makes more of them as the figure is drawn."""
    with paper_style():
        axes = fig.subplots(rows, columns, squeeze=False, **options)
        for ax, axis in product(axes.flat, ("x", "y")):
            ax.tick_params(axis=axis, labelsize=RC[f"{axis}tick.labelsize"], width=RC[f"{axis}tick.major.width"])
    return axes


def new_axes(width: str | float = "column", height: float | None = None) -> Axes:
    """Return the axes of a new pyplot figure (which a notebook then shows)."""
    import matplotlib.pyplot as plt

    inches = inches_of(width)
    # Not under paper_style(): the first figure makes pyplot choose a backend, which keeps its settings in rcParams.
    fig = plt.figure(figsize=(inches, height or 0.68 * inches), layout="constrained", dpi=RC["figure.dpi"])
    return _panels(fig)[0, 0]


class Look(TypedDict, total=False):
    """Where something is drawn.

    Attributes
    ----------
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default on a new figure.
    width : {"column", "double"} or float
        Of a new figure, in inches.
    """

    ax: Axes | None
    width: str | float


@contextmanager
def drawing(look: Look, width: str | float = "column", height: float | None = None) -> Iterator[Axes]:
    """Give axes to draw on: new ones in the style of the package, or the caller's under the caller's settings."""
    if (ax := look.get("ax")) is not None:
        before = {id(t): t.get_text() for t in _texts(ax)}
        yield ax
        literal(ax, before)
        return
    ax = new_axes(look.get("width", width), height)
    with paper_style():
        yield ax
    literal(ax)


def literal(drawn: Figure | Axes, before: Mapping[int, str] | None = None) -> None:
    """Let texts with dollar signs, which are names of tokens, sets and models, be drawn as they are, not as formulas.

    The powers of ten of a logarithmic axis are the only formulas here.  Texts that stood there ``before`` are the
    caller's, and stay as they are.
    """
    for text in _texts(drawn):
        said = text.get_text()
        if "$" in said and not said.startswith("$\\mathdefault") and (before or {}).get(id(text)) != said:
            text.set_parse_math(False)


def _texts(drawn: Figure | Axes) -> list[Text]:
    return [t for t in drawn.findobj(Text) if isinstance(t, Text)]


def inches_of(width: str | float) -> float:
    """Return a width in inches; refuses a name that is no preset, and a number that is no width."""
    if isinstance(width, str):
        if width not in WIDTHS:
            raise ValueError(f"width {width!r}: write {' or '.join(map(repr, WIDTHS))}, or a number of inches")
        return WIDTHS[width]
    if not 0 < width < np.inf:
        raise ValueError(f"width={width}: give {' or '.join(map(repr, WIDTHS))}, or inches above 0")
    return float(width)


@checked()
def save(fig: Figure | Axes, path: str | Path) -> Path:
    """Save a figure (or the figure of some axes); the name's ending gives the format. PDF keeps its text as text.

    Parameters
    ----------
    fig : Figure or Axes
        What is saved.
    path : path
        With an ending that matplotlib knows: .pdf, .png, .svg; folders are made.

    Returns
    -------
    Path

    Examples
    --------
    >>> import tempfile
    >>> fig, axes = figure()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(fig, Path(folder, "deep", "a.pdf")).name
    'a.pdf'
    """
    path = local_path(path)
    kind = path.suffix.removeprefix(".") or mpl.rcParams["savefig.format"]
    with paper_style(), replacing(path) as temporary:
        figure_of(fig).savefig(temporary, format=kind)
    return path


def figure_of(fig: Figure | Axes) -> Figure:
    """Return the figure to which axes belong, or the figure itself."""
    found = fig if isinstance(fig, Figure) else fig.get_figure(root=True)
    if not isinstance(found, Figure):
        raise ValueError("these axes are on no figure: draw on axes of a figure")
    return found


def wrapped(text: str, units: str = "1", width: int = 24) -> str:
    """Return a name with its unit, in lines of so many characters.

    Examples
    --------
    >>> wrapped("loss", "nat")
    'loss (nat)'
    """
    return "\n".join(textwrap.wrap(text if units == "1" else f"{text} ({units})", width, break_on_hyphens=False))


def integer_axis(ax: Axes, axis: str = "x") -> None:
    """Put ticks on whole numbers only."""
    getattr(ax, f"{axis}axis").set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))


class Roomy(MaxNLocator):
    """Ticks of a horizontal axis, at most six, so few that labels such as -0.025 stand apart."""

    def tick_values(self, vmin: float, vmax: float) -> Any:
        """Return places of ticks, of which each has room for five characters as wide as they are high."""
        room = self.axis.get_tick_space() if self.axis is not None else 9  # of three such characters
        self.set_params(nbins=int(np.clip(0.6 * room, 2, 5)))
        return super().tick_values(vmin, vmax)


def ordered_colours(n: int) -> list[Any]:
    """Return n colours for an ordered dimension, dark to light without the yellow end."""
    return [mpl.colormaps["viridis"](x) for x in np.linspace(0, 0.85, n)] if n > 1 else [COLOURS[0]]


@cache
def _glyphs() -> frozenset[int]:
    path = font_manager.findfont(RC["font.family"])
    return frozenset(font_manager.get_font(path).get_charmap())


def shown(text: str, longest: int = 14) -> str:
    r"""Return a token as it can be drawn: spaces and line breaks made visible, characters that the font lacks as □.

    Examples
    --------
    >>> shown(" Nile"), shown("a\n"), shown("水"), shown("x" * 20)
    ('␣Nile', 'a⏎', '□', 'xxxxxxxxxxxxx…')
    """
    out = text.translate({32: "␣", 10: "⏎", 13: "␍", 9: "⇥"})
    out = "".join(c if ord(c) in _glyphs() and c.isprintable() else "□" for c in out)
    return out if len(out) <= longest else out[: longest - 1] + "…"


def write_tokens(ax: Axes, tokens: Sequence[str], longest: int = 14) -> None:
    """Write tokens under the x axis, upright; thinned out where they would overlap."""
    fig = figure_of(ax)
    share = 0.85 if len(fig.axes) <= 2 else ax.get_position().width
    step = max(1, int(np.ceil(len(tokens) * 8.5 / (share * fig.get_size_inches()[0] * 72))))
    places = range(0, len(tokens), step)
    ax.set_xticks(list(places))
    ax.set_xticklabels([shown(tokens[i], longest) for i in places], rotation=90, parse_math=False)


@checked()
def panel_letters(axes: Sequence[Axes] | np.ndarray) -> None:
    """Put a bold a, b, c, ... beside the upper left corner of each panel, where no title or legend is.

    Parameters
    ----------
    axes : sequence of Axes
        The panels, in order.

    Examples
    --------
    >>> fig, axes = figure("double", columns=2)
    >>> panel_letters(axes.flat)
    """
    panels = np.ravel(np.asarray(axes, dtype=object))
    if any(not hasattr(ax, "set_title") for ax in panels):
        refuse("axes", axes, "give the axes of a figure: fig, axes = plt.subplots(1, 2)")
    for n, ax in enumerate(panels):
        ax.annotate(
            f"{chr(97 + n)}", (0, 1), xytext=(-20, 4), xycoords="axes fraction", textcoords="offset points",
            fontweight="bold", fontsize=RC["font.size"] + 1, ha="right", va="bottom",
        )  # fmt: skip


def legend_above(ax: Axes, parts: Sequence[tuple[str, Mapping[Any, dict[str, Any]]]] | None = None) -> None:
    """Put a legend above the axes, where it hides nothing, in as many rows as it needs.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
        Whose legend it is.
    parts : sequence of (str, mapping), optional
        For each dimension, value -> how its lines look; by default the lines that have labels.
    """
    handles: dict[tuple[str, str], Any] = {}
    if parts is None:
        handles = {("", text): line for line, text in zip(*ax.get_legend_handles_labels(), strict=True)}
    for dim, looks in parts or ():
        for value, look in looks.items():
            text = show(value, dim)
            if text and (dim, text) not in handles:
                handles[dim, text] = Line2D([], [], **look, label=text)
    if len(handles) < 2 and not any(h.get_linestyle() == ":" for h in handles.values()):
        return
    longest = max(len(text) for _, text in handles)
    handle = mpl.rcParams["legend.handlelength"] * RC["legend.fontsize"]  # long enough to tell dashes from a line
    fit = int(0.8 * panel_width(ax) / (0.52 * RC["legend.fontsize"] * longest + handle + 11))
    ax.legend(
        handles=list(handles.values()), loc="lower left", bbox_to_anchor=(0, 1), ncols=max(1, min(fit, len(handles))),
        labelspacing=0.25, borderaxespad=0.2, columnspacing=1.0, handletextpad=0.5,
    )  # fmt: skip


def panel_width(ax: Axes) -> float:
    """Return the width of axes with all that belongs to them, in points: of the figure, its share for one column."""
    place = ax.get_subplotspec()
    return figure_of(ax).get_size_inches()[0] * 72 / (place.get_gridspec().ncols if place is not None else 1)


def colour_bar(ax: Axes, drawn: Any, text: str, extend: str = "neither", mark: float | None = None) -> None:
    """Put the scale of colours beside a map; a line in it marks the level by chance."""
    bar = figure_of(ax).colorbar(drawn, ax=ax, pad=0.02, aspect=18, extend=extend)
    height = figure_of(ax).get_size_inches()[1] * ax.get_position().height
    bar.set_label("\n".join(textwrap.wrap(" ".join(text.split()), max(14, int(height * 72 / 5.8)))))
    bar.outline.set_linewidth(0.4)  # pyright: ignore[reportCallIssue]
    bar.ax.tick_params(labelsize=RC["ytick.labelsize"], width=0.4)
    low, high = drawn.get_clim()
    if mark is not None and low < mark < high:
        bar.ax.axhline(mark, color="white", lw=2.2)
        bar.ax.axhline(mark, color="black", lw=1.0, ls=":")


def svg(fig: Figure) -> str:
    """Return a figure as an SVG element."""
    buffer = io.StringIO()
    with paper_style():
        fig.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
