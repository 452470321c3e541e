"""One Flax decoder whose same blocks prefill, decode and score."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from infopo_jax.lm import attention, cache as cache_lib, cached_attention
from infopo_jax.lm.config import LMConfig
from infopo_jax.lm.layers import Linear, RMSNorm, activate, soft_cap
from infopo_jax.lm.moe import MoE
from infopo_jax.types import Place

UNROLL = 4  # layers up to which a scan is unrolled: stacking residuals costs small models more than compiling
NO_WINDOW = 1 << 30  # further than any position, for layers without a window beside layers that have one

Attend = Callable  # (q, k, v) -> (out [N, S, num_heads, head_dim], whatever the caller wants kept)


class Block(nnx.Module):
    """Pre-norm attention and gated MLP, or experts; how a token attends is the caller's choice."""

    def __init__(self, config: LMConfig, rngs: nnx.Rngs):
        c = self.config = config
        depth = (2 * c.num_layers) ** -0.5  # keeps the residual stream's variance at initialisation
        self.attn_norm = RMSNorm(c.dim, c)
        self.q = Linear(c.dim, c.num_heads * c.head_dim, c, bias=c.qkv_bias, rngs=rngs)
        self.k = Linear(c.dim, c.num_kv_heads * c.head_dim, c, bias=c.qkv_bias, rngs=rngs)
        self.v = Linear(c.dim, c.num_kv_heads * c.head_dim, c, bias=c.qkv_bias, rngs=rngs)
        self.o = Linear(c.num_heads * c.head_dim, c.dim, c, bias=c.o_bias, rngs=rngs)
        # Output after value starts near the identity (mimetic initialisation, Trockman and Kolter, arXiv 2305.09828):
        # to attend to a token is to copy it, which small models otherwise take very long to find out.
        values = self.v.kernel[...].T.reshape(c.num_kv_heads, c.head_dim, c.dim)
        self.o.kernel[...] = jnp.repeat(values, c.num_heads // c.num_kv_heads, axis=0).reshape(-1, c.dim)
        self.q_norm = RMSNorm(c.head_dim, c) if c.qk_norm else None
        self.k_norm = RMSNorm(c.head_dim, c) if c.qk_norm else None
        self.mlp_norm = RMSNorm(c.dim, c)
        if c.num_experts:
            self.moe = MoE(c, rngs)
        else:
            self.gate = Linear(c.dim, c.mlp_dim, c, bias=c.mlp_bias, rngs=rngs)
            self.up = Linear(c.dim, c.mlp_dim, c, bias=c.mlp_bias, rngs=rngs)
            self.down = Linear(c.mlp_dim, c.dim, c, bias=c.mlp_bias, scale=depth, rngs=rngs)
        self.post_attn_norm = RMSNorm(c.dim, c) if c.post_norms else None
        self.post_mlp_norm = RMSNorm(c.dim, c) if c.post_norms else None

    def __call__(self, x: jax.Array, rope: tuple[jax.Array, jax.Array], attend: Attend):
        """Returns the new x [N, S, dim] and whatever ``attend`` kept."""
        c = self.config
        h = self.attn_norm(x)
        q, k, v = (f(h).reshape(*h.shape[:2], -1, c.head_dim) for f in (self.q, self.k, self.v))
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if c.query_scalar is not None:  # attention itself divides by sqrt(head_dim)
            q = q * (c.head_dim / c.query_scalar) ** 0.5
        out, kept = attend(attention.apply_rope(q, rope), attention.apply_rope(k, rope), v)
        out = self.o(out.reshape(*x.shape[:2], -1))
        x = x + (self.post_attn_norm(out) if c.post_norms else out)
        out = self._mlp(self.mlp_norm(x))
        return x + (self.post_mlp_norm(out) if c.post_norms else out), kept

    def _mlp(self, h):
        if self.config.num_experts:
            return self.moe(h)
        return self.down(activate(self.gate(h), self.config) * self.up(h))


class Transformer(nnx.Module):
    """A decoder-only language model; its blocks are one module whose parameters carry a leading layer axis.

    Used functionally: ``graphdef, params = nnx.split(model)`` once, ``nnx.merge(graphdef, params)`` inside jit.
    """

    gather: Callable | None = None  # on a mesh: brings the parameters of a layer together where it runs

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
        logits = jnp.einsum('...d,vd->...v', hidden, kernel, preferred_element_type=jnp.float32)
        return soft_cap(logits, self.config.final_soft_cap)

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

    def extend(
        self,
        tokens: jax.Array,
        position: jax.Array,
        cache: cache_lib.Cache,
        start: jax.Array,
        ropes: Any = None,
    ):
        """Feeds new tokens behind what the cache holds: a prompt, feedback, or one sampled token.

        Args:
            tokens: [N, C] int32.
            position: [N, C] int32 positions; -1 marks tokens that are not there.
            cache: what was fed before.
            start: [] or [N] int32, the column of the first new token; see ``cache.append``.
            ropes: ``rotary(position)``, where a loop has it for all its steps: XLA computes the sines again in every
                layer that uses them, which costs small models a tenth of a step.

        Returns:
            hidden states [N, C, dim] and the new cache.
        """
        columns = cache_lib.append(cache.position, position, start)
        ropes = self.rotary(position) if ropes is None else ropes
        x, kept = self._embed(tokens), []
        for i, block in enumerate(self.unstacked()):  # a scan would copy the whole cache through every step
            rope, rule = self._rule(self.config.slides(i), ropes)

            def attend(q, k, v, i=i, rule=rule):
                layer = cache.layer(i).append(k, v, start)
                below = () if cache.prefix is None else cache.prefix.parts(i)
                return cached_attention.attend(q, [*below, (layer, columns)], position, **rule), layer

            x, layer = block(x, rope, attend)
            kept.append(layer)
        return self.final_norm(x), cache_lib.of_layers(kept, columns, cache.prefix)

    def rotary(self, position: jax.Array):
        """Returns the rotary tables of positions [N, C]; a part of the columns is a part of the tables."""
        return self._ropes(position)

    def unstacked(self) -> list[Block]:
        """Returns a module per layer; the blocks of a model prepared for decoding are already that."""
        if isinstance(self.blocks, nnx.List):
            return list(self.blocks)
        graphdef, layers = nnx.split(self.blocks)
        return [nnx.merge(graphdef, jax.tree.map(lambda a, i=i: a[i], layers)) for i in range(self.config.num_layers)]

    def _embed(self, tokens):
        x = self.embed[...][tokens].astype(self.config.dtype)
        return x * jnp.asarray(self.config.dim**0.5, x.dtype) if self.config.scale_embed else x

    def _ropes(self, position):
        """Returns the rotary tables of layers without and with a sliding window."""
        full = attention.rope_tables(position, self.config)
        if self.config.rope_theta_local is None:
            return full, full
        return full, attention.rope_tables(position, self.config, local=True)

    def _rule(self, slides, ropes):
        """Returns one of ``_ropes`` and the arguments of attention of a layer; a traced ``slides`` selects by value."""
        full, local = ropes
        if isinstance(slides, bool):
            rope, window = (local, self.config.sliding_window) if slides else (full, None)
        else:
            rope = full if local is full else jax.tree.map(lambda a, b: jnp.where(slides, a, b), local, full)
            window = jnp.where(slides, self.config.sliding_window, NO_WINDOW)
        return rope, {'window': window, 'soft_cap': self.config.attn_soft_cap}

    def _scan(self, tokens, place, branch_tokens, branch_place, visible):
        c = self.config
        graphdef, layers = nnx.split(self.blocks)
        ropes = self._ropes(place.position)
        paired = branch_tokens is not None
        if paired:
            branch_ropes = self._ropes(branch_place.position)
            keys = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), place, branch_place)
            blocks = attention.block_map(branch_place, keys, visible=visible)

        def trunk_attend(rule, q, k, v):
            return attention.attend(q, k, v, place, place, aligned=True, **rule), (k, v)

        def branch_attend(rule, trunk_kv, q, *kv):
            k, v = (jnp.concatenate([a, b], axis=1) for a, b in zip(trunk_kv, kv, strict=True))
            if blocks is None:
                return attention.attend(q, k, v, branch_place, keys, visible=visible, **rule), None
            return attention.attend_sparse(q, k, v, blocks, visible=visible, **rule), None

        def body(carry, inputs):
            x, branch = carry
            layer, slides = inputs
            layer = layer if self.gather is None else self.gather(layer)
            slides = c.sliding_window is not None if slides is None else slides
            rope, rule = self._rule(slides, ropes)
            x, kv = nnx.merge(graphdef, layer)(x, rope, functools.partial(trunk_attend, rule))
            if paired:
                frozen = nnx.merge(graphdef, jax.lax.stop_gradient(layer))
                attend = functools.partial(branch_attend, rule, jax.lax.stop_gradient(kv))
                branch, _ = frozen(branch, self._rule(slides, branch_ropes)[0], attend)
                branch = jax.lax.stop_gradient(branch)
            return (x, branch), None

        if c.remat:
            body = jax.checkpoint(body)
        start = (self._embed(tokens), jax.lax.stop_gradient(self._embed(branch_tokens)) if paired else None)
        # Layers that differ in their window select by a scanned flag; where all are alike nothing is added.
        flags = None if c.sliding_layers is None else jnp.asarray(c.sliding_layers)
        (x, branch), _ = jax.lax.scan(body, start, (layers, flags), unroll=c.num_layers <= UNROLL)
        if not paired:
            return self.final_norm(x), None
        return self.final_norm(x), jax.lax.stop_gradient(self.final_norm(branch))
