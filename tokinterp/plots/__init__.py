"""Results as figures: each function takes a Dataset and returns the matplotlib Axes that it drew on.

Nothing here computes more than means and intervals over prompts (`tokinterp.summary`); nothing changes matplotlib's
settings.  Without ``ax=`` a function makes a figure of its own, 3.4 inches wide, with 8 pt type; with ``ax=`` it draws
under the settings in force (``with plots.paper_style():`` puts those of the package in force).
"""

from .attention import attention_by_block, head_map, sink_by_position
from .augmentation import augmentation_by_layer
from .correlation import correlation_by_layer
from .cosine import angle_histogram, cosine_by_layer, smoothness_by_layer
from .curvature import curvature_by_layer
from .dimension import dimension_by_layer, dimension_by_scale, local_dimension_map
from .entropy import entropy_by_layer
from .erasure import erasure_map, precision_recall, psi_distribution
from .erasure_html import erasure_html
from .fillers import evidence, insertion_curves, intervals
from .fillers_dots import (
    dot_ablation,
    dot_attention_by_block,
    dot_probe_map,
    dot_probes_by_layer,
    dots_by_layer,
    slot_effects,
)
from .fillers_text import cell_likeness, coverage_by_block, explained_by_source, hidden_in_windows
from .fillers_training import accuracy_by_size, learning_curve, probe_curve, stratum_accuracy
from .graph import graph_by_layer
from .imbalance import imbalance_by_layer, imbalance_plane
from .inner_lexicon import canonicity_by_layer, piece_attention, retrieval_by_layer, word_accuracy
from .layers import by_layer
from .lens import lens_by_layer, lens_table
from .linearity import linearity_by_block
from .logit_dimension import dimension_of_prompts
from .nonlinearity import nonlinearity_map
from .norms import magnitudes_by_layer, norms_by_layer
from .overlap import label_overlap_by_layer, overlap_by_layer
from .overviews import overview
from .pairs import layer_pairs
from .probes import probe_accuracy
from .profiles import profile
from .similarity import similarity_map
from .sinks import first_token_map
from .spectrum import eigenvalues, spectrum_by_layer
from .style import COLOURS, figure, panel_letters, paper_style, save
from .tokens import token_layer_map, tokens_of

__all__ = [
    "COLOURS",
    "accuracy_by_size",
    "angle_histogram",
    "attention_by_block",
    "augmentation_by_layer",
    "by_layer",
    "canonicity_by_layer",
    "cell_likeness",
    "correlation_by_layer",
    "cosine_by_layer",
    "coverage_by_block",
    "curvature_by_layer",
    "dimension_by_layer",
    "dimension_by_scale",
    "dimension_of_prompts",
    "dot_ablation",
    "dot_attention_by_block",
    "dot_probe_map",
    "dot_probes_by_layer",
    "dots_by_layer",
    "eigenvalues",
    "entropy_by_layer",
    "erasure_html",
    "erasure_map",
    "evidence",
    "explained_by_source",
    "figure",
    "first_token_map",
    "graph_by_layer",
    "head_map",
    "hidden_in_windows",
    "imbalance_by_layer",
    "imbalance_plane",
    "insertion_curves",
    "intervals",
    "label_overlap_by_layer",
    "layer_pairs",
    "learning_curve",
    "lens_by_layer",
    "lens_table",
    "linearity_by_block",
    "local_dimension_map",
    "magnitudes_by_layer",
    "nonlinearity_map",
    "norms_by_layer",
    "overlap_by_layer",
    "overview",
    "panel_letters",
    "paper_style",
    "piece_attention",
    "precision_recall",
    "probe_accuracy",
    "probe_curve",
    "profile",
    "psi_distribution",
    "retrieval_by_layer",
    "save",
    "similarity_map",
    "sink_by_position",
    "slot_effects",
    "smoothness_by_layer",
    "spectrum_by_layer",
    "stratum_accuracy",
    "token_layer_map",
    "tokens_of",
    "word_accuracy",
]
