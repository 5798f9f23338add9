"""Token erasure and the implicit vocabulary (Feucht et al. 2024): token probes, scores of spans, units of a corpus."""

from ..settings.libraries import on_touch
from .erasure import ErasureScores
from .evaluation import evaluate, psi_of_spans
from .evaluation_seeds import seed_agreement
from .future import future_tokens
from .probe_scores import ProbeScores, score_probes
from .probes import fit_probes
from .published import Feucht2024Scores, read_feucht2024
from .token_probes import TokenProbes
from .vocabulary import permutation_threshold, read_out

__all__ = [
    "ErasureScores",
    "Feucht2024Scores",
    "ProbeScores",
    "TokenProbes",
    "evaluate",
    "fit_probes",
    "future_tokens",
    "permutation_threshold",
    "psi_of_spans",
    "read_feucht2024",
    "read_out",
    "score_probes",
    "seed_agreement",
]

__getattr__ = on_touch(__name__, "plots")
