"""Frozen pre-trained encoders: catalogue, builders, weights, runtimes."""
