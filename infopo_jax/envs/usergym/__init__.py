"""Gyms of UserRL's kind (arXiv 2509.19736): its eight by an adapter, and seven that need no language model.

envs.make('usergym', gym='intention', level=2)                                  # ours, generated from seeds
envs.make('usergym', gym='FunctionGym', data='UserRL/data/function_multiturn')  # UserRL's package
"""

from infopo_jax.envs.usergym.env import UserGym

__all__ = ['UserGym']
