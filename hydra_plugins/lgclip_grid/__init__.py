"""Hydra sweeper for grids: Hydra's basic sweeper, which checks the jobs of a large grid in the time of one."""
