"""Files become rows: sources, decoding, the manifest, splits, duplicates, packed pixels."""
