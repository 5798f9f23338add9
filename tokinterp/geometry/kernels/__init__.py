"""Tensors in, tensors out: the arithmetic of token clouds."""
