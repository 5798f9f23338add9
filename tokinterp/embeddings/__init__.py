"""The rows of the embeddings themselves: which were never trained, and what words and concepts they make up."""

from .concepts import token_concepts
from .frames import whitened_unembedding, word_frames
from .glitch import repeat_templates, repeat_tokens
from .indicators import embedding_indicators

__all__ = [
    "embedding_indicators",
    "repeat_templates",
    "repeat_tokens",
    "token_concepts",
    "whitened_unembedding",
    "word_frames",
]
