"""The experiment on frozen models runs from end to end, its figures say what they show, and the commands work."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure

import tokinterp as ti
from experiments import fillers
from figures.fillers import draw
from tokinterp import plots
from tokinterp.cli import main
from tokinterp.fillers.frozen import read_items

pytestmark = pytest.mark.slow

MISSING = {"insertion_tests", "massive_effects"}  # tables, nothing to draw over depth


@pytest.fixture(scope="module")
def results(bundled, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "fillers.zarr"
    return fillers.run(bundled, ti.bundled_questions("cloze")[:10], small=True, out=out), out


@pytest.fixture
def call(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in arguments])
        said = capsys.readouterr()
        return stop.value.code, said.out, said.err

    return run


def test_results_are_read_back(results):
    tree, out = results
    again = ti.read(out)
    assert set(again.children) == set(tree.children)
    assert again["verdict"].attrs["verdict"] in ("used", "not shown")


def test_headline_is_json_and_says_what_the_datasets_say(results):
    tree, _ = results
    head = json.loads(json.dumps(fillers.headline(tree), allow_nan=False))
    assert head["n_items"] == 10
    row = next(
        r for r in head["insertion"] if r["filler"] == "dots" and r["placement"] == "post" and r["n_fillers"] == 4
    )
    mean = tree["insertion"]["log_prob"].sel(filler="dots", placement="post").mean("prompt")
    assert row["log_prob_change"] == pytest.approx(float(mean.sel(n_fillers=4) - mean.sel(n_fillers=0)), rel=1e-3)
    assert head["interventions"]["knock-out"]["kl"][0] >= 0
    assert head["verdict"] == tree["verdict"].attrs["verdict"]
    assert "verdict on the fillers: not shown" in head["seen"]
    assert any(s.startswith("4 dots after the question lower log p") for s in head["seen"]) == (row["interval"][1] < 0)


def test_trained_and_untrained_attention_differ_as_known(results):
    """Position 0 is a sink and separators are enriched in a trained model, and neither in an untrained one."""
    head = fillers.headline(results[0])
    assert head["sinks"]["first"] > 0.2
    assert head["untrained_sinks"]["first"] < 0.05
    assert head["text_attention"]["separators"]["net_enrichment"][1] > 1
    assert head["untrained_text_attention"]["separators"]["net_enrichment"][0] == pytest.approx(1, abs=0.1)


def test_figure_and_overviews(results):
    tree, _ = results
    assert isinstance(draw(tree), Figure)
    for name, node in tree.children.items():
        ds = node.to_dataset(inherit=False)
        drawn = list(ti.plots.overview(ds))
        assert drawn or ds.attrs["measurement"] in MISSING, name
        for figure, caption, fig in drawn:
            assert figure
            assert caption.endswith(".")
            assert all(ax.get_xlabel() or ax.get_ylabel() for ax in fig.axes)


def test_insertion_curve_shows_the_paired_change(results):
    ds = results[0]["insertion"].to_dataset(inherit=False)
    ax = ti.plots.insertion_curves(ds, kinds=["dots"])
    line = next(x for x in ax.lines if x.get_label() == "dots")
    change = (ds["log_prob"] - ds["log_prob"].sel(n_fillers=0)).sel(filler="dots", placement="post").mean("prompt")
    np.testing.assert_allclose(line.get_ydata(), change)
    assert ti.plots.head_map(results[0]["text_attention"].to_dataset(inherit=False)).get_title("left") == "all → sink"


def test_command_insert(call, tmp_path):
    items = tmp_path / "items.jsonl"
    pairs = [("The sky is", " blue"), ("In the early twentieth", " century"), ("The town has shops, as well", " as")]
    items.write_text("\n".join(json.dumps({"prompt": p, "answer": a}) for p, a in pairs), encoding="utf-8")
    out = tmp_path / "run.zarr"
    code, said, _ = call("fillers", "insert", "bundled", "-o", out, "--items", items, "-k", "2,4", "--decide", 4)
    assert code == 0
    assert "4 dots (post): accuracy" in said
    assert "verdict on 4 dots: not shown" in said
    before = ti.read(out)
    assert set(before.children) == {"insertion", "tests", "interventions", "verdict"}
    asked = ("fillers", "insert", "bundled", "-o", out, "--items", items, "-k", "2", "--decide", 0)
    code, _, error = call(*asked)
    assert code == 1
    assert "is there already: give another name, or --overwrite" in error
    assert ti.read(out).identical(before)
    assert call(*asked, "--overwrite")[0] == 0
    assert set(ti.read(out).children) == {"insertion", "tests"}


def test_command_attention(call, tmp_path):
    code, said, _ = call("fillers", "attention", "bundled", "-o", tmp_path / "a.zarr", "-k", 4, "--limit", 3)
    assert code == 0
    assert "answer -> fillers: mass" in said
    run = ti.read(tmp_path / "a.zarr")
    np.testing.assert_allclose(run["attention"]["mass"].sum("key_set"), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("insert", "bundled", "--kind", ".", "-k", "4"), "merges with its neighbours"),
        (("insert", "bundled", "-k", "2,x"), "write numbers"),
        (("attention", "bundled", "-k", "0"), "attention on fillers needs some"),
        (("attention", "bundled", "-k", "3000"), "fillers fit"),
        (("attention", "bundled", "--limit", "0"), "at least one item"),
    ],
)
def test_commands_refuse_in_one_line(call, tmp_path, arguments, message):
    code, _, error = call("fillers", *arguments, "-o", tmp_path / "x.zarr")
    assert code == 1
    assert message in error
    assert [line.startswith("error: ") for line in error.splitlines() if line and "Loading weights" not in line] == [
        True
    ]


def test_items_of_a_file(tmp_path):
    table = tmp_path / "items.csv"
    table.write_text("prompt,answer\nThe sky is, blue\n", encoding="utf-8")
    assert read_items(table) == [("The sky is", " blue")]
    table.write_text("question,answer\nThe sky is, blue\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"items\.csv line 1: no column 'prompt'; .*: write prompt and answer"):
        read_items(table)
    with pytest.raises(ValueError, match=r"read from \.jsonl or \.csv"):
        read_items(tmp_path / "items.txt") if (tmp_path / "items.txt").write_text("x") else None


@pytest.mark.parametrize("kind", ["segment_coverage", "segment_probe", "separator_windows", "registers", "routing"])
def test_overviews_of_text_and_routing(bundled, kind):
    from tokinterp import fillers

    texts = [t.text for t in ti.bundled_texts()[:6]]
    asked = ti.bundled_questions("cloze")[:12]
    given = asked if kind == "routing" else ti.Prompts.from_texts(texts, bundled, max_tokens=80, progress=False)
    ds = getattr(fillers, kind)(bundled, given)
    ((name, caption, fig),) = plots.overview(ds)
    assert name == kind
    assert "95 % interval" in caption
    drawn = fig.axes[0]
    assert drawn.get_xlabel()
    assert drawn.get_legend() is not None
    plain = next(v for v in ("enrichment", "explained", "kl", "loss_change", "direct") if v in ds)
    if "prompt" in ds[plain].dims:
        ds = ti.summary(ds)
    low, high = ds[f"{plain}_interval"].transpose("bound", ...).values
    known = np.isfinite(ds[plain].values)
    assert (low[known] <= ds[plain].values[known] + 1e-12).all()
    assert (ds[plain].values[known] <= high[known] + 1e-12).all()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b'{"prompt": "a", "answer": "b"}\n{"prompt": ', "a.jsonl line 2: not JSON"),
        ("b.jsonl", b"[1, 2]\n", r"b.jsonl line 1: \[1, 2\]: give an object with texts as prompt and answer"),
        ("c.jsonl", b'{"prompt": "\xe9"}\n', "c.jsonl"),
        ("d.csv", b"prompt,answer\n\xe9,b\n", "d.csv: byte 14 .* is not UTF-8"),
        ("f.jsonl", b'{"prompt": "a", "answer": "b"}\n3\n', "f.jsonl line 2: 3: give an object"),
        ("g.jsonl", b'{"prompt": "a", "answer": null}\n', "g.jsonl line 1: .*: give an object"),
        ("h.jsonl", b"\n", "h.jsonl: no item in it"),
        ("i.csv", b"prompt,answer\n1\n", "i.csv line 2: 1 columns instead of 2"),
        ("e.jsonl", b"[" * 100_000, "e.jsonl line 1: not JSON"),
    ],
)
def test_damaged_items_are_named_with_their_file(tmp_path, name, data, message):
    from tokinterp.fillers.frozen import read_items

    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_items(tmp_path / name)
