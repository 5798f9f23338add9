"""Every notebook runs from top to bottom and shows its figures; the files are kept without outputs."""

import re
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import KernelManager

from notebooks.__main__ import FOLDER, execute

pytestmark = pytest.mark.slow

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
OWN = {
    "fillers": "N_ITEMS, N_FILLERS, N_TEXTS, MAX_TOKENS = 6, 4, 2, 60",  # needs a tokenizer with whole words
    "tokenizers": "N_TEXTS, MAX_TOKENS = 2, 20",
    "dot_by_dot": "STEPS, BATCH, EXAMPLES, DRAWN = 6, 8, 40, 50",
}
SMALL = "N_TEXTS, MAX_TOKENS, SCALES = 3, 96, (2, 4)"


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    """One kernel for all notebooks: what takes long is to start it and to import. It is far from the checkout."""
    manager = KernelManager()
    manager.start_kernel(cwd=str(tmp_path_factory.mktemp("elsewhere")))
    yield manager
    manager.shutdown_kernel(now=True)


@pytest.fixture
def kernel(process):
    """The kernel, with nothing of other notebooks in it."""
    client = process.blocking_client()
    client.start_channels()
    client.wait_for_ready(timeout=300)
    client.execute("%reset -f", silent=True, reply=True, timeout=300)
    client.stop_channels()
    return process


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_kept_clean(path: Path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_needs_the_package_alone(path: Path):
    """As on Colab: the first cell installs it where it is missing; no cell imports what a checkout has beside it."""
    first, *others = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    assert re.search(r'find_spec\("tokinterp"\) is None:\n    %pip install .*\btokinterp$', first)
    imported = {m for code in others for m in re.findall(r"^\s*(?:from|import) (\w+)", code, re.M)}
    assert imported <= {"tokinterp", "torch", "tokenizers", "transformers"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs_and_shows_what_it_draws(path: Path, kernel, tiny_folder, tmp_path):
    done = execute(path, tmp_path, OWN.get(path.stem, f"MODEL = {str(tiny_folder)!r}\n{SMALL}"), kernel)
    drawn = 0
    for cell in done.cells:
        outputs = cell.get("outputs", [])
        assert not [o for o in outputs if o.output_type == "error"]
        if cell.cell_type == "code" and re.search(r"\bti\.(\w+\.)?plots\.", cell.source):
            kind = "text/html" if "ti.plots.tokens(" in cell.source else "image/png"
            assert [o for o in outputs if kind in o.get("data", {})], f"no figure under: {cell.source}"
            drawn += 1
    assert drawn
    assert (tmp_path / path.name).is_file()
