"""The language-model head at gathered targets, in chunks: logits of a whole batch never exist."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from infopo_jax.lm import layers
from infopo_jax.types import pytree_dataclass

CHUNK_BYTES = 1 << 30  # of logits that a device holds at once, of all models together
CPU_CHUNK_BYTES = 8 << 20  # likewise: what fits a core's cache is up to twice as fast as what does not
MIN_ROWS = 64  # targets of a chunk: it reads the vocabulary, and adds to its gradient, as if they were so many at least


@pytree_dataclass
class TargetStats:
    """Statistics of next-token distributions at targets; all float32."""

    logp: jax.Array  # [N, A] log-probability of the target
    entropy: jax.Array  # [N, A] of the distribution, nats
    other_logp: tuple[jax.Array, ...]  # [N, A] each, the target under the other distributions
    kl: tuple[jax.Array, ...]  # [N, A] each, exact KL(this || other) over the vocabulary, nats


def target_stats(
    hidden: jax.Array,
    kernel: jax.Array,
    targets: jax.Array,
    *,
    others: Sequence[tuple[jax.Array, jax.Array]] = (),
    temperature: float = 1.0,
    soft_cap: float | None = None,
    chunk: int | None = None,
    shards: tuple[int, int] = (1, 1),
) -> TargetStats:
    """Evaluates softmax(soft_cap(hidden @ kernel.T) / temperature) at targets, beside others of the same tokens.

    Args:
        hidden: [N, A, D] states that predict the targets.
        kernel: [V, D] float, vocabulary rows.
        targets: [N, A] int32 token ids.
        others: pairs of (hidden [N, A, D], kernel [V, D]) to compare with.
        temperature: divides the logits.
        soft_cap: bounds the logits first, of every distribution; ``LMConfig.final_soft_cap``.
        chunk: targets per row evaluated at once; None takes ``chunk_size``. The backward pass recomputes a chunk.
        shards: over how many devices rows and vocabulary are divided.
    """
    n, num_targets = targets.shape
    chunk = min(chunk or chunk_size(targets.shape, kernel.shape[0], 1 + len(others), shards=shards), num_targets)
    kernels = [kernel, *(k for _, k in others)]
    states = [hidden, *(h for h, _ in others)]

    def run(part):
        return _stats(part[0], kernels, part[1], temperature, soft_cap)

    if chunk == num_targets:
        return run((states, targets))
    pad = -num_targets % chunk

    def split(x):  # [N, A, ...] -> [A / chunk, N, chunk, ...]
        x = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(n, -1, chunk, *x.shape[2:]), 1, 0)

    out = jax.lax.map(jax.checkpoint(run), jax.tree.map(split, (states, targets)))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(n, -1)[:, :num_targets], out)


def chunk_size(
    shape: tuple[int, int],
    vocab_size: int,
    num_models: int,
    *,
    shards: tuple[int, int] = (1, 1),
    num_bytes: int | None = None,
) -> int:
    """Returns how many targets per row are evaluated at once: as many as fit, in chunks of about one size.

        4 * num_models * (N / shards[0]) * chunk * (V / shards[1]) <= num_bytes

    but never fewer than MIN_ROWS targets on a device, N / shards[0] * chunk.

    Args:
        shape: (N, A).
        vocab_size: V.
        num_models: distributions that are compared.
        shards: over how many devices rows and vocabulary are divided.
        num_bytes: of logits that a device may hold; None: CHUNK_BYTES, or CPU_CHUNK_BYTES where devices are CPUs.
    """
    if num_bytes is None:
        num_bytes = CPU_CHUNK_BYTES if jax.default_backend() == 'cpu' else CHUNK_BYTES
    num_targets = max(1, shape[1])
    rows, words = -(-shape[0] // shards[0]), -(-vocab_size // shards[1])
    most = max(num_bytes // (4 * num_models * rows * words), -(-MIN_ROWS // rows))
    return math.ceil(num_targets / math.ceil(num_targets / most))


def _stats(states, kernels, targets, temperature, soft_cap):
    logps, chosen = [], []
    for hidden, kernel in zip(states, kernels, strict=True):
        logits = jnp.einsum('nad,vd->nav', hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)
        logps.append(jax.nn.log_softmax(layers.soft_cap(logits, soft_cap) / temperature, axis=-1))
        is_target = jnp.arange(kernel.shape[0]) == targets[..., None]  # a fused select: no scatter in the backward pass
        chosen.append(jnp.sum(jnp.where(is_target, logps[-1], 0.0), axis=-1))
    prob = jnp.exp(logps[0])
    return TargetStats(
        logp=chosen[0],
        entropy=-jnp.sum(prob * logps[0], axis=-1),
        other_logp=tuple(chosen[1:]),
        kl=tuple(jnp.sum(prob * (logps[0] - other), axis=-1) for other in logps[1:]),
    )
