"""The tokens of a whole corpus as one cloud at each layer."""
