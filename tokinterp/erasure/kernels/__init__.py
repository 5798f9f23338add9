"""Tensors of erasure: scores of spans, and softmax probes."""
