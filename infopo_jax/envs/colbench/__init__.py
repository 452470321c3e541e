"""Collaborative programming in the manner of ColBench (arXiv 2503.15478), on its data or on tasks of our own."""

from infopo_jax.envs.colbench.env import ColBench

__all__ = ['ColBench']
