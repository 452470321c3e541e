"""A mixture of experts: every token goes through the few MLPs that its router prefers."""

import jax
import jax.numpy as jnp
from flax import nnx

from infopo_jax.lm.config import LMConfig
from infopo_jax.lm.layers import activate

DENSE_TOKENS = 64  # most tokens for which every expert is computed for every token
MIN_BLOCK = 8  # fewest rows in a block of one expert's tokens


class MoE(nnx.Module):
    """Top-k routing over gated MLPs (Qwen3-MoE, arXiv 2505.09388).

    weights = top_k(softmax(x @ router)), divided by their sum where ``norm_expert_weights``, and
    y = sum_j weights_j * down_j(activation(gate_j(x)) * up_j(x)). No token is dropped.
    """

    def __init__(self, config: LMConfig, rngs: nnx.Rngs):
        c = self.config = config
        depth = (2 * c.num_layers) ** -0.5  # as in the dense block

        def normal(*shape, scale=1.0):
            draw = jax.random.normal(rngs.params(), shape, c.param_dtype)
            return nnx.Param(draw * (scale * shape[-2] ** -0.5))

        self.router = normal(c.dim, c.num_experts)
        self.gate = normal(c.num_experts, c.dim, c.mlp_dim)
        self.up = normal(c.num_experts, c.dim, c.mlp_dim)
        self.down = normal(c.num_experts, c.mlp_dim, c.dim, scale=depth)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [..., dim] of x [..., dim]."""
        c, flat = self.config, x.reshape(-1, x.shape[-1])
        weights, experts = self._route(flat)
        # A few tokens that touch most experts are limited by reading the weights: reading each once, in place, is best.
        dense = flat.shape[0] <= DENSE_TOKENS and 2 * experts.size >= c.num_experts
        out = (self._dense if dense else self._grouped)(flat, weights, experts)
        return out.reshape(x.shape)

    def _route(self, x):
        """Returns weights [M, k] in x's dtype and experts [M, k] int32 of tokens x [M, dim]."""
        c = self.config
        logits = x @ self.router[...].astype(x.dtype)
        prob = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
        weights, experts = jax.lax.top_k(prob, c.experts_per_token)
        if c.norm_expert_weights:
            weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
        return weights.astype(x.dtype), experts

    def _kernels(self, dtype):
        return (p[...].astype(dtype) for p in (self.gate, self.up, self.down))

    def _dense(self, x, weights, experts):
        """Computes all experts of few tokens; the hidden layer is [E, M, mlp_dim] with M <= DENSE_TOKENS."""
        gate, up, down = self._kernels(x.dtype)
        chosen = jax.nn.one_hot(experts, self.config.num_experts, dtype=x.dtype)  # [M, k, E]
        share = jnp.einsum('mk,mke->em', weights, chosen)
        hidden = jnp.einsum('md,edf->emf', x, gate)
        hidden = activate(hidden, self.config) * jnp.einsum('md,edf->emf', x, up)
        return jnp.einsum('emf,efd->md', hidden * share[..., None], down)

    def _grouped(self, x, weights, experts):
        """Sorts (token, expert) pairs by expert into blocks of one expert each and runs one batched product per kernel.

        A block has about as many rows as an expert has tokens on average, so there are at most 2 E blocks: kernels are
        gathered per block at twice their size at most, and padding at most doubles the rows. jax.lax.ragged_dot would
        copy x for every expert where it has no kernel of its own (CPU, GPU by default).
        """
        num_experts, pairs = self.config.num_experts, experts.size
        block = max(MIN_BLOCK, 1 << (-(-pairs // num_experts) - 1).bit_length())
        num_blocks = (pairs + min(num_experts, pairs) * (block - 1)) // block
        order = jnp.argsort(experts.reshape(-1), stable=True)
        sorted_experts = experts.reshape(-1)[order]
        count = jnp.bincount(sorted_experts, length=num_experts)
        ends = jnp.cumsum(-(-count // block))  # of each expert, in blocks
        rank = jnp.arange(pairs) - (jnp.cumsum(count) - count)[sorted_experts]  # within the expert
        row = (ends - -(-count // block))[sorted_experts] * block + rank  # where a sorted pair stands in the blocks
        owner = jnp.minimum(jnp.searchsorted(ends, jnp.arange(num_blocks), side='right'), num_experts - 1)

        k = experts.shape[1]
        source = jnp.zeros((num_blocks * block,), order.dtype).at[row].set(order // k)  # unused rows compute token 0
        rows = x[source].reshape(num_blocks, block, -1)
        gate, up, down = (kernel[owner] for kernel in self._kernels(x.dtype))
        hidden = activate(jnp.einsum('bmd,bdf->bmf', rows, gate), self.config) * jnp.einsum('bmd,bdf->bmf', rows, up)
        out = jnp.einsum('bmf,bfd->bmd', hidden, down).reshape(num_blocks * block, -1)
        at = jnp.zeros((pairs,), row.dtype).at[order].set(row).reshape(experts.shape)  # of each pair
        return jnp.einsum('mk,mkd->md', weights, out[at])
