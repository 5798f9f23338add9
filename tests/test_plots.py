"""Figures show the numbers of the dataset, say what they are, and stay legible at the width of a column."""

import ast
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.text import Text

import tokinterp as ti
from tokinterp import plots
from tokinterp.dataset import variable

mpl.use("Agg")
FOLDER = Path(plots.__file__).parent


@pytest.fixture(autouse=True)
def close_figures():
    import matplotlib.pyplot as plt

    before = dict(mpl.rcParams)
    yield
    assert dict(mpl.rcParams) == before, "a plot changed matplotlib's settings"
    plt.close("all")


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


def test_curve_is_the_mean_and_its_band_the_interval_of_summary():
    ds = curves_of()
    ax = plots.by_layer(ds, "loss")
    means = ti.summary(ds)
    line = ax.lines[0]
    np.testing.assert_allclose(line.get_ydata(), ds["loss"].mean("prompt"))
    np.testing.assert_array_equal(line.get_xdata(), ds["layer"])
    corners = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert corners.min() == pytest.approx(float(means["loss_interval"].min()))
    assert corners.max() == pytest.approx(float(means["loss_interval"].max()))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("layer", "loss of the next token (nat)")
    assert all(float(t).is_integer() for t in ax.get_xticks())
    assert ax.get_legend() is None


def test_new_figure_is_for_print_and_a_given_axes_is_used():
    ax = plots.by_layer(curves_of(), "loss")
    assert ax.figure.get_size_inches()[0] == pytest.approx(3.4)
    assert ax.xaxis.label.get_fontsize() == 8
    mine = Figure().subplots()
    assert plots.by_layer(curves_of(), "loss", ax=mine) is mine
    assert mine.xaxis.label.get_fontsize() == mpl.rcParams["font.size"]  # the caller's settings, not ours
    assert_legible(ax.figure)


def test_further_dimensions_become_lines_and_selection_takes_one():
    ds = curves_of(scale=[2, 4, 8])
    ax = plots.by_layer(ds, "loss")
    assert len(ax.lines) == 3
    assert len({mpl.colors.to_hex(line.get_color()) for line in ax.lines}) == 3
    one = plots.by_layer(ds, "loss", select={"scale": 4})
    np.testing.assert_allclose(one.lines[0].get_ydata(), ds["loss"].sel(scale=4).mean("prompt"))
    two = plots.by_layer(curves_of(shuffle=[0, 5], model=["a", "b"]), "loss")
    assert len(two.lines) == 4
    assert len({line.get_linestyle() for line in two.lines}) == 2
    with pytest.raises(ValueError, match="too many dimensions"):
        plots.by_layer(curves_of(shuffle=[0, 5], model=["a", "b"], scale=[2, 4]), "loss")


def test_comparison_of_models_of_different_depth_is_along_relative_depth():
    ax = plots.by_layer(curves_of(), "loss", other=curves_of(layers=9, n_layers=8))
    assert ax.get_xlabel().startswith("relative depth")
    assert [line.get_xdata().max() for line in ax.lines] == [1, 1]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["m4", "m8"]
    assert ax.lines[0].get_linestyle() != ax.lines[1].get_linestyle()  # told apart without colour too
    same = plots.by_layer(curves_of(), "loss", other={"shuffled": curves_of(seed=1)}, label="text", relative=False)
    assert [t.get_text() for t in same.get_legend().get_texts()] == ["text", "shuffled"]
    with pytest.raises(ValueError, match="also a name in other"):
        plots.by_layer(curves_of(), "loss", other={"m4": curves_of(seed=1)})


def test_a_mean_over_some_prompts_only_has_an_open_marker():
    ds = curves_of()
    ds["loss"][:3, 2] = np.nan
    ds["loss"][:, 4] = np.nan
    ax = plots.by_layer(ds, "loss")
    full, partial = ax.lines
    assert partial.get_xdata().tolist() == [2]
    assert partial.get_markerfacecolor() == "white"
    np.testing.assert_allclose(full.get_ydata()[2], ds["loss"][3:, 2].mean())
    assert np.isnan(full.get_ydata()[4])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lost", {}, "no variable 'lost': there are loss"),
        ("loss", {"select": {"scale": 3}}, "not measured at scale 3: there are 2, 4"),
        ("loss", {"select": {"head": 3}}, "no dimension 'head'"),
        ("loss", {"width": "page"}, "'column' or 'double'"),
    ],
)
def test_wrong_calls_say_what_there_is(name, options, message):
    with pytest.raises(ValueError, match=message):
        plots.by_layer(curves_of(scale=[2, 4]), name, **options)


def test_per_token_and_flat_variables_are_refused_by_name():
    ds, _ = tokens_dataset(["a", "b"])
    with pytest.raises(ValueError, match="token_layer_map"):
        plots.by_layer(ds, "surprise")
    with pytest.raises(ValueError, match="no layer or block"):
        plots.by_layer(xr.Dataset({"n": ("prompt", [1.0, 2.0])}), "n")


def test_token_map_shows_the_values_of_one_prompt_in_order_of_position():
    texts = ["<s>", " The", " Nile", "\n", "$x$", "é", "水", "語", "_^{"]
    ds, values = tokens_dataset(texts)
    ds["surprise"][0, 0] = np.nan
    ax = plots.token_layer_map(ds, "surprise", 7)
    mesh = ax.collections[0].get_array()
    expected = values.T.copy()
    expected[0, int(ds["position"][0])] = np.nan
    np.testing.assert_array_equal(mesh.filled(np.nan), expected)
    labels = [t.get_text() for t in ax.get_xticklabels()]
    assert labels[:5] == ["<s>", "␣The", "␣Nile", "⏎", "$x$"]
    assert labels[6:8] == ["□", "□"]  # what the font cannot show
    assert "surprise (nat)" in [a.get_ylabel() for a in ax.figure.axes]
    assert_legible(ax.figure)
    some = plots.token_layer_map(ds, "surprise", 7, positions=[2, 1])
    assert [t.get_text() for t in some.get_xticklabels()] == ["␣The", "␣Nile"]


@pytest.mark.parametrize(
    ("prompt", "positions", "message"),
    [(8, None, "prompt 8 has no tokens here"), (7, [50], "no positions")],
)
def test_missing_tokens_are_named(prompt, positions, message):
    ds, _ = tokens_dataset(["a", "b", "c"])
    with pytest.raises(ValueError, match=message):
        plots.token_layer_map(ds, "surprise", prompt, positions=positions)


def test_lens_table_writes_the_most_probable_tokens_and_marks_right_ones(tiny_run):
    ds = tiny_run["lens"].to_dataset()
    names = dict(zip(ds["vocab"].values.tolist(), ds["vocab_text"].values, strict=True))
    first = ds.isel(token=ds["token_prompt"].values == 1)
    following = first["token_id"].values[5:9].tolist()
    # Plant a right answer: the planted cell alone must be bold, if no other happens to be right.
    ds["top_id"] = ds["top_id"].copy()
    place = np.flatnonzero(ds["token_prompt"].values == 1)[4]
    ds["top_id"].values[place, 2, 0, 0] = following[0]
    names.setdefault(following[0], str(first["text"].values[5]))
    ax = plots.lens_table(ds, 1, positions=range(4, 8))
    ids = ds["top_id"].isel(token=slice(place, place + 4), rank=0).sel(variant="normed").values
    cells = {(int(t.get_position()[0]), int(t.get_position()[1])): t for t in ax.texts}
    assert len(cells) == 4 * 4
    for (column, row), t in cells.items():
        assert t.get_text() == plots.style.shown(str(names[int(ids[column, row])]), 40)
        assert (t.get_fontweight() == "bold") == (ids[column, row] == following[column])
    assert cells[0, 2].get_fontweight() == "bold"
    probability = ds["top_prob"].isel(token=slice(place, place + 4), rank=0).sel(variant="normed").values
    np.testing.assert_array_equal(ax.collections[0].get_array(), probability.T)
    assert_legible(ax.figure)


def test_lens_table_without_answers_says_how_to_get_them(tiny_run):
    ds = tiny_run["lens"].to_dataset()
    with pytest.raises(ValueError, match="top=1"):
        plots.lens_table(ds.drop_vars(["top_id", "top_prob"]))


def test_eigenvalues_are_shares_that_sum_to_one(tiny_run):
    ds = tiny_run["spectrum"].to_dataset()
    ax = plots.eigenvalues(ds, [0, 3])
    for line in ax.lines:
        assert np.nansum(line.get_ydata()) == pytest.approx(1)
    assert ax.get_xscale() == ax.get_yscale() == "log"


def test_dimension_plots_take_their_numbers_from_the_scale_asked(tiny_run):
    ds = tiny_run["dimension"].to_dataset()
    ax = plots.dimension_by_layer(ds, scale=8)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), ds["dimension"].sel(scale=8).mean("prompt"))
    assert "n₂ = 8" in ax.get_ylabel()
    by_scale = plots.dimension_by_scale(ds, layers=[2])
    np.testing.assert_allclose(by_scale.lines[0].get_ydata(), ds["dimension"].sel(layer=2).mean("prompt"))
    assert [t.get_text() for t in by_scale.get_xticklabels()] == ["2", "4", "8"]
    with pytest.raises(ValueError, match="not measured at scale 16: there are 2, 4, 8"):
        plots.dimension_by_layer(ds, scale=16)
    with pytest.raises(ValueError, match="gride, mle, twonn"):
        plots.dimension_by_layer(ds, estimator="pca")


@pytest.mark.parametrize("name", ["dimension", "spectrum", "lens"])
def test_every_overview_is_legible_on_a_page(tiny_run, name):
    found = list(plots.overview(tiny_run[name].to_dataset()))
    assert found
    for _, caption, fig in found:
        assert caption.endswith(".")
        assert fig.get_size_inches()[0] <= 7
        assert_legible(fig)


def test_results_of_any_other_measurement_are_drawn_too():
    ds = curves_of(scale=[2, 4]).assign(n_points=("prompt", np.arange(12)))
    assert [name for name, _, _ in plots.overview(ds)] == ["loss"]


@pytest.mark.parametrize("n_layers", [1, 6, 33, 81])
def test_maps_and_curves_stay_legible_at_any_depth(n_layers):
    ds, _ = tokens_dataset([f" token{n}" for n in range(60)], layers=n_layers + 1)
    assert_legible(plots.token_layer_map(ds, "surprise", 7).figure)
    ax = plots.by_layer(curves_of(layers=n_layers + 1, n_layers=n_layers, model=list("abcdefgh")), "loss")
    assert_legible(ax.figure)


def test_pdf_keeps_text_as_truetype(tmp_path):
    ax = plots.by_layer(curves_of(), "loss")
    data = plots.save(ax, tmp_path / "new" / "a.pdf").read_bytes()
    assert b"/Type3" not in data
    assert b"/CIDFontType2" in data


def test_plots_never_import_torch():
    for file in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [n for n in names if n.split(".")[0] == "torch"], file.name


def test_names_with_dollar_signs_are_no_formulas(tmp_path):
    layer = variable("layer", np.arange(3), "blocks applied", "1")
    ds = xr.Dataset({"x": variable("layer", [1.0, 2.0, 3.0], "value", "1")}, {"layer": layer})
    for name in ("$$", "$x_1$", "a $ b $ c"):
        ax = plots.by_layer(ds, "x", label="a", other={name: ds})
        assert name in [t.get_text() for t in ax.get_legend().get_texts()]
        assert not any(t.get_parse_math() for t in ax.findobj(Text) if "$" in t.get_text())
        plots.save(ax, tmp_path / "a.png")
    own = Figure().subplots()
    own.set_title(r"$\alpha$")
    own.set_yscale("log")
    plots.by_layer(ds, "x", ax=own)
    assert own.title.get_parse_math()  # the caller's own
    assert all(t.get_parse_math() for t in own.yaxis.get_ticklabels())
    with plots.style.drawing(own) as axes:
        axes.set_xlabel("$x_1$")
    assert not own.xaxis.label.get_parse_math()
    plots.save(own, tmp_path / "b.png")
