"""Low-rank adapters (LoRA, arXiv 2106.09685), of which alone a run with ``config.lora.rank`` trains.

    y = x @ kernel + (alpha / rank) * (x @ a) @ b

b starts at 0, so that the adapted model starts as its base. The base keeps its parameter tree: adapters are leaves of
their own below it (``blocks/q/adapter/a``), which ``split`` takes out and ``join`` puts back.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from infopo_jax.lm.config import LMConfig

NAME = 'adapter'  # of the node that holds a and b below a projection


class Adapter(nnx.Module):
    """The low-rank term of one projection; float32 whatever the base is kept in, for small updates must not vanish."""

    def __init__(self, num_in: int, num_out: int, config: LMConfig, key: jax.Array):
        bound = num_in**-0.5  # of a uniform draw, as in the peft library
        a = jax.random.uniform(key, (num_in, config.lora_rank), jnp.float32, -bound, bound)
        self.a = nnx.Param(a)
        self.b = nnx.Param(jnp.zeros((config.lora_rank, num_out), jnp.float32))
        self.scale = config.lora_alpha / config.lora_rank

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the term [..., num_out] that is added to x [..., num_in] @ kernel, in x's dtype."""
        return (x @ self.a[...].astype(x.dtype)) @ self.b[...].astype(x.dtype) * self.scale


def base_of(config: LMConfig) -> LMConfig:
    """Returns the architecture without adapters."""
    return dataclasses.replace(config, lora_rank=0, lora_alpha=LMConfig.lora_alpha)


def split(params: nnx.State) -> tuple[nnx.State, nnx.State]:
    """Returns the adapters and the base of a model's parameters."""
    adapters, base = [], []
    for path, leaf in nnx.to_flat_state(params):
        (adapters if NAME in path else base).append((path, leaf))
    return nnx.from_flat_state(adapters), nnx.from_flat_state(base)


def join(adapters: nnx.State, base: nnx.State) -> nnx.State:
    """Undoes ``split``."""
    return nnx.merge_state(base, adapters)


def merged(adapters: nnx.State, base: nnx.State, config: LMConfig) -> nnx.State:
    """Returns base parameters into whose kernels the adapters are added; in float32, then in the kernel's dtype.

    Args:
        adapters: as ``split`` gives them; leaves a [layers, num_in, rank] and b [layers, rank, num_out].
        base: kernels [layers, num_in, num_out] and the rest.
        config: with the adapters' rank and alpha.
    """
    low = dict(nnx.to_flat_state(adapters))
    scale, out = config.lora_alpha / config.lora_rank, []
    for path, leaf in nnx.to_flat_state(base):
        at = (*path[:-1], NAME)
        if path[-1] == 'kernel' and (*at, 'a') in low:
            kernel = leaf[...]
            term = scale * (low[*at, 'a'][...] @ low[*at, 'b'][...])
            leaf = leaf.replace((kernel.astype(jnp.float32) + term).astype(kernel.dtype))
        out.append((path, leaf))
    return nnx.from_flat_state(out)
