"""Build the site: ``python -m docs --out runs/docs``; pages, generated pages and notebooks are gathered there first.

Warnings are errors; notebooks, pages with code and the scripts of the gallery are executed once and kept until they
change; then every link from page to page is looked up, offline.  ``--external`` asks the network for the other links.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from importlib import import_module
from pathlib import Path

from docs.generate import generate
from docs.links import broken

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent
PAGES = {"CHANGELOG.md": "changes.md", "CONTRIBUTING.md": "contributing.md", "experiments/RESULTS.md": "results.md"}
"""Files of the repository that are pages, too."""


def gather(source: Path) -> None:
    """Lay out what Sphinx reads: pages, those that are generated, notebooks; equal files are not touched."""
    files = {p.relative_to(FOLDER): p.read_bytes() for p in FOLDER.rglob("*") if p.suffix in (".md", ".css", ".rst")}
    files |= {Path("gallery") / p.name: p.read_bytes() for p in (FOLDER / "gallery").glob("*.py")}
    files |= {Path("notebooks") / p.name: p.read_bytes() for p in (ROOT / "notebooks").glob("*.ipynb")}
    records = ROOT / "experiments" / "results"
    files |= {Path("records") / p.relative_to(records): p.read_bytes() for p in records.rglob("*.json")}
    files[Path("_static/readme.png")] = (ROOT / "figures" / "readme.png").read_bytes()
    for name, page in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        text = text.replace("](results/", "](records/")
        files[Path(page)] = text.encode()
    files |= {Path(name): text.encode() for name, text in generate().items()}
    for name, content in files.items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)
    made = ("auto_gallery", "jupyter_execute")
    for path in [p for p in source.rglob("*") if p.is_file()]:
        name = path.relative_to(source)
        if name not in files and name.parts[0] not in made:
            path.unlink()


def build(out: Path, execute: bool = True, builder: str = "html", fresh: bool = False) -> int:
    """Build and return the exit code: 0 where there was no warning and no link is broken.

    Parameters
    ----------
    out : Path
        Folder: ``source`` is what is built, ``html`` the site.
    execute : bool
        Whether notebooks, pages and the gallery are run.
    builder : str
        Of Sphinx: "html", or "linkcheck" for the links to other sites.
    fresh : bool
        Whether all is built and run again.
    """
    os.environ["TOKINTERP_DOCS_EXECUTE"] = "cache" if execute else "off"
    if fresh:
        shutil.rmtree(out, ignore_errors=True)
    source, target = out / "source", out / builder
    gather(source)
    words = ["-b", builder, "-c", str(FOLDER), "-d", str(out / "doctrees"), "-q", "-W", "--keep-going"]
    words += ["-D", f"nb_execution_cache_path={(out / 'executed').resolve()}"]
    code = import_module("sphinx.cmd.build").build_main([*words, str(source), str(target)])
    if builder != "html":
        return code
    (target / "llms.txt").write_bytes((source / "llms.txt").read_bytes())
    for link in (faults := broken(target)):
        print(f"broken link: {link}", file=sys.stderr)
    return code or bool(faults)


def main(arguments: list[str] | None = None) -> int:
    """Build from the command line."""
    parser = argparse.ArgumentParser(prog="python -m docs", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/docs"), help="folder for the site")
    parser.add_argument("--no-execute", action="store_true", help="leave code cells and the gallery out: seconds")
    parser.add_argument("--external", action="store_true", help="look up the links to other sites, in the network")
    parser.add_argument("--fresh", action="store_true", help="build and execute all again")
    a = parser.parse_args(arguments)
    code = build(a.out, not a.no_execute, "linkcheck" if a.external else "html", a.fresh)
    print(f"{a.out / 'html' / 'index.html'}" if not code else "the site has faults (above)")
    return code


if __name__ == "__main__":
    sys.exit(main())
