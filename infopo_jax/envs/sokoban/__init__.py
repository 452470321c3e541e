"""Sokoban by RAGEN's rules: 6x6, one box; inside XLA (``env.py``) and as text (``text.py``)."""

from infopo_jax.envs.sokoban.env import Sokoban
from infopo_jax.envs.sokoban.text import SokobanText

__all__ = ['Sokoban', 'SokobanText']
