"""Filler tokens: synthetic tasks and networks trained on them, and fillers put into frozen models.

Trained networks (Pfau et al. 2024).  ``Task`` gives examples of Match3 and Match2; ``tokinterp.fillers.train.train``
trains ``Network`` on them by a ``Schedule``; ``probe_fillers``, ``linear_probe``, ``read_dots``, ``probe_contents``,
``DotAttention`` and ``ablate_dots`` look at what is in the dots and who reads it.

Frozen models.  ``build_items`` puts fillers into questions.  Answers: ``insert``, ``insertion_tests``.  Causes:
``intervene``.  Stream: ``shift``, ``filler_states``, ``filler_probes``.  Read-out: ``read_fillers``, ``cell_clusters``.
Attention: ``routing``, and ``tokinterp.AttentionMass`` with ``items.mark("filler")``.  ``verdict`` says whether they
are used.  In running text: ``segment_coverage``, ``segment_probe``, ``separator_windows`` (separators), ``policy_loss``
with ``Policy`` and ``keep_only`` (which keys may stay), ``sentinels``, ``massive_roles``, ``massive_effects``,
``registers``.

Examples
--------
>>> import tokinterp as ti
>>> from tokinterp.fillers import verdict
>>> verdict(ti.load_model(), ti.bundled_questions("cloze")[:6], n_fillers=4, n_boot=100).attrs["verdict"]
'not shown'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .contents import read_dots
    from .decision import verdict
    from .dot_ablation import ablate_dots
    from .dot_attention import DotAttention
    from .dot_probes import probe_contents
    from .insertion import insert, insertion_tests
    from .interventions import intervene
    from .items import Items, build_items
    from .massive import massive_effects, massive_roles, registers
    from .network import Network
    from .policies import Policy, keep_only, policy_loss
    from .probe import linear_probe, probe_fillers
    from .read_out import cell_clusters, read_fillers
    from .residual import filler_probes, filler_states, shift
    from .routes import routing
    from .schedule import Schedule
    from .sentinel import sentinels
    from .separators import segment_coverage, segment_probe, separator_windows
    from .tasks import Task

HOMES = {
    "contents": ("read_dots",),
    "decision": ("verdict",),
    "dot_ablation": ("ablate_dots",),
    "dot_attention": ("DotAttention",),
    "dot_probes": ("probe_contents",),
    "insertion": ("insert", "insertion_tests"),
    "interventions": ("intervene",),
    "items": ("Items", "build_items"),
    "massive": ("massive_effects", "massive_roles", "registers"),
    "network": ("Network",),
    "policies": ("Policy", "keep_only", "policy_loss"),
    "probe": ("linear_probe", "probe_fillers"),
    "read_out": ("cell_clusters", "read_fillers"),
    "residual": ("filler_probes", "filler_states", "shift"),
    "routes": ("routing",),
    "schedule": ("Schedule",),
    "sentinel": ("sentinels",),
    "separators": ("segment_coverage", "segment_probe", "separator_windows"),
    "tasks": ("Task",),
}
"""Module of each public name; loaded when it is asked for, so that the shell's help stays quick."""

__all__ = [
    "DotAttention", "Items", "Network", "Policy", "Schedule", "Task", "ablate_dots", "build_items", "cell_clusters",
    "filler_probes", "filler_states", "insert", "insertion_tests", "intervene", "keep_only", "linear_probe",
    "massive_effects", "massive_roles", "policy_loss", "probe_contents", "probe_fillers", "read_dots", "read_fillers",
    "registers", "routing", "segment_coverage", "segment_probe", "sentinels", "separator_windows", "shift", "verdict",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    for home, names in HOMES.items():
        if name in names:
            return getattr(import_module(f".{home}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
