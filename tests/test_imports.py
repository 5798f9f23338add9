"""What importing costs, who may import what (design: section 2), and that tests/ has the names of the package."""

import ast
import inspect
import os
import pkgutil
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from calls import public
from conftest import ROOT

from tokinterp.scan import measurements, topics

PACKAGE = ROOT / "tokinterp"
FILES = sorted(PACKAGE.rglob("*.py"))
BACKENDS = {"transformers", "transformer_lens", "nnsight"}
TOPICS = topics()
LOW = ("files", "kernels", "settings", "stats")
SHARED = (*LOW, "fitted", "models", "results", "run", "text")
MAY_IMPORT = {
    "files": ("files",),
    "stats": ("stats",),
    "settings": ("settings",),
    "kernels": ("kernels",),
    "fitted": ("files", "models", "results/dataset", "settings"),
    "__main__": ("cli",),
    "models": (*LOW, "models", "run/sites", "run/edits", "run/signals"),
    "text": (*LOW, "models", "text"),
    "run": SHARED,
    "results": (*SHARED, "plots"),
    "plots": ("files", "plots", "results", "settings"),
    "cli": (*SHARED, "cli", "plots", "scan", *TOPICS),
    "sklearn": (*SHARED, "geometry/pooled"),
    "scan": ("run/measurement", ""),
    "__init__": ("names", "scan", "plots", "results", "sklearn", "text", *TOPICS),
    "names": SHARED,
    **{topic: (*SHARED, topic) for topic in TOPICS},
    **{f"{topic}/plots": ("files", "plots", "results", "settings") for topic in TOPICS},
    "attention": (*SHARED, "attention", "behaviour"),
    "behaviour": (*SHARED, "behaviour", "lens"),
    "embeddings": (*SHARED, "embeddings", "tokenizers"),
    "fillers": (*SHARED, "fillers", "attention", "behaviour"),
    "fillers/tasks": (*SHARED, "fillers", "geometry", "lens"),
}
"""What the files of a folder may import of the package, imports for types included; the longest name counts."""
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
tokinterp.measure
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
    assert "tokinterp.run.engine" in loaded
    assert not [
        m for m in loaded if m.startswith(("tokinterp.plots", "tokinterp.cli", *(f"tokinterp.{t}" for t in TOPICS)))
    ]


@pytest.mark.slow
def test_nothing_heavy_is_imported_before_a_name_is_touched():
    loaded = python(
        "import sys, tokinterp, tokinterp.cli.main as m; dir(tokinterp); m.application(); print(*sys.modules)"
    )
    assert not {"torch", "numpy", "xarray", "transformers", "matplotlib"} & set(loaded)
    assert "typer" in loaded


def test_what_is_said_of_tokenizers_needs_no_torch():
    """Nor does what it stands on: followed through all that is imported at once."""
    with_models = ("bytes", "segmentation")
    left = [p for p in (PACKAGE / "tokenizers").glob("*.py") if not p.stem.startswith(with_models)]
    assert len(left) > 12
    seen = set()
    while left:
        path = left.pop()
        if path in seen:
            continue
        seen.add(path)
        for name, kind in imports(path):
            assert kind != "top" or name.split(".")[0] != "torch", relative(path)
            parts = name.split(".")[1:] if kind == "top" and name.startswith("tokinterp") else []
            for n in range(len(parts)):
                folder = PACKAGE.joinpath(*parts[: n + 1])
                left += [f for f in (folder / "__init__.py", folder.with_suffix(".py")) if f.is_file()]
    assert {PACKAGE / "settings" / "kinds.py", PACKAGE / "models" / "tokenizer" / "files.py"} <= seen


@pytest.mark.slow
def test_tokenizers_are_compared_where_there_is_no_torch():
    """Transformers itself loads torch where it finds it: here it finds none."""
    said = python(
        """
import sys
sys.modules["torch"] = None
import tokinterp as ti
tok, texts = ti.load_tokenizer(), ["The sea.", "A blue door, a bookshelf."]
t = ti.tokenizers
prompts = ti.Prompts.from_texts(texts, tok, progress=False)
print(int(t.tokenizer_metrics({"b": tok}, {"en": texts, "xx": prompts}, base_lang="en")["n_pairs"][0, 0, 1]))
t.tokenizer_overview({"b": tok}, {"en": texts})
t.token_reachability(tok), t.token_categories(tok, prompts)
t.boundary_scores(tok, {"mine": [("kindness", ["kind", "ness"])]}), t.derivational_coverage(tok, ["ness"])
t.chunkability(tok, ["a", "bc"], ["W", "W"], {"x": [1.0, 2]}), t.segment_words(tok, ["happy"], "merges")
t.compound_splits(tok, [("bookshelf", ["book", "shelf"])]), t.decompounding_scores(tok, [["sea"]], [["sea"]])
t.token_unigram_loss(t.MarkovSource([[0.9, 0.1], [0.1, 0.9]]), [2, 4], n_train=[4], n_test=2)
t.infer_mixture(tok, {"a": texts, "b": [x.upper() for x in texts]}, n_merges=20)
print(*[m for m in sys.modules if m.startswith("torch.")])
"""
    )
    assert said == ["2"]


def test_public_names_are_there():
    import tokinterp as ti
    from tokinterp import names

    assert not {*names.__all__} ^ {*ti.__all__} - {"__version__", "plots", "results", "sklearn", "text", *TOPICS}
    for name in ti.__all__:
        assert getattr(ti, name) is not None, name
        assert name in dir(ti)
    assert {n for n in dir(ti) if n[0] != "_"} <= {*ti.__all__}, "what the module needs for itself"
    assert len([n for n in ti.__all__ if n not in TOPICS]) <= 40
    with pytest.raises(AttributeError, match="module 'tokinterp' has no attribute 'nothing'"):
        _ = ti.nothing


def test_a_name_without_its_topic_is_found_with_a_warning():
    import tokinterp as ti

    with pytest.warns(DeprecationWarning, match=r"write tokinterp\.lens\.LogitLens"):
        assert ti.LogitLens is ti.lens.LogitLens
    with pytest.warns(DeprecationWarning, match=r"write tokinterp\.sklearn\.TokenRepresentations"):
        assert ti.TokenRepresentations is ti.sklearn.TokenRepresentations
    with pytest.warns(DeprecationWarning, match=r"write tokinterp\.tokenizers\.class_axis"):
        assert ti.class_axis is ti.tokenizers.class_axis  # not loaded with its topic
    assert {*ti.tokenizers.__all__} <= {*dir(ti.tokenizers)}
    for name in ("tasks", "np", "checked"):
        assert not hasattr(ti, name), "what a topic itself imports is no name of it"


def imports(path):
    """(name of the module, "top", "function" or "type") for every import of a file; package modules in full."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))

    def inside(found):
        return {id(n) for node in found for n in ast.walk(node)}

    every = list(ast.walk(tree))
    typed = inside(t for t in every if isinstance(t, ast.If) and "TYPE_CHECKING" in ast.unparse(t.test))
    called = inside(f for f in every if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef))
    parents = path.relative_to(ROOT).with_suffix("").parts
    for node in every:
        kind = "type" if id(node) in typed else "function" if id(node) in called else "top"
        if isinstance(node, ast.Import):
            yield from ((a.name, kind) for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(parents[: len(parents) - node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            if module.split(".")[0] != "tokinterp":
                yield module, kind
                continue
            below = PACKAGE.joinpath(*module.split(".")[1:])
            for a in node.names:
                is_module = (below / f"{a.name}.py").is_file() or (below / a.name / "__init__.py").is_file()
                yield (f"{module}.{a.name}" if is_module else module), kind


def relative(path):
    return path.relative_to(PACKAGE).as_posix()


def place(module):
    """``tokinterp.run.batch`` -> ``run/batch``."""
    return "/".join(module.split(".")[1:])


def within(name, folders):
    return any(name == f or (f and name.startswith(f"{f}/")) for f in folders)


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_import_rules(path):
    here = relative(path).removesuffix(".py").removesuffix("/__init__")
    folder = here.split("/")[0]
    of_plots = folder == "plots" or "plots" in here.split("/")
    allowed = MAY_IMPORT[max((f for f in MAY_IMPORT if within(here, [f])), key=len)]
    for name, kind in imports(path):
        library = name.split(".")[0]
        if library == "tokinterp":
            assert within(place(name), allowed), f"{folder} imports {name}"
            drawn = name.startswith("tokinterp.cli") or "plots" in name.split(".")
            assert not (kind == "top" and drawn and not of_plots and folder not in ("__main__", "cli")), (
                f"{name} would be imported at once"
            )
        if library in BACKENDS:
            assert within(here, ("models", "fillers/tasks")), f"{name} is for models/ and fillers/tasks/"
            assert kind != "top", f"{name} would be imported with tokinterp"
        if library == "matplotlib":
            looked_up = (here, kind) == ("settings/known", "function")  # the names of its colour maps
            assert of_plots or looked_up, f"{name} is for plots/ and figures/"
        if library == "torch":
            assert not of_plots, "plots never import torch"
            assert folder != "stats", "statistics are of arrays"
        if kind == "top" and library not in sys.stdlib_module_names and library != "tokinterp":
            assert library in CORE, f"{name} is no dependency of the core: import it where it is used"
        assert library != "pickle", "nothing is ever pickled"


def test_kernels_of_topics_import_kernels_only():
    files = [p for p in FILES if p.stem == "kernels" or p.parent.name == "kernels"]
    assert len(files) > 20
    for path in files:
        for name, _ in imports(path):
            if name.startswith("tokinterp"):
                assert "kernels" in name.split("."), f"{relative(path)} imports {name}"


def test_there_is_no_cycle_of_imports_types_included():
    graph = {}
    for path in FILES:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        graph[name] = {m for m, _ in imports(path) if m.startswith("tokinterp") and m != name}
    graph["tokinterp"] = set()  # topics and the command line take it for its name only
    sorter = TopologicalSorter(graph)
    sorter.prepare()  # raises CycleError


def test_the_walk_sees_what_it_should():
    found = dict(imports(PACKAGE / "models" / "hf.py"))
    assert found["transformers"] == "function"
    assert found["torch"] == "top"
    assert found["tokinterp.models.info"] == "top"
    assert dict(imports(PACKAGE / "run" / "batch.py"))["tokinterp.models.base"] == "type"
    assert len(FILES) > 25
    assert not [
        p for p in FILES if "kernels" in p.parts and "torch" not in dict(imports(p)) and p.name != "__init__.py"
    ]


LONGEST = 400
MOST_FILES = 20


def test_folders_are_small():
    folders = {relative(p.parent): len([*p.parent.glob("*.py")]) for p in FILES}
    assert not {name: n for name, n in folders.items() if n > MOST_FILES}, "group these files"


def test_files_are_short():
    lengths = {relative(p): len(p.read_text(encoding="utf-8").splitlines()) for p in FILES}
    long = {name: n for name, n in lengths.items() if n > LONGEST}
    assert not long, "split these files"
    assert Path(__file__).name == "test_imports.py"


MOST_ARGUMENTS, MOST_METHODS = 8, 12


def test_classes_are_small():
    """Arguments of constructors, and public methods and properties; settings that are fields of a dataclass apart."""
    large, seen = {}, 0
    for path in FILES:
        for one in [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.ClassDef)]:
            methods = {n.name: n for n in one.body if isinstance(n, ast.FunctionDef)}
            public = [name for name in methods if not name.startswith("_")]
            given = methods["__init__"].args if "__init__" in methods else None
            n = 0 if given is None else len([*given.posonlyargs, *given.args, *given.kwonlyargs]) - 1
            seen += n > 0
            if n > MOST_ARGUMENTS or len(public) > MOST_METHODS:
                large[f"{relative(path)} {one.name}"] = (n, len(public))
    assert seen > 50
    assert not large, "(arguments, public methods): group what belongs together"


MOST_OPTIONS = 11


def test_functions_are_called_with_few_options():
    """Options of public functions: what several of them pass on to one another is one typed dictionary."""
    many = {}
    for name, function in public():
        own = inspect.signature(function).parameters.values()
        options = [p.name for p in own if p.default is not p.empty or p.kind is p.VAR_KEYWORD]
        if not isinstance(function, type) and len(options) > MOST_OPTIONS:
            many[name] = options
    assert len(public()) > 150
    assert not many, "make what goes together one TypedDict, for Unpack"


def test_every_topic_offers_its_measurements_and_no_name_twice():
    import tokinterp as ti

    homes = {}
    for topic in TOPICS:
        space = getattr(ti, topic)
        assert space.__doc__
        assert topic in dir(ti)
        modules = {m.name for m in pkgutil.iter_modules(space.__path__)}
        assert not modules & {*space.__all__} - {"tasks"}, "a module and a name in it would be one attribute"
        for name in space.__all__:
            assert getattr(space, name) is not None
            homes.setdefault(name, []).append(topic)
    assert not {name: where for name, where in homes.items() if len(where) > 1}
    for name, kind in measurements().items():
        topic = name.partition(".")[0]
        assert getattr(getattr(ti, topic), kind.__name__) is kind, f"{kind.__name__} is not offered by ti.{topic}"


TESTS = ROOT / "tests"
# tests of what is true of all modules, or of what lies outside of them
TESTED_WITH = {
    "__main__": "cli/main", "attention/kernels": "attention/mass", "models/info": "identity", "names": "imports",
    "fillers/asked": "fillers/insertion",
    "models/attention/knock_outs": "models/attention/attention", "models/site_hooks": "models/hooks",
    "run/edits/edges": "run/edits/edits", "run/measurement/kept": "run/measurement/measurement",
    "run/measurement/labelled": "run/measurement/measurement",
    "run/facts": "run/checkpoint", "text/spelled": "text/prompts", "settings/libraries": "settings/describe",
    "text/vocabulary": "text/tokenise", "tokenizers/bytes_reader": "tokenizers/bytes",
   
    **dict.fromkeys(("attention/contributions", "attention/graph", "attention/plots", "kernels/attribution"),
                    "attention/routes"),
}  # fmt: skip
OUTSIDE = ("experiments", "figures")
CROSS_CUTTING = {
    "bad_input", "dist", "docs", "figures", "fillers/planted", "fillers/published", "golden", "identity", "imports",
    "inputs", "peaks", "run/float64", "run/growth",
    "mutants", "notebooks", "process", "readme", "resume", "stores",
}  # fmt: skip


def test_tests_have_the_names_and_folders_of_what_they_test():
    found = {p.relative_to(TESTS).with_suffix("").as_posix().replace("test_", "") for p in TESTS.rglob("test_*.py")}
    assert found >= CROSS_CUTTING
    modules = {relative(p).removesuffix(".py") for p in FILES}
    packages = {f"{m.removesuffix('/__init__')}/{m.split('/')[-2]}" for m in modules if m.endswith("/__init__")}
    outside = {p.relative_to(ROOT).with_suffix("").as_posix() for f in OUTSIDE for p in (ROOT / f).rglob("*.py")}
    outside |= {f"{f}/{p.name}" for f in OUTSIDE for p in (ROOT / f).iterdir() if p.is_dir()}
    outside |= {f"experiments/{p.stem}" for p in (ROOT / "experiments" / "runner").glob("*.py")} | {"experiments/all"}
    known = modules | packages | outside | CROSS_CUTTING
    nameless = sorted(t for t in found if not any(t == k or t.startswith(f"{k}_") for k in known))
    assert not nameless, "test files named after nothing"
    without = []
    for m in sorted(m for m in modules if not m.endswith("__init__")):
        folder, _, name = m.rpartition("/")
        there = {m, f"{folder.removesuffix('/kernels')}/{name}"}  # the kernels of a measurement, tested with it
        if folder in ("plots", "kernels"):  # tested with what is drawn, or with what it is the arithmetic of
            there |= {t for t in found if t.rpartition("/")[2] == name}
        there |= {TESTED_WITH[m]} if m in TESTED_WITH else set()
        if not there & found and not any(t.startswith(f"{m}_") for t in found):
            without.append(m)
    assert not without, "modules without a test file of their name"


def calls_of_models(path):
    """Lines of a file that run a network: ``model.run(...)``, a call with ``input_ids``, ``generate``, ``forward``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        of = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
        by_name = name in ("run", "generate", "forward") and of not in ("subprocess", "self")
        if by_name or any(k.arg == "input_ids" for k in node.keywords):
            yield node.lineno


RUN_BY_HAND = {
    "fillers/tasks/training.py": "trains toy networks, step by step, with gradients",
    "fillers/tasks/probe.py": "finetunes them",
    "fillers/tasks/evaluation.py": "scores them while they are trained",
}
"""Where a network is run outside of run/ and models/, and why."""


def test_nothing_outside_of_run_and_models_runs_a_network():
    found = {relative(p): [*calls_of_models(p)] for p in FILES if not within(relative(p), ["run", "models"])}
    assert {name for name, lines in found.items() if lines} == {*RUN_BY_HAND}, found
    assert [*calls_of_models(PACKAGE / "run" / "stream.py")], "the walk sees what it should"
