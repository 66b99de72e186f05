"""The best head becomes a model: final fit, calibration, fine-tuning (the train stage)."""
