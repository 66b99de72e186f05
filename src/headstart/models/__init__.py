"""A head becomes a model that stands alone: assembly, fine-tuning, calibration, evaluation."""
