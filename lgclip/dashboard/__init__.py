"""The page that compares runs: one file, no network."""
