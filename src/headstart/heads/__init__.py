"""Numbers become the best head: its configuration, the space, the stack, the search."""
