"""What the recipes of this folder share: functions taken out of an authors' checkout, run as they are written there."""

import ast
import json
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path


def source(checkout, file):
    """Return the text of a file of the checkout; of a notebook, its code cells."""
    text = (Path(checkout) / file).read_text(encoding="utf-8")
    if not file.endswith(".ipynb"):
        return text
    cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
    return "\n".join("".join(c["source"]) for c in cells)


def functions(checkout, file, names, **space):
    """Return a namespace with these functions (or methods, as functions) of a file, without running the rest of it.

    What they use besides (torch, numpy) is given in ``space``.
    """
    tree = ast.parse(source(checkout, file))
    found = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name in names]
    if sorted(n.name for n in found) != sorted(names):
        raise ValueError(f"{file} has {[n.name for n in found]} of {list(names)}")
    exec(compile(ast.Module(found, []), file, "exec"), space)
    return space


def commit(checkout, wanted):
    """Return the commit, or raise ValueError if the checkout is another one."""
    ask = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    here = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    if here != wanted:
        raise ValueError(f"{checkout} is at {here}: check out {wanted}")
    return here


def versions(*packages):
    """Return the versions that the numbers were made with."""
    return {"python": platform.python_version(), **{p: version(p) for p in packages}}


def write(recipe, found):
    """Write the numbers beside their recipe."""
    Path(recipe).with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
