"""A project of one's own around the installed package, and a folder's first run."""
