"""What can be known of tokens without running a model; what runs one is loaded, with torch, when first touched."""

from importlib import import_module
from typing import TYPE_CHECKING

from .categories import token_categories
from .compounds import compound_splits, decompounding_scores
from .corpora import Corpus, flores
from .inference import segment_words
from .markov import MarkovSource, token_unigram_loss
from .metrics import tokenizer_metrics
from .mixture import infer_mixture
from .morphology import boundary_scores, chunkability, derivational_coverage
from .overview import tokenizer_overview
from .reachability import token_reachability

if TYPE_CHECKING:
    from .bytes import byte_probabilities, next_bytes, sample_bytes
    from .segmentation import agreement, resegment, segmentations
    from .segmentation_axis import class_axis

WITH_MODELS = {
    **dict.fromkeys(("byte_probabilities", "next_bytes", "sample_bytes"), "bytes"),
    **dict.fromkeys(("agreement", "resegment", "segmentations"), "segmentation"), "class_axis": "segmentation_axis",
}  # fmt: skip

__all__ = [
    "Corpus",
    "MarkovSource",
    "agreement",
    "boundary_scores",
    "byte_probabilities",
    "chunkability",
    "class_axis",
    "compound_splits",
    "decompounding_scores",
    "derivational_coverage",
    "flores",
    "infer_mixture",
    "next_bytes",
    "resegment",
    "sample_bytes",
    "segment_words",
    "segmentations",
    "token_categories",
    "token_reachability",
    "token_unigram_loss",
    "tokenizer_metrics",
    "tokenizer_overview",
]


def __getattr__(name: str) -> object:
    if name in WITH_MODELS:
        return getattr(import_module(f".{WITH_MODELS[name]}", __package__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
