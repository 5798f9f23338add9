"""What importing costs, who may import what (design: section 2), and that tests/ has the names of the package."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "tokinterp"
FILES = sorted(PACKAGE.rglob("*.py"))
BACKENDS = {"transformers", "transformer_lens", "nnsight"}
CORE = {"numpy", "safetensors", "torch", "tqdm", "typer", "xarray", "zarr"} | BACKENDS | {"matplotlib"}


def python(code):
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    return out.stdout.split()


@pytest.mark.slow
def test_import_brings_in_no_optional_library_and_changes_nothing_global():
    loaded = python(
        """
import logging, os, signal, sys, warnings
import torch
def state():
    return (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(), torch.initial_seed(),
            torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision(), dict(os.environ), os.getcwd(),
            signal.getsignal(signal.SIGINT), logging.getLogger().handlers, logging.getLogger().level, sys.excepthook,
            sys.getrecursionlimit())
before = state()
import tokinterp
assert state() == before
print(*sorted(sys.modules))
"""
    )
    heavy = {
        "transformers", "transformer_lens", "nnsight", "matplotlib", "sklearn", "scipy", "skdim", "datasets", "dask",
        "distributed", "zarr", "netCDF4", "h5netcdf", "h5py", "accelerate", "tokenizers", "huggingface_hub", "spacy",
        "IPython", "typer",
    }  # fmt: skip
    assert not heavy & set(loaded)
    assert "tokinterp.measure" in loaded
    assert not [m for m in loaded if m.startswith(("tokinterp.plots", "tokinterp.cli"))]


def test_public_names_are_there():
    import tokinterp as ti

    names = """load_model wrap Modules Prompts Spans Site Batch capture stream resid edits measure measure_on_cluster
        check read write concat_models summary Measurement IntrinsicDimension Spectrum LogitLens"""
    for name in names.split():
        assert getattr(ti, name), name
    with pytest.raises(AttributeError, match="module 'tokinterp' has no attribute 'nothing'"):
        ti.nothing


def imports(path):
    """(name of the module, whether at the top level) for every import of a file; package modules in full."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    checked = {
        node for test in ast.walk(tree) if isinstance(test, ast.If) and "TYPE_CHECKING" in ast.unparse(test.test)
        for node in ast.walk(test)
    }  # fmt: skip
    inside = {n for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)}
    parents = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(tree):
        if node in checked:
            continue
        if isinstance(node, ast.Import):
            yield from ((a.name, node not in inside) for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(parents[: len(parents) - node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            yield module, node not in inside
            if node.module is None or module.startswith("tokinterp"):
                yield from ((f"{module}.{a.name}", node not in inside) for a in node.names)


def relative(path):
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", FILES, ids=relative)
@pytest.mark.slow
def test_import_rules(path):
    folder = relative(path).split("/")[0]
    for name, top in imports(path):
        library = name.split(".")[0]
        if library in BACKENDS:
            assert folder in ("models", "fillers"), f"{name} is for models/ and fillers/"
            assert not top, f"{name} would be imported with tokinterp"
        if library == "matplotlib":
            assert folder == "plots", f"{name} is for plots/ and figures/"
        if folder == "plots":
            assert library != "torch", "plots never import torch"
        if folder == "stats":
            assert library != "tokinterp" or name.startswith("tokinterp.stats"), f"statistics import {name}"
            assert library != "torch", "statistics are of arrays"
        if folder == "kernels":
            assert library != "tokinterp" or name.startswith("tokinterp.kernels"), f"a kernel imports {name}"
        if library == "tokinterp" and folder not in ("cli.py", "cli_settings.py", "report.py", "plots"):
            assert not (top and name.startswith(("tokinterp.plots", "tokinterp.cli")))
        if top and library not in sys.stdlib_module_names and library != "tokinterp":
            assert library in CORE, f"{name} is no dependency of the core: import it where it is used"
        assert library != "pickle", "nothing is ever pickled"


def test_the_walk_sees_what_it_should():
    found = dict(imports(PACKAGE / "models" / "hf.py"))
    assert found["transformers"] is False
    assert found["torch"] is True
    assert found["tokinterp.models.base"] is True
    assert len(FILES) > 25
    assert not [
        p for p in FILES if "kernels" in p.parts and "torch" not in dict(imports(p)) and p.name != "__init__.py"
    ]


def test_files_are_short():
    long = {relative(p): n for p in FILES if (n := len(p.read_text(encoding="utf-8").splitlines())) > 500}
    assert not long, "split these files"
    assert Path(__file__).name == "test_imports.py"


def test_names_of_the_filler_experiments():
    from tokinterp import fillers

    assert sorted(name for names in fillers.HOMES.values() for name in names) == fillers.__all__
    for name in fillers.__all__:
        assert callable(getattr(fillers, name))
        assert name in (fillers.__doc__ or "") or name == "Items"
    assert not {*fillers.__all__} & {*fillers.HOMES}, "a module and a name in it would be one attribute"
    with pytest.raises(AttributeError, match="insertt"):
        _ = fillers.insertt


TESTS = ROOT / "tests"
# tests of what is true of all modules, or of what lies outside of them
CROSS_CUTTING = {
    "bad_input", "figures", "fillers_loops", "fillers_planted", "fillers_published", "golden", "identity", "imports",
    "inputs", "mutants", "notebooks", "process", "readme", "received", "resume", "rounding", "stores",
}  # fmt: skip


def test_tests_have_the_names_of_what_they_test():
    names = {path.stem.removeprefix("test_") for path in TESTS.glob("test_*.py")}
    assert names >= CROSS_CUTTING
    known, without = set(CROSS_CUTTING), []
    for path in FILES:
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        own = {"_".join(parts), parts[-1]} if parts else set()
        known |= own
        if path.name != "__init__.py" and not own & names:
            without.append("/".join(parts))
    for folder in ("experiments", "figures"):
        known |= {"_".join(p.relative_to(ROOT).with_suffix("").parts) for p in (ROOT / folder).rglob("*.py")}
        known |= {f"{folder}_{p.name}" for p in (ROOT / folder).iterdir()}
    assert names <= known, "test files named after nothing"
    assert not without, "modules without a test file of their name"
