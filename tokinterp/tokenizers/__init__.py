"""What can be known of tokens without running a model."""

from .bytes import byte_probabilities, next_bytes, sample_bytes
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
from .segmentation import agreement, resegment, segmentations
from .segmentation_axis import class_axis

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
