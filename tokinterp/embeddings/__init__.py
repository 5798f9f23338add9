"""The rows of the embeddings themselves: which were never trained."""

from .glitch import repeat_templates, repeat_tokens
from .indicators import embedding_indicators

__all__ = ["embedding_indicators", "repeat_templates", "repeat_tokens"]
