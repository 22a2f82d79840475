"""Hydra launcher `slots`: runs several jobs of a sweep in parallel, each in its own process on its own GPU."""
