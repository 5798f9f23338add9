"""Filler tokens in frozen models (after Pfau et al. 2024); `tokinterp.fillers.tasks`: networks trained with them.

Items (`tokinterp.text.build_items`) are questions with fillers in them.  Answers: ``insert``, ``insertion_tests``.
Causes: ``intervene``.  Stream: ``shift``, ``filler_states``, ``filler_probes``.  Read-out: ``read_fillers``,
``cell_clusters``.  Attention: ``routing``, and `tokinterp.attention.AttentionMass` with ``items.mark("filler")``.
``verdict`` says whether they are used.  Questions that take a step in between: ``equation_questions``,
``letter_questions``, ``fact_questions``, with ``cue=tokinterp.fillers.questions.CUE``.

Examples
--------
>>> import tokinterp as ti
>>> ti.fillers.verdict(ti.load_model(), ti.bundled_questions("cloze")[:6], n_fillers=4, n_boot=100).attrs["verdict"]
'not shown'
"""

from . import tasks
from .decision import verdict
from .insertion import insert, insertion_tests
from .interventions import intervene
from .questions import equation_questions, fact_questions, letter_questions
from .read_out import cell_clusters, read_fillers
from .residual import filler_probes, filler_states, shift
from .routes import routing

__all__ = [
    "cell_clusters",
    "equation_questions",
    "fact_questions",
    "filler_probes",
    "filler_states",
    "insert",
    "insertion_tests",
    "intervene",
    "letter_questions",
    "read_fillers",
    "routing",
    "shift",
    "tasks",
    "verdict",
]
