"""What is trained on features: configs of heads, the stack that trains many, folds, metrics."""
