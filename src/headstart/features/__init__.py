"""Rows become numbers: backbones, weights, the extractor, the feature cache and its stores."""
