"""Provides data sets, one file per source."""
