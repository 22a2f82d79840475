"""Provides the embedded default: a small procedural world and the recipes of its small models."""
