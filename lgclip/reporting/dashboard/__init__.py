"""Writes the page that compares runs: one file, without network access."""
