"""The rows of the embeddings themselves: which were never trained."""

from .indicators import embedding_indicators

__all__ = ["embedding_indicators"]
