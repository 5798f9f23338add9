"""Tensors in, tensors out: no labels, no files, nothing but torch."""
