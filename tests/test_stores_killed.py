"""A writer that is killed at any moment leaves the old result or the new one, and the same call leaves no litter."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_writers_that_are_killed_before_a_file_operation_are_called_again(tmp_path):
    has = [library for library in ("h5netcdf",) if importlib.util.find_spec(library)]
    here = Path(__file__).parent
    path = os.pathsep.join([str(here.parent), str(here), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [sys.executable, str(here / "killed_writers.py"), str(tmp_path), *(["netcdf"] if has else [])],
        check=True, env={**os.environ, "PYTHONPATH": path}, timeout=300,
    )  # fmt: skip
    found = json.loads((tmp_path / "found.json").read_text())
    for name, least in (("ridge", 20), ("softmax", 20), ("lens", 3), *([("netcdf", 4)] if has else [])):
        assert found[name]["operations"] >= least, name
        assert not found[name]["faults"], name
