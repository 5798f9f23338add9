"""Attention: mass on sets of tokens, sinks, what masks and separators and registers cost, who is massive."""

from .first_token import FirstTokenAttention
from .graph import route_graph
from .masks import Policy, keep_only, policy_loss
from .mass import AttentionMass
from .massive import massive_effects, massive_roles, registers
from .rank import AttentionRank
from .routes import InformationRoutes
from .sentinel import sentinels
from .separators import segment_coverage, segment_probe, separator_windows
from .set_norms import SetNorms
from .sinks import AttentionSinks

__all__ = [
    "AttentionMass",
    "AttentionRank",
    "AttentionSinks",
    "FirstTokenAttention",
    "InformationRoutes",
    "Policy",
    "SetNorms",
    "keep_only",
    "massive_effects",
    "massive_roles",
    "policy_loss",
    "registers",
    "route_graph",
    "segment_coverage",
    "segment_probe",
    "sentinels",
    "separator_windows",
]
