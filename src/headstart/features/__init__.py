"""Manifest rows → features.h5: only what the cache lacks is computed (the extract stage)."""
