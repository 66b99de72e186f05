"""The row cache: rows by content key under a recipe."""
