"""Defines the error of a store that cannot be used."""


class StoreError(ValueError):
    """Reports that the store cannot be used in its present state; the message says how to fix it."""
