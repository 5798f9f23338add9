"""Run every notebook: ``python -m notebooks --out runs/notebooks``; the executed copies go to that folder."""

from __future__ import annotations

import argparse
from pathlib import Path

import nbformat
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

FOLDER = Path(__file__).parent


def execute(
    path: Path, out: Path | None = None, parameters: str | None = None, kernel: KernelManager | None = None
) -> nbformat.NotebookNode:
    """Run a notebook and return it with its outputs; the file itself stays without.

    Parameters
    ----------
    path : Path
        The notebook.
    out : Path, optional
        Folder for the executed copy.
    parameters : str, optional
        Python lines that are run after the cell tagged ``parameters``, for example to choose a smaller model.
    kernel : KernelManager, optional
        A kernel that runs already, and goes on running; one of its own by default.
    """
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if parameters is not None and "parameters" in cell.metadata.get("tags", []):
            cell.source += f"\n{parameters}"
    client = NotebookClient(notebook, kernel, timeout=600, resources={"metadata": {"path": str(FOLDER.parent)}})
    client.execute()
    if kernel is not None and client.kc is not None:
        client.kc.stop_channels()
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, out / path.name)
    return notebook


def main() -> None:
    """Run all notebooks of this folder."""
    parser = argparse.ArgumentParser(prog="python -m notebooks", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/notebooks"), help="folder for the executed copies")
    args = parser.parse_args()
    for path in sorted(FOLDER.glob("*.ipynb")):
        execute(path, args.out)
        print(args.out / path.name)


if __name__ == "__main__":
    main()
