"""The small parts that blocks are made of."""

import jax
import jax.numpy as jnp
from flax import nnx

from infopo_jax.lm.config import LMConfig
from infopo_jax.lm.lora import Adapter


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
    """Bounds x to (-cap, cap) by cap * tanh(x / cap) (Gemma 2, arXiv 2408.00118, section 2); None leaves it alone."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def activate(x: jax.Array, config: LMConfig) -> jax.Array:
    """Applies the gate's activation."""
    return nnx.silu(x) if config.activation == 'silu' else nnx.gelu(x, approximate=True)


class RMSNorm(nnx.Module):
    """Scales to unit root mean square (arXiv 1910.07467), computed in float32."""

    def __init__(self, dim: int, config: LMConfig):
        self.offset = 1.0 if config.norm_plus_one else 0.0
        self.scale = nnx.Param(jnp.full((dim,), 1.0 - self.offset, config.param_dtype))
        self.eps = config.norm_eps

    def __call__(self, x):
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        scale = self.scale[...].astype(jnp.float32)
        return (wide * (scale + self.offset if self.offset else scale)).astype(x.dtype)


class Linear(nnx.Module):
    """y = x @ kernel + bias, computed in x's dtype; plus the adapter's term where the config has a LoRA rank."""

    def __init__(self, num_in: int, num_out: int, config: LMConfig, *, bias: bool = False, scale: float = 1.0, rngs):
        key = rngs.params()
        init = jax.random.normal(key, (num_in, num_out), config.param_dtype)
        self.kernel = nnx.Param(init * (scale * num_in**-0.5))
        self.bias = nnx.Param(jnp.zeros((num_out,), config.param_dtype)) if bias else None
        self.adapter = Adapter(num_in, num_out, config, jax.random.fold_in(key, 1)) if config.lora_rank else None

    def __call__(self, x):
        y = x @ self.kernel[...].astype(x.dtype)
        y = y if self.adapter is None else y + self.adapter(x)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)
