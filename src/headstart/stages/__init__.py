"""One thin module a DVC stage: load params, read, one call, write. Nothing imports these."""
