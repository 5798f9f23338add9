"""Pieces of experiments: published numbers, units without a tagger, the view of a model that some papers have."""
