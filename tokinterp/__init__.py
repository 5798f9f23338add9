"""Interpretability research on tokens: one forward pass, many measurements, labelled results.

A map of the package.  ``load_model`` and ``wrap`` (models/) give a model whose sites can be captured and edited,
whichever library loaded it; ``Prompts`` and ``Spans`` (text/) turn texts into token ids that remember where they came
from; ``measure`` (run/) runs the model over the prompts once and hands every batch of activations to every measurement;
what comes out is an xarray DataTree that follows fixed conventions (results/: ``check``, ``read``, ``write``,
``concat_models``, ``summary``), drawn by ``tokinterp.plots`` and gathered on one page by ``tokinterp.report``.

What can be measured stands in topics, loaded when they are first touched: ``attention``, ``behaviour``, ``embeddings``,
``erasure``, ``fillers``, ``geometry``, ``lens``, ``lexicon``, ``linearity``, ``memory``, ``tokenizers``; and
`tokinterp.sklearn`.
"""

import warnings
from importlib import import_module
from typing import TYPE_CHECKING

from .scan import homes, parts, topics

if TYPE_CHECKING:
    from . import (
        attention,
        behaviour,
        embeddings,
        erasure,
        fillers,
        geometry,
        lens,
        lexicon,
        linearity,
        memory,
        plots,
        results,
        sklearn,
        text,
        tokenizers,
    )  # fmt: skip
    from .names import *  # noqa: F403

__version__ = "0.1.0"

__all__ = [
    "Batch", "Condition", "Field", "Measurement", "Model", "ModelInfo", "Modules", "Prompts", "Site", "Spans",
    "__version__", "attention", "behaviour", "bundled_questions", "bundled_spans", "bundled_texts", "capture", "check",
    "cite", "concat_models", "contrast", "edits", "embeddings", "erasure", "fillers", "geometry", "lens", "lexicon",
    "linearity", "load_model", "load_tokenizer", "measure", "measure_conditions", "measure_nulls", "measure_on_cluster",
    "memory", "plots", "read", "report", "resid", "results", "sklearn", "states", "stream", "summary", "table", "text",
    "tokenizers", "untrained", "wrap", "write",
]  # fmt: skip


def __getattr__(name: str) -> object:
    """Load a name when it is first touched; a name of a topic is found there, with a warning."""
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in parts():
        return import_module(f"{__name__}.{name}")
    if name in __all__:
        home = import_module(f"{__name__}.{homes()[name]}")
        return getattr(home, name) if hasattr(home, name) else import_module(f"{home.__name__}.{name}")
    for topic in () if name.startswith("_") else (*topics(), "results", "sklearn"):
        space = import_module(f"{__name__}.{topic}")
        if name in space.__all__ and not hasattr(getattr(space, name), "__path__"):
            said = f"write tokinterp.{topic}.{name}: the name tokinterp.{name} goes with the next version"
            warnings.warn(said, DeprecationWarning, stacklevel=2)
            return getattr(space, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*[n for n in globals() if n.startswith("__")], *__all__, *topics()})
