"""The geometry of token clouds: dimension, neighbours, directions, spectra, paths, and layers compared."""

from ..settings.libraries import on_touch
from .augmentation import augmentation_metrics, compare_models
from .corpus.dimension import corpus_dimension
from .corpus.neighbours import corpus_cloud, corpus_neighbours
from .corpus.overlap import corpus_imbalance, corpus_overlap
from .cosine import CosineSimilarity
from .curvature import Curvature
from .dimension import IntrinsicDimension
from .entropy import MatrixEntropy, diff_erank
from .graph import NeighbourGraph
from .imbalance import InformationImbalance
from .logit_dimension import LogitDimension
from .loss import dimension_loss_correlation, prompt_covariates
from .norms import TokenNorms
from .overlap import NeighbourOverlap
from .per_cloud import PerCloud, cluster_count, homology_dimension
from .pooled import PooledStates
from .published import airi_twonn, skean2025_entropy, skean2025_frobenius
from .similarity import LayerSimilarity
from .spectrum import Spectrum
from .valley import CompressionValley

__all__ = [
    "CompressionValley",
    "CosineSimilarity",
    "Curvature",
    "InformationImbalance",
    "IntrinsicDimension",
    "LayerSimilarity",
    "LogitDimension",
    "MatrixEntropy",
    "NeighbourGraph",
    "NeighbourOverlap",
    "PerCloud",
    "PooledStates",
    "Spectrum",
    "TokenNorms",
    "airi_twonn",
    "augmentation_metrics",
    "cluster_count",
    "compare_models",
    "corpus_cloud",
    "corpus_dimension",
    "corpus_imbalance",
    "corpus_neighbours",
    "corpus_overlap",
    "diff_erank",
    "dimension_loss_correlation",
    "homology_dimension",
    "prompt_covariates",
    "skean2025_entropy",
    "skean2025_frobenius",
]

__getattr__ = on_touch(__name__, "plots")
