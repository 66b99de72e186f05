"""What is trained on features: configs of heads, their training, folds, metrics."""
