"""Hydra launcher `slots`: several jobs of a sweep at once, each a process of its own on a GPU of its own."""
