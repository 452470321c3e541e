"""WebShop: an embedded small shop (``env.py``), and an adapter to the real one (``server.py``)."""

from infopo_jax.envs.webshop.env import WebShop
from infopo_jax.envs.webshop.server import WebShopServer

__all__ = ['WebShop', 'WebShopServer']
