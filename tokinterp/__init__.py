"""Interpretability research on tokens: one forward pass, many measurements, labelled results.

A map of the package.  ``load_model`` and ``wrap`` (models/) give a model whose sites can be captured and edited,
whichever library loaded it; ``Prompts`` and ``Spans`` (text/) turn texts into token ids that remember where they came
from; ``measure`` (measure.py) runs the model over the prompts once and hands every batch of activations (capture.py)
to every measurement (measurements/, built on the tensor kernels in kernels/); what comes out is an xarray DataTree
that follows fixed conventions (dataset.py: ``check``, ``read``, ``write``, ``concat_models``, ``summary``), drawn by
``tokinterp.plots`` and gathered on one page by ``tokinterp.report``.
"""

from . import edits
from .capture import Batch, Site, capture, resid, stream
from .dataset import check, read, write
from .measure import measure, measure_on_cluster
from .measurements.base import Measurement
from .measurements.dimension import IntrinsicDimension
from .measurements.erasure import ErasureScores
from .measurements.lens import LogitLens
from .measurements.probe_scores import ProbeScores, score_probes
from .measurements.probes import TokenProbes, fit_probes
from .measurements.spectrum import Spectrum
from .measurements.units import evaluate, psi_of_spans
from .measurements.vocabulary import permutation_threshold, read_out
from .models import Model, ModelInfo, Modules, load_model, wrap
from .report import report
from .summary import concat_models, summary
from .text import Prompts, Spans, bundled_questions, bundled_spans, bundled_texts

__version__ = "0.1.0"

__all__ = [
    "Batch", "ErasureScores", "IntrinsicDimension", "LogitLens", "Measurement", "Model", "ModelInfo",
    "Modules", "ProbeScores", "Prompts", "Site", "Spans", "Spectrum", "TokenProbes", "__version__",
    "bundled_questions", "bundled_spans", "bundled_texts", "capture", "check", "concat_models", "edits",
    "evaluate", "fit_probes", "load_model", "measure", "measure_on_cluster", "permutation_threshold",
    "psi_of_spans", "read", "read_out", "report", "resid", "score_probes", "stream", "summary", "wrap",
    "write",
]  # fmt: skip


def __getattr__(name: str) -> object:
    """Load what draws only when it is asked for, so that matplotlib is not imported before."""
    if name == "plots":
        import importlib

        return importlib.import_module(f"{__name__}.plots")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
