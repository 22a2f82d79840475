"""Provides the sources of synthetic images."""
