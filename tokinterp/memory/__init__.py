"""What of the text before a token its states still hold (Razzhigaev et al. 2025)."""

from .context import ContextMemory
from .recall import PrefixRecall
from .topic import topic_probe
from .training import fit_context_decoder

__all__ = [
    "ContextMemory",
    "PrefixRecall",
    "fit_context_decoder",
    "topic_probe",
]
