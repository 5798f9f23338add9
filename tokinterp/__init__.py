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
from .correlation import dimension_loss_correlation, prompt_covariates
from .dataset import check, read, write
from .measure import measure, measure_on_cluster
from .measurements.attention import AttentionMass, AttentionSinks
from .measurements.augmentation import augmentation_metrics, compare_models
from .measurements.base import Field, Measurement
from .measurements.context import ContextMemory
from .measurements.context_training import fit_context_decoder
from .measurements.cosine import CosineSimilarity
from .measurements.curvature import Curvature
from .measurements.dimension import IntrinsicDimension
from .measurements.entropy import MatrixEntropy, diff_erank
from .measurements.erasure import ErasureScores
from .measurements.graph import NeighbourGraph
from .measurements.imbalance import InformationImbalance
from .measurements.inner_lexicon import canonicity, repeat_words, retrieve_words
from .measurements.lens import LogitLens
from .measurements.linear_maps import LinearMaps
from .measurements.linearity import Linearity
from .measurements.logit_dimension import LogitDimension
from .measurements.multiple_choice import Item, multiple_choice, read_mmlu
from .measurements.nonlinearity import TokenNonlinearity
from .measurements.norms import TokenNorms
from .measurements.overlap import NeighbourOverlap
from .measurements.patchscope import Target, patchscope
from .measurements.per_cloud import PerCloud, cluster_count, homology_dimension
from .measurements.piece_attention import PieceAttention
from .measurements.pooled import PooledStates
from .measurements.probe_scores import ProbeScores, score_probes
from .measurements.probes import TokenProbes, fit_probes
from .measurements.recall import PrefixRecall
from .measurements.removal_loss import removal_accuracy, surviving_loss
from .measurements.replicates import seed_agreement
from .measurements.similarity import LayerSimilarity
from .measurements.sinks import FirstTokenAttention
from .measurements.spectrum import Spectrum
from .measurements.tuned_lens import TunedLens
from .measurements.tuned_lens_fit import fit_tuned_lens
from .measurements.units import evaluate, psi_of_spans
from .measurements.vocabulary import permutation_threshold, read_out
from .measurements.word_probe import word_probe, words_and_nonwords
from .models import Model, ModelInfo, Modules, load_model, load_tokenizer, untrained, wrap
from .nulls import measure_nulls
from .profiles import class_profile, mcnemar, span_labels, token_correlation
from .report import report
from .representations import TokenRepresentations
from .summary import concat_models, summary
from .text import Prompts, Spans, bundled_questions, bundled_spans, bundled_texts
from .text.lexicon import Cases, Lexicon, natural_cases, split_cases, typo_cases

__version__ = "0.1.0"

__all__ = [
    "AttentionMass", "AttentionSinks", "Batch", "Cases", "ContextMemory", "CosineSimilarity", "Curvature",
    "ErasureScores", "Field", "FirstTokenAttention", "InformationImbalance", "IntrinsicDimension", "Item",
    "LayerSimilarity", "Lexicon", "LinearMaps", "Linearity", "LogitDimension", "LogitLens", "MatrixEntropy",
    "Measurement", "Model", "ModelInfo", "Modules", "NeighbourGraph", "NeighbourOverlap", "PerCloud",
    "PieceAttention", "PooledStates", "PrefixRecall", "ProbeScores", "Prompts", "Site", "Spans", "Spectrum",
    "Target", "TokenNonlinearity", "TokenNorms", "TokenProbes", "TokenRepresentations", "TunedLens",
    "__version__", "augmentation_metrics", "bundled_questions", "bundled_spans", "bundled_texts",
    "canonicity", "capture", "check", "class_profile", "cluster_count", "compare_models", "concat_models", "diff_erank",
    "dimension_loss_correlation", "edits", "evaluate", "fit_context_decoder", "fit_probes", "fit_tuned_lens",
    "homology_dimension", "load_model", "load_tokenizer", "mcnemar", "measure", "measure_nulls", "measure_on_cluster",
    "multiple_choice", "natural_cases", "patchscope", "permutation_threshold", "prompt_covariates",
    "psi_of_spans", "read", "read_mmlu", "read_out", "removal_accuracy", "repeat_words", "report", "resid",
    "retrieve_words", "score_probes", "seed_agreement", "span_labels", "split_cases",
    "stream", "summary", "surviving_loss",
    "token_correlation", "typo_cases", "untrained", "word_probe", "words_and_nonwords", "wrap", "write",
]  # fmt: skip


def __getattr__(name: str) -> object:
    """Load what draws only when it is asked for, so that matplotlib is not imported before."""
    if name == "plots":
        import importlib

        return importlib.import_module(f"{__name__}.plots")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
