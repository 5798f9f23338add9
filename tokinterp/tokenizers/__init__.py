"""What can be known of tokens without running a model."""

from .categories import token_categories
from .reachability import token_reachability

__all__ = ["token_categories", "token_reachability"]
