"""What a model answers: multiple choice, and texts from which words were deleted."""

from .choices import Item, multiple_choice, read_mmlu
from .removal import removal_accuracy, surviving_loss

__all__ = [
    "Item",
    "multiple_choice",
    "read_mmlu",
    "removal_accuracy",
    "surviving_loss",
]
