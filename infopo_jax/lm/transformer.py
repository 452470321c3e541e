"""One Flax decoder whose same blocks prefill, decode and score."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from infopo_jax.lm import attention, cache as cache_lib
from infopo_jax.lm.config import LMConfig
from infopo_jax.types import Place

UNROLL = 4  # layers up to which a scan is unrolled: stacking residuals costs small models more than compiling

Attend = Callable  # (q, k, v) -> (out [N, S, num_heads, head_dim], whatever the caller wants kept)


class RMSNorm(nnx.Module):
    """Scales to unit root mean square (arXiv 1910.07467), computed in float32."""

    def __init__(self, dim: int, config: LMConfig):
        self.scale = nnx.Param(jnp.ones((dim,), config.param_dtype))
        self.eps = config.norm_eps

    def __call__(self, x):
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return (wide * self.scale[...].astype(jnp.float32)).astype(x.dtype)


class Linear(nnx.Module):
    """y = x @ kernel + bias, computed in x's dtype."""

    def __init__(self, num_in: int, num_out: int, config: LMConfig, *, bias: bool = False, scale: float = 1.0, rngs):
        init = jax.random.normal(rngs.params(), (num_in, num_out), config.param_dtype)
        self.kernel = nnx.Param(init * (scale * num_in**-0.5))
        self.bias = nnx.Param(jnp.zeros((num_out,), config.param_dtype)) if bias else None

    def __call__(self, x):
        y = x @ self.kernel[...].astype(x.dtype)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class Block(nnx.Module):
    """Pre-norm attention and SwiGLU; how a token attends is the caller's choice."""

    def __init__(self, config: LMConfig, rngs: nnx.Rngs):
        c = self.config = config
        depth = (2 * c.num_layers) ** -0.5  # keeps the residual stream's variance at initialisation
        self.attn_norm = RMSNorm(c.dim, c)
        self.q = Linear(c.dim, c.num_heads * c.head_dim, c, bias=c.qkv_bias, rngs=rngs)
        self.k = Linear(c.dim, c.num_kv_heads * c.head_dim, c, bias=c.qkv_bias, rngs=rngs)
        self.v = Linear(c.dim, c.num_kv_heads * c.head_dim, c, bias=c.qkv_bias, rngs=rngs)
        self.o = Linear(c.num_heads * c.head_dim, c.dim, c, rngs=rngs)
        # Output after value starts near the identity (mimetic initialisation, Trockman and Kolter, arXiv 2305.09828):
        # to attend to a token is to copy it, which small models otherwise take very long to find out.
        values = self.v.kernel[...].T.reshape(c.num_kv_heads, c.head_dim, c.dim)
        self.o.kernel[...] = jnp.repeat(values, c.num_heads // c.num_kv_heads, axis=0).reshape(-1, c.dim)
        self.q_norm = RMSNorm(c.head_dim, c) if c.qk_norm else None
        self.k_norm = RMSNorm(c.head_dim, c) if c.qk_norm else None
        self.mlp_norm = RMSNorm(c.dim, c)
        self.gate = Linear(c.dim, c.mlp_dim, c, rngs=rngs)
        self.up = Linear(c.dim, c.mlp_dim, c, rngs=rngs)
        self.down = Linear(c.mlp_dim, c.dim, c, scale=depth, rngs=rngs)

    def __call__(self, x: jax.Array, rope: tuple[jax.Array, jax.Array], attend: Attend):
        """Returns the new x [N, S, dim] and whatever ``attend`` kept."""
        c = self.config
        h = self.attn_norm(x)
        q, k, v = (f(h).reshape(*h.shape[:2], -1, c.head_dim) for f in (self.q, self.k, self.v))
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        out, kept = attend(attention.apply_rope(q, rope), attention.apply_rope(k, rope), v)
        x = x + self.o(out.reshape(*x.shape[:2], -1))
        h = self.mlp_norm(x)
        return x + self.down(nnx.silu(self.gate(h)) * self.up(h)), kept


class Transformer(nnx.Module):
    """A decoder-only language model; its blocks are one module whose parameters carry a leading layer axis.

    Used functionally: ``graphdef, params = nnx.split(model)`` once, ``nnx.merge(graphdef, params)`` inside jit.
    """

    def __init__(self, config: LMConfig, rngs: nnx.Rngs):
        self.config = config
        shape = (config.vocab_size, config.dim)
        self.embed = nnx.Param(jax.random.normal(rngs.params(), shape, config.param_dtype) * config.dim**-0.5)
        make = nnx.split_rngs(splits=config.num_layers)(nnx.vmap(Block, in_axes=(None, 0), out_axes=0))
        self.blocks = make(config, rngs)
        self.final_norm = RMSNorm(config.dim, config)
        if not config.tie_embeddings:
            self.head = nnx.Param(jax.random.normal(rngs.params(), shape, config.param_dtype) * config.dim**-0.5)

    def __call__(self, tokens: jax.Array, real_mask: jax.Array | None = None) -> jax.Array:
        """Returns next-token logits [N, L, V] float32 of tokens [N, L]; for small sizes and checks.

        Args:
            tokens: [N, L] int32.
            real_mask: [N, L] bool, False at padding on either side; None: all are real.
        """
        mask = jnp.ones(tokens.shape, bool) if real_mask is None else real_mask
        return self.logits(self.trunk(tokens, attention.trunk_place(mask)))

    @property
    def vocab_kernel(self) -> jax.Array:
        """[V, dim], rows that score the next token."""
        return (self.embed if self.config.tie_embeddings else self.head)[...]

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Returns logits [..., V] float32 of hidden [..., dim]."""
        kernel = self.vocab_kernel.astype(hidden.dtype)
        return jnp.einsum('...d,vd->...v', hidden, kernel, preferred_element_type=jnp.float32)

    def trunk(self, tokens: jax.Array, place: Place) -> jax.Array:
        """Returns final hidden states [N, L, dim] of plain rows, with gradient."""
        hidden, _ = self._scan(tokens, place, None, None, None)
        return hidden

    def paired(self, tokens: jax.Array, place: Place, branch_tokens: jax.Array, branch_place: Place, *, visible):
        """Runs trunk and branches side by side; branches read the trunk's keys and values and get no gradient.

        Args:
            tokens: [N, L] int32.
            place: [N, L] of the trunk.
            branch_tokens: [N, B] int32.
            branch_place: [N, B] of the branches.
            visible: the rule for branch queries over trunk and branch keys, ``packing.visible``.

        Returns:
            hidden states [N, L, dim] of the trunk and [N, B, dim] of the branches.
        """
        return self._scan(tokens, place, branch_tokens, branch_place, visible)

    def extend(self, tokens: jax.Array, position: jax.Array, cache: cache_lib.Cache, start: jax.Array):
        """Feeds new tokens behind what the cache holds: a prompt, feedback, or one sampled token.

        Args:
            tokens: [N, C] int32.
            position: [N, C] int32 positions; -1 marks tokens that are not there.
            cache: what was fed before.
            start: [] or [N] int32, the column of the first new token; see ``cache.append``.

        Returns:
            hidden states [N, C, dim] and the new cache.
        """
        c = self.config
        columns = cache_lib.append(cache.position, position, start)
        query, key = cache_lib.key_place(position), cache_lib.key_place(columns)
        rope = attention.rope_tables(position, c)
        graphdef, layers = nnx.split(self.blocks)
        x, ks, vs = self._embed(tokens), [], []
        for i in range(c.num_layers):  # unrolled: a scan would copy the whole cache through every step

            def attend(q, k, v, i=i):
                k = cache_lib.append(cache.k[i], k, start)
                v = cache_lib.append(cache.v[i], v, start)
                out = attention.attend(q, k.astype(q.dtype), v.astype(q.dtype), query, key, window=c.sliding_window)
                return out, (k, v)

            block = nnx.merge(graphdef, jax.tree.map(lambda a, i=i: a[i], layers))
            x, (k, v) = block(x, rope, attend)
            ks.append(k)
            vs.append(v)
        return self.final_norm(x), cache_lib.Cache(k=tuple(ks), v=tuple(vs), position=columns)

    def _embed(self, tokens):
        return self.embed[...].astype(self.config.dtype)[tokens]

    def _scan(self, tokens, place, branch_tokens, branch_place, visible):
        c = self.config
        graphdef, layers = nnx.split(self.blocks)
        rope = attention.rope_tables(place.position, c)
        paired = branch_tokens is not None
        if paired:
            branch_rope = attention.rope_tables(branch_place.position, c)
            keys = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), place, branch_place)
            blocks = attention.block_map(branch_place, keys, visible=visible)

        def trunk_attend(q, k, v):
            return attention.attend(q, k, v, place, place, window=c.sliding_window, aligned=True), (k, v)

        def branch_attend(trunk_kv, q, *kv):
            k, v = (jnp.concatenate([a, b], axis=1) for a, b in zip(trunk_kv, kv, strict=True))
            rule = dict(visible=visible, window=c.sliding_window)
            if blocks is None:
                return attention.attend(q, k, v, branch_place, keys, **rule), None
            return attention.attend_sparse(q, k, v, blocks, **rule), None

        def body(carry, layer):
            x, branch = carry
            x, kv = nnx.merge(graphdef, layer)(x, rope, trunk_attend)
            if paired:
                frozen = nnx.merge(graphdef, jax.lax.stop_gradient(layer))
                attend = functools.partial(branch_attend, jax.lax.stop_gradient(kv))
                branch, _ = frozen(branch, branch_rope, attend)
                branch = jax.lax.stop_gradient(branch)
            return (x, branch), None

        if c.remat:
            body = jax.checkpoint(body)
        start = (self._embed(tokens), jax.lax.stop_gradient(self._embed(branch_tokens)) if paired else None)
        (x, branch), _ = jax.lax.scan(body, start, layers, unroll=c.num_layers <= UNROLL)
        if not paired:
            return self.final_norm(x), None
        return self.final_norm(x), jax.lax.stop_gradient(self.final_norm(branch))
