"""Drawing the next token, with a key per row and position."""

import jax
import jax.numpy as jnp


def sample(keys: jax.Array, logits: jax.Array, *, temperature: float) -> tuple[jax.Array, jax.Array]:
    """Samples from softmax(logits / temperature), each row with its own key.

    A row's draw depends on its key alone, so the batch around it changes nothing.

    Args:
        keys: [N] typed keys.
        logits: [N, V] float.
        temperature: 0 is greedy; its log-probability is then under the plain softmax.

    Returns:
        token [N] int32 and its log-probability [N] float32 under the distribution that was sampled from.
    """
    scaled = logits.astype(jnp.float32) / (temperature if temperature > 0 else 1.0)
    if temperature > 0:
        token = jax.vmap(jax.random.categorical)(keys, scaled).astype(jnp.int32)
    else:
        token = jnp.argmax(scaled, axis=-1).astype(jnp.int32)
    chosen = jnp.take_along_axis(scaled, token[:, None], axis=-1)[:, 0]
    return token, chosen - jax.nn.logsumexp(scaled, axis=-1)
