"""The README's Python examples run as they stand."""

import re
from pathlib import Path

import matplotlib
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.S)


def test_readme_has_an_example():
    assert BLOCKS


def test_examples_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    names = {}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), names)
