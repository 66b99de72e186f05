"""Runs one can trust and compare: MLflow runs, their lineage from git and DVC, the registry."""
