"""A small customer-support world in the spirit of tau-bench (arXiv 2406.12045), with data and wording of its own."""

from infopo_jax.envs.retail.env import Retail

__all__ = ['Retail']
