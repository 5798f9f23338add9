"""Every experiment runs at its tiny preset, and every figure is drawn of that record."""

import importlib
import math

import pytest

import experiments.__main__ as runner
import figures.__main__ as figures
from experiments.runner import record

pytestmark = pytest.mark.slow


def test_every_figure_has_an_experiment_of_its_name_and_every_experiment_its_presets():
    assert set(figures.NAMES) <= set(runner.NAMES)
    assert len(runner.NAMES) >= 7
    for name in runner.NAMES:
        module = importlib.import_module(f"experiments.{name}")
        assert {"tiny", "bundled", "paper"} <= module.PRESETS.keys()
        assert callable(module.run)
        assert module.CLAIMS
        assert len({(c.says, c.model) for c in module.CLAIMS}) == len(module.CLAIMS)


@pytest.mark.parametrize("name", runner.NAMES)
def test_experiment_record_and_figure(name, tmp_path):
    kept = record.read(runner.run(name, "tiny", out=tmp_path))
    claims = importlib.import_module(f"experiments.{name}").CLAIMS
    rows = {row["claim"]: row for row in kept["claims"]}
    assert set(rows) <= {c.says for c in claims}
    assert len(rows) >= 0.9 * len([c for c in claims if not c.model])
    for row in rows.values():
        first = next(iter(row["numbers"].values()))
        assert (first["value"] is None) == (row["verdict"] == "not measured")
        assert first["value"] is None or math.isfinite(first["value"])
        assert not next(iter(row["numbers"])).startswith("not in the results"), row
    if name in figures.NAMES:
        kinds = ("pdf", "png") if name == "first_look" else ("png",)  # a PDF takes as long as the drawing
        files = figures.redraw(name, "tiny", tmp_path / "figures", tmp_path, dirty=True, kinds=kinds)
        assert [f.suffix for f in files] == [f".{kind}" for kind in kinds]
        assert all(f.stat().st_size > 5000 for f in files)
