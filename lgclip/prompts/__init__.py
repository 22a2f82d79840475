"""Provides prompt generators, one file per type."""
