"""Topics and measurements are found by their folders: a new method is two files, and nothing else is touched."""

import sys

import numpy as np
import pandas
import pytest
from tiny import some_prompts, tiny

import tokinterp as ti
from tokinterp import scan
from tokinterp.cli.main import main as cli

TOY = '''"""Lengths of rows of the stream."""

import torch

from tokinterp import Field, Measurement


class RowLengths(Measurement):
    """How long the rows of a prompt are, on average."""

    fields = {"length": Field(("prompt", "layer"), "mean norm of the rows of the stream", "1")}
    first = ("length",)

    def __init__(self, layers=None):
        super().__init__()
        self.layers = layers

    def update(self, batch):
        """Average the norms of real tokens."""
        x = [(batch.resid(n).norm(dim=-1) * batch.mask).sum(1) for n in self.at_layers()]
        self.keep(batch, length=torch.stack(x, 1) / batch.mask.sum(1, keepdim=True))
'''
TEST = '''"""Lengths are those of a loop."""


def test_nothing_else_is_needed():
    from tokinterp.toys.lengths import RowLengths

    assert RowLengths(layers=[0]).settings() == {"layers": [0]}
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A topic with one method, in a folder of its own: the module and its test."""
    folder = tmp_path / "toys"
    folder.mkdir()
    (folder / "__init__.py").write_text('"""Toys."""\n')
    (folder / "lengths.py").write_text(TOY)
    (folder / "test_lengths.py").write_text(TEST)
    monkeypatch.setattr(ti, "__path__", [*ti.__path__, str(tmp_path)])
    yield folder
    for name in [n for n in sys.modules if n.startswith("tokinterp.toys")]:
        del sys.modules[name]
    vars(ti).pop("toys", None)


def test_a_new_method_is_found_by_the_command_line_and_drawn_and_told(toy, tmp_path, tiny_folder, capsys):
    assert "toys" in scan.topics()
    assert "toys" in dir(ti)
    assert scan.measurement("toys.lengths") is ti.toys.lengths.RowLengths
    texts = tmp_path / "texts.txt"
    texts.write_text("The river to the sea and the singing.\n\nOne thing and the other thing.\n")
    store = str(tmp_path / "run.zarr")

    def call(*words):
        with pytest.raises(SystemExit) as ended:
            cli([str(w) for w in words])
        assert ended.value.code == 0, capsys.readouterr().err
        return capsys.readouterr().out

    assert "toys.lengths" in call("measurements")
    call("measure", tiny_folder, texts, "-m", "toys.lengths", "--set", "lengths.layers=[0,2]", "-o", store)
    run = ti.read(store)
    ds = run["lengths"].to_dataset()
    ti.check(ds)
    assert ds["layer"].values.tolist() == [0, 2]
    assert "length" in ti.summary(ds)
    shown = call("show", store)
    assert "lengths (RowLengths)" in shown
    assert "length" in shown
    page = tmp_path / "report.html"
    call("report", store, "-o", page)
    assert "mean norm of the rows of the stream" in page.read_text()
    assert page.read_text().count("<figure>") == 1
    about = call("measurements", "toys.lengths")
    assert "layers  [default: null]" in about
    assert "mean norm of the rows of the stream (prompt, layer; 1)" in about
    values = tmp_path / "values.csv"
    call("export", store, "-o", values)
    rows = pandas.read_csv(values).query("variable == 'length'")
    np.testing.assert_allclose(rows["value"], ds["length"].values.ravel())
    assert len(ti.table(run, "length")) == ds["length"].size


def test_its_own_test_needs_nothing_else(toy):
    space = {}
    exec((toy / "test_lengths.py").read_text(), space)
    space["test_nothing_else_is_needed"]()


def test_names_that_two_topics_have_need_the_topic(toy, monkeypatch):
    (toy / "curvature.py").write_text(TOY.replace("RowLengths", "ToyCurvature"))
    assert scan.measurement("curvature") is None
    assert scan.measurement("toys.curvature").__name__ == "ToyCurvature"
    assert scan.measurement("geometry.curvature") is ti.geometry.Curvature
    from tokinterp.cli.measurements import group_names, measurement_class

    with pytest.raises(ValueError, match=r"write which one: geometry\.curvature or toys\.curvature"):
        measurement_class("curvature")
    assert group_names(["geometry.curvature", "toys.curvature", "lens"]) == {
        "geometry.curvature": "geometry_curvature", "toys.curvature": "toys_curvature", "lens": "lens",
    }  # fmt: skip


def test_what_to_look_at_first_is_said_by_the_measurement():
    run = ti.measure(tiny(), some_prompts([9, 8]), {"lens": ti.lens.LogitLens(top=0)}, progress=False)
    ds = run["lens"].to_dataset()
    assert ds.attrs["first"].split(", ")[0] == "cross_entropy"
    from tokinterp.results.tables import layer_table

    _, _, columns = layer_table(ds)
    assert columns[0].name == "cross entropy (nat)"
    _, _, others = layer_table(ds.drop_attrs(deep=False))
    assert len(others) >= len(columns)
