"""Files become a manifest: statistics, issues, duplicates, groups, splits (the ingest stage)."""
