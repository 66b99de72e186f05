"""Anything a user has becomes class folders (the fetch stage)."""
