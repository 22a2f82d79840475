"""Provides the classification methods, one file per method."""
