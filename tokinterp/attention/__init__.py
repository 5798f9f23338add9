"""Attention: mass on sets of tokens, sinks, what masks and separators and registers cost, who is massive."""

from ..settings.libraries import on_touch
from .coverage import SegmentCoverage
from .first_token import FirstTokenAttention
from .graph import route_graph
from .heads.concept_heads import copying_scores, induction_scores
from .heads.copies import Copies, copy_prompts
from .heads.detokenisation import detokenisation_scores
from .heads.head_ablation import head_ablation, without_heads, word_lists
from .heads.head_scores import read_head_scores, write_head_scores
from .masks import Policy, keep_only, policy_loss
from .mass import AttentionMass
from .massive import NormAttention, massive_effects, massive_roles
from .rank import AttentionRank
from .routes import InformationRoutes
from .sentinel import registers, sentinels
from .separators import segment_probe, separator_windows
from .set_norms import SetNorms
from .sinks import AttentionSinks

__all__ = [
    "AttentionMass",
    "AttentionRank",
    "AttentionSinks",
    "Copies",
    "FirstTokenAttention",
    "InformationRoutes",
    "NormAttention",
    "Policy",
    "SegmentCoverage",
    "SetNorms",
    "copy_prompts",
    "copying_scores",
    "detokenisation_scores",
    "head_ablation",
    "induction_scores",
    "keep_only",
    "massive_effects",
    "massive_roles",
    "policy_loss",
    "read_head_scores",
    "registers",
    "route_graph",
    "segment_probe",
    "sentinels",
    "separator_windows",
    "without_heads",
    "word_lists",
    "write_head_scores",
]

__getattr__ = on_touch(__name__, "plots")
