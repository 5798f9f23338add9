"""What a model answers: multiple choice, continuations, answers under edits, and texts without some of their words."""

from .answers import AnswerStates
from .choices import Item, multiple_choice, read_mmlu
from .decoded import continuations
from .loss import TokenLoss
from .patching import patching_sweep
from .removal import removal_accuracy, surviving_loss
from .scoring import Answers

__all__ = [
    "AnswerStates",
    "Answers",
    "Item",
    "TokenLoss",
    "continuations",
    "multiple_choice",
    "patching_sweep",
    "read_mmlu",
    "removal_accuracy",
    "surviving_loss",
]
