"""How good a model is: metrics, intervals, slices, saliency (the evaluate stage)."""
