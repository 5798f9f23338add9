"""The rows of the embeddings themselves: which were never trained, and what words and concepts they make up."""

from .concept_scores import ConceptScores
from .concepts import token_concepts
from .features import token_features
from .frames import whitened_unembedding, word_frames
from .glitch import repeat_templates, repeat_tokens
from .guided import guided_decoding
from .indicators import embedding_indicators

__all__ = [
    "ConceptScores",
    "embedding_indicators",
    "guided_decoding",
    "repeat_templates",
    "repeat_tokens",
    "token_concepts",
    "token_features",
    "whitened_unembedding",
    "word_frames",
]
