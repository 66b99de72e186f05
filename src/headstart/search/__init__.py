"""The Optuna study over heads: space, worker, results (the search stage)."""
