"""What can be known of tokens without running a model."""

from .categories import token_categories
from .corpora import Corpus, flores
from .metrics import tokenizer_metrics
from .reachability import token_reachability

__all__ = ["Corpus", "flores", "token_categories", "token_reachability", "tokenizer_metrics"]
