"""The inner lexicon (Kaplan et al. 2025): are words cut into several tokens put together again inside the model?"""

from .cases import Cases, natural_cases, split_cases, typo_cases
from .letters import spelling_probe, word_tokens
from .patchscopes import Target, patchscope
from .piece_attention import PieceAttention
from .retrieval import canonicity, repeat_words, retrieve_words
from .word_ends import word_probe, words_and_nonwords
from .words import Lexicon

__all__ = [
    "Cases",
    "Lexicon",
    "PieceAttention",
    "Target",
    "canonicity",
    "natural_cases",
    "patchscope",
    "repeat_words",
    "retrieve_words",
    "spelling_probe",
    "split_cases",
    "typo_cases",
    "word_probe",
    "word_tokens",
    "words_and_nonwords",
]
