"""What every room may use, and which knows of none of them: errors, files, paths, progress."""
