"""The inner lexicon: are words that are cut into several tokens put together again inside the model?"""

from .cases import Cases, natural_cases, split_cases, typo_cases
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
    "split_cases",
    "typo_cases",
    "word_probe",
    "words_and_nonwords",
]
