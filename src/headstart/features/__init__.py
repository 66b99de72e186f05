"""Rows become numbers: encoders, weights, the extractor, the feature cache and its stores."""
