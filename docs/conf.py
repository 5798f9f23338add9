"""How Sphinx makes the site; `python -m docs` calls it with a folder in which the generated pages are, too."""

import os
import re
import sys
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything here runs on what is in the package
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (sys.path[0], os.environ.get("PYTHONPATH"))))  # of kernels

project = "tokinterp"
copyright = "the tokinterp authors"
release = version = version_of("tokinterp")

extensions = ["sphinx.ext.autodoc", "sphinx.ext.autosummary", "numpydoc", "myst_nb", "sphinx_gallery.gen_gallery"]
root_doc = "index"
exclude_patterns = ["gallery/*", "auto_gallery/*.ipynb", "auto_gallery/*.py", "**/*.json"]
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".ipynb": "myst-nb"}
default_role = "autolink"
pygments_style = "a11y-high-contrast-light"

autosummary_generate = False
toc_object_entries = False
autodoc_typehints = "none"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

myst_enable_extensions = ["colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 3
nb_execution_mode = os.environ.get("TOKINTERP_DOCS_EXECUTE", "cache")
nb_execution_timeout = 900
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_output_stderr = "remove"
nb_ipywidgets_js = {}
nb_merge_streams = True
nb_kernel_rgx_aliases = {".*": "python3"}

sphinx_gallery_conf = {
    "examples_dirs": ["gallery"],
    "gallery_dirs": ["auto_gallery"],
    "filename_pattern": "/draw_",
    "ignore_pattern": r"__init__\.py",
    "plot_gallery": nb_execution_mode != "off",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "image_srcset": ["2x"],
    "write_computation_times": False,
    "show_memory": False,
    "capture_repr": ("_repr_html_",),
    "remove_config_comments": True,
    "default_thumb_file": None,
    "reset_modules": ("matplotlib",),
}
suppress_warnings = ["config.cache"]  # sphinx-gallery keeps classes in its settings
if nb_execution_mode == "off":
    suppress_warnings += ["myst-nb.lexer"]  # only a kernel says what language it is

html_theme = "pydata_sphinx_theme"
html_title = "tokinterp"
html_static_path = ["_static"]
html_css_files = ["tokinterp.css"]
html_show_sourcelink = False
html_copy_source = False
html_sidebars = {"index": [], "start": [], "glossary": [], "methods": [], "fidelity": [], "changes": []}
html_context = {"default_mode": "auto"}
html_theme_options = {
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "header_links_before_dropdown": 5,
    "navbar_align": "left",
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
    "show_prev_next": True,
}
linkcheck_timeout = 20
linkcheck_ignore = [r"https://doi\.org/.*"]  # publishers answer only browsers


def plain_bars(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Let |x| of a docstring be what it says, no substitution; examples stay as they are."""
    example = False
    for n, line in enumerate(lines):
        example = line.lstrip().startswith(">>>") or (example and bool(line.strip()))
        if not example:
            lines[n] = re.sub(r"(``.*?``)|[|]", lambda m: m[1] or r"\|", line)


def setup(app: Any) -> None:
    """Tell Sphinx what is done to docstrings, before numpydoc reads them."""
    app.connect("autodoc-process-docstring", plain_bars, priority=400)
