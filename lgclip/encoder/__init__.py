"""Provides vision encoders, with or without a text tower."""
