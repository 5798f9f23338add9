"""What a model answers: multiple choice, continuations, answers under edits, and texts without some of their words."""

from .answers import AnswerStates
from .choices import Item, multiple_choice, read_mmlu
from .ciphers import Decipherment, cipher, cipher_conditions
from .cute import score_cute
from .cute_tasks import CuteItem, cute_items, cute_prompt, read_cute
from .decoded import continuations
from .loss import TokenLoss
from .patching import patching_sweep
from .recovery import half_life
from .removal import removal_accuracy, surviving_loss
from .repetition import Repetition, distance_conditions, repetition_conditions
from .scoring import Answers

__all__ = [
    "AnswerStates",
    "Answers",
    "CuteItem",
    "Decipherment",
    "Item",
    "Repetition",
    "TokenLoss",
    "cipher",
    "cipher_conditions",
    "continuations",
    "cute_items",
    "cute_prompt",
    "distance_conditions",
    "half_life",
    "multiple_choice",
    "patching_sweep",
    "read_cute",
    "read_mmlu",
    "removal_accuracy",
    "repetition_conditions",
    "score_cute",
    "surviving_loss",
]
