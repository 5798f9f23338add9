"""Small results to draw, and what every figure has to keep."""

import numpy as np
import xarray as xr
from matplotlib.text import Text

from tokinterp.results.dataset import variable


def curves_of(name="loss", prompts=12, layers=5, n_layers=4, seed=0, **dims):
    """A result with one value per prompt, layer and further dimensions."""
    shape = (prompts, layers, *(len(v) for v in dims.values()))
    values = np.random.default_rng(seed).normal(3, 1, shape)
    coords = {
        "prompt": np.arange(prompts), "layer": np.arange(layers), **dims,
        "relative_depth": ("layer", np.arange(layers) / n_layers),
    }  # fmt: skip
    data = {name: variable(("prompt", "layer", *dims), values, "loss of the next token", "nat")}
    return xr.Dataset(data, coords, attrs={"n_layers": n_layers, "model": f"m{n_layers}"})


def tokens_dataset(texts, layers=3, prompt=7):
    """A per-token result with its rows out of order, and another prompt between them."""
    n = len(texts)
    values = np.arange(layers * n, dtype=float).reshape(n, layers)
    order = np.random.default_rng(0).permutation(n)
    other = np.full((2, layers), -1.0)
    data = variable(("token", "layer"), np.concatenate([values[order], other]), "surprise", "nat")
    text = np.array([*[texts[i] for i in order], "x", "y"], dtype=object)
    coords = {
        "layer": np.arange(layers), "text": ("token", text), "position": ("token", [*order, 0, 1]),
        "token_prompt": ("token", [prompt] * n + [9, 9]),
    }  # fmt: skip
    return xr.Dataset({"surprise": data}, coords), values


def drawn_labels(axis):
    """Tick labels inside the range of an axis; matplotlib keeps others that it does not draw."""
    low, high = sorted(axis.get_view_interval())
    pairs = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
    return [t for at, t in pairs if low <= at <= high and t.get_text().strip() and t.get_visible()]


def assert_legible(fig, smallest=6):
    """Every string lies inside the figure, is large enough, and no tick label covers its neighbour."""
    fig.draw_without_rendering()
    axes = [*fig.axes, *(child for ax in fig.axes for child in ax.child_axes)]
    ticks = {ax: [drawn_labels(ax.xaxis), drawn_labels(ax.yaxis)] for ax in axes}
    every = {t for ax in axes for axis in (ax.xaxis, ax.yaxis) for t in axis.findobj(Text) if t is not axis.label}
    shown = [t for t in fig.findobj(Text) if t not in every and t.get_text().strip() and t.get_visible()]
    shown += [t for pair in ticks.values() for labels in pair for t in labels]
    frame = fig.bbox.padded(1.5)
    for t in shown:
        box = t.get_window_extent()
        assert t.get_fontsize() >= smallest, t.get_text()
        inside = frame.x0 <= box.x0, box.x1 <= frame.x1, frame.y0 <= box.y0, box.y1 <= frame.y1
        assert all(inside), f"{t.get_text()!r} is cut"
    for pair in ticks.values():
        for labels in pair:
            boxes = [t.get_window_extent() for t in labels]
            for a, b, name in zip(boxes, boxes[1:], labels, strict=False):
                over = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
                assert min(over) <= 1, f"{name.get_text()!r} runs into its neighbour"


def small(text, psi=0.5, **attrs):
    """Two tokens in one segment, and one more."""
    coords = {
        "token_prompt": ("token", [0, 0, 0]), "position": ("token", [1, 2, 3]), "offset": [0, -1],
        "text": ("token", np.array(list(text), object)), "token_id": ("token", [5, 6, 7]),
        "span_prompt": ("span", [0, 0]), "start": ("span", [1, 3]), "stop": ("span", [3, 4]),
    }  # fmt: skip
    data = {
        "psi": ("span", [psi, 0.9], {"chance": 0}),
        "delta": (("token", "offset"), np.array([[0.1, np.nan], [0.25, 0.5], [0, 0]])),
    }
    return xr.Dataset(data, coords, {"start_layer": 1, "end_layer": 3, "measurement": "ErasureScores", **attrs})


def assert_no_text_over_text(fig):
    """No two strings of a figure, tick labels among them, lie over each other."""
    fig.draw_without_rendering()
    axes = [*fig.axes, *(child for ax in fig.axes for child in ax.child_axes)]
    ticks = {t for ax in axes for axis in (ax.xaxis, ax.yaxis) for t in axis.findobj(Text) if t is not axis.label}
    shown = [t for t in fig.findobj(Text) if t not in ticks and t.get_text().strip() and t.get_visible()]
    shown += [t for ax in axes for axis in (ax.xaxis, ax.yaxis) for t in drawn_labels(axis)]
    boxes = np.array([t.get_window_extent().extents for t in shown])
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    over = np.triu((high - low).min(-1) > 1, 1)
    pairs = [(shown[i].get_text(), shown[j].get_text()) for i, j in np.argwhere(over)]
    assert not pairs, f"text lies over text: {pairs[:3]}"
