"""Attention: mass on sets of tokens, sinks, what masks and separators and registers cost, who is massive."""

from ..settings.libraries import on_touch
from .coverage import SegmentCoverage
from .first_token import FirstTokenAttention
from .graph import route_graph
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
    "FirstTokenAttention",
    "InformationRoutes",
    "NormAttention",
    "Policy",
    "SegmentCoverage",
    "SetNorms",
    "keep_only",
    "massive_effects",
    "massive_roles",
    "policy_loss",
    "registers",
    "route_graph",
    "segment_probe",
    "sentinels",
    "separator_windows",
]

__getattr__ = on_touch(__name__, "plots")
