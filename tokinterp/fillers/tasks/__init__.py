"""Synthetic tasks (Pfau et al. 2024), the small networks that learn them with fillers, and what is in their fillers.

``Task`` gives examples of Match3 and Match2; ``train`` trains ``Network`` on them by a ``Schedule``; ``probe_fillers``,
``linear_probe``, ``read_dots``, ``probe_contents``, ``DotAttention`` and ``ablate_dots`` look at what is in the dots
and who reads it.
"""

from .dot_ablation import ablate_dots
from .dot_attention import DotAttention
from .dot_probes import probe_contents
from .dots import read_dots
from .linear_probes import linear_probe
from .network import Network
from .probe import probe_fillers
from .schedule import Schedule
from .task import Task
from .training import load_networks, train

__all__ = [
    "DotAttention",
    "Network",
    "Schedule",
    "Task",
    "ablate_dots",
    "linear_probe",
    "load_networks",
    "probe_contents",
    "probe_fillers",
    "read_dots",
    "train",
]
