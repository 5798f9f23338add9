"""Text in, numbered tokens out: prompts, token strings, spans, token classes, shuffles, bundled texts."""

from .augment import augment_prompts
from .bundled import (
    BundledText,
    Question,
    bundled_questions,
    bundled_spans,
    bundled_texts,
    check_texts,
)
from .chat import chat_texts
from .classes import STOP_WORDS, TokenClasses, token_classes
from .items import Items, build_items
from .marks import mark
from .prompts import Prompts
from .readers import Annotated, read_spans_jsonl, spacy_spans
from .readers.conll import read_conll, read_conllu, read_conllulex
from .readers.files import read_texts
from .readers.units import compound_spans, read_coam, read_compounds
from .readers.wordnet import read_wordnet
from .removal import CONDITIONS, Removal, find_units, remove, remove_random
from .shuffle import random_ids, shuffle_blocks, shuffle_words
from .spans import Spans, TokenSpans
from .vocabulary import Vocabulary
from .words import find_words

__all__ = [
    "CONDITIONS", "STOP_WORDS", "Annotated", "BundledText", "Items", "Prompts", "Question", "Removal", "Spans",
    "TokenClasses", "TokenSpans", "Vocabulary", "augment_prompts", "build_items", "bundled_questions", "bundled_spans",
    "bundled_texts", "chat_texts", "check_texts", "compound_spans", "find_units", "find_words", "mark", "random_ids",
    "read_coam", "read_compounds", "read_conll", "read_conllu", "read_conllulex", "read_spans_jsonl", "read_texts",
    "read_wordnet", "remove", "remove_random", "shuffle_blocks", "shuffle_words", "spacy_spans", "token_classes",
]  # fmt: skip
