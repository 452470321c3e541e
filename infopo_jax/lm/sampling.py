"""Drawing the next token, with a key per row and position, from the distribution that is recorded.

Training draws from the plain tempered softmax. Top-k, top-p and min-p are for evaluation: what they cut off has
probability 0, so that the policy's log-probability is not that of what was sampled.

No step sorts the vocabulary or draws a number per entry: a token costs two uniform numbers.
"""

import jax
import jax.numpy as jnp

BLOCK = 256  # vocabulary entries per block of the two-level draw
MOST_BITS = 0x7F7FFFFF  # bits of the largest finite float32: non-negative floats order as their bits do


def check(*, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> None:
    """Raises ValueError unless the settings of ``sample`` make sense; the message names the range."""
    if not 0 <= temperature < float('inf'):
        raise ValueError(f'temperature must be at least 0 (greedy) and finite, got {temperature}')
    if top_k < 0:
        raise ValueError(f'top_k must be at least 1, or 0 for all tokens, got {top_k}')
    if not 0 < top_p <= 1:
        raise ValueError(f'top_p must be above 0 and at most 1 (all tokens), got {top_p}')
    if not 0 <= min_p <= 1:
        raise ValueError(f'min_p must be in [0, 1], 0 for all tokens, got {min_p}')


def sample(
    keys: jax.Array, logits: jax.Array, *, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Samples from softmax(logits / temperature), or what truncation leaves of it, each row with its own key.

    A row's draw depends on its key alone, so the batch around it changes nothing.

    Args:
        keys: [N] typed keys.
        logits: [N, V] float.
        temperature: 0 is greedy; its log-probability is then under the plain softmax.
        top_k: keeps this many of the likeliest tokens, and those that tie with the last; 0 keeps all.
        top_p: keeps the fewest of the likeliest tokens whose probabilities add up to top_p (arXiv 1904.09751), and
            those that tie with the last; counted after top_k.
        min_p: keeps tokens at least min_p times as likely as the likeliest (arXiv 2407.01082).

    Returns:
        token [N] int32 and its log-probability [N] float32 under the distribution that was sampled from.
    """
    return draw(uniforms(keys), logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)


def uniforms(keys: jax.Array) -> jax.Array:
    """Returns the two numbers in [0, 1) per key, [..., 2], that ``draw`` takes."""
    flat = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys.reshape(-1))
    return flat.reshape(*keys.shape, 2)


def draw(
    uniform: jax.Array, logits: jax.Array, *, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Samples as ``sample`` does, by numbers [N, 2] that were drawn before."""
    scaled = logits.astype(jnp.float32) / (temperature if temperature > 0 else 1.0)
    top = jnp.max(scaled, axis=-1, keepdims=True)
    if temperature == 0:
        return _likeliest(scaled), -jnp.log(jnp.sum(jnp.exp(scaled - top), axis=-1))
    weight = truncate(jnp.exp(scaled - top), top_k=top_k, top_p=top_p, min_p=min_p)
    token, total = _choose(uniform, weight)
    chosen = jnp.take_along_axis(scaled, token[:, None], axis=-1)
    return token, (chosen - top)[:, 0] - jnp.log(total)


def truncate(weight: jax.Array, *, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> jax.Array:
    """Sets to 0 what top-k, top-p and min-p cut off from unnormalised probabilities [N, V], whose maximum is 1."""
    if 0 < top_k < weight.shape[-1]:
        weight = jnp.where(weight >= _threshold(weight, jnp.ones_like(weight), float(top_k)), weight, 0.0)
    if top_p < 1:
        goal = top_p * jnp.sum(weight, axis=-1, keepdims=True)
        weight = jnp.where(weight >= _threshold(weight, weight, goal), weight, 0.0)
    return jnp.where(weight >= min_p, weight, 0.0) if min_p > 0 else weight


def _threshold(value, amount, goal):
    """Returns the largest t [N, 1] for which the amounts of values >= t add up to the goal.

    Found bit by bit: 31 sums, where sorting 150,000 entries takes hundreds of passes.
    """

    def halve(_, bounds):
        low, high = bounds
        middle = low + (high - low + 1) // 2
        t = jax.lax.bitcast_convert_type(middle, jnp.float32)
        enough = jnp.sum(jnp.where(value >= t, amount, 0.0), axis=-1, keepdims=True) >= goal
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle - 1)

    shape = (*value.shape[:-1], 1)
    bounds = jnp.zeros(shape, jnp.int32), jnp.full(shape, MOST_BITS, jnp.int32)
    return jax.lax.bitcast_convert_type(jax.lax.fori_loop(0, 31, halve, bounds)[0], jnp.float32)


def _choose(uniform, weight):
    """Draws an index in proportion to weight [N, V]: a block of the vocabulary by one number, an entry by the other.

    Two levels keep float32 exact where one cumulative sum is not: after 150,000 terms its rounding, 1e-3 of the least
    likely blocks and all of a rare token's probability, would decide. An entry of weight 0 is never drawn.

    Returns:
        index [N] int32 and the sum of weights [N] float32.
    """
    blocks = _blocks(weight, 0.0)
    first, total = _first_above(uniform[:, 0], jnp.sum(blocks, axis=-1))
    second, _ = _first_above(uniform[:, 1], _of_row(blocks, first))
    return _index(blocks, first, second), total


def _likeliest(scaled):
    """Returns the argmax [N] of [N, V]; on CPU 5 times faster than argmax, which keeps an index beside each value."""
    blocks = _blocks(scaled, -jnp.inf)
    first = jnp.argmax(jnp.max(blocks, axis=-1), axis=-1)
    return _index(blocks, first, jnp.argmax(_of_row(blocks, first), axis=-1))


def _blocks(x, empty):
    """Returns [N, V] in blocks [N, V / BLOCK, BLOCK], the last one filled up."""
    block = min(BLOCK, x.shape[1])
    filled = jnp.pad(x, ((0, 0), (0, -x.shape[1] % block)), constant_values=empty)
    return filled.reshape(x.shape[0], -1, block)


def _of_row(blocks, first):
    return jnp.take_along_axis(blocks, first[:, None, None], axis=1)[:, 0]


def _index(blocks, first, second):
    return (first * blocks.shape[2] + second).astype(jnp.int32)


def _first_above(uniform, weight):
    """Returns the first index [N] whose cumulative weight exceeds uniform * total, and the total."""
    up_to = jnp.cumsum(weight, axis=-1)
    total = up_to[:, -1]
    # A cumulative sum in floating point need not grow at every entry, nor be monotone: an entry of weight 0 is skipped.
    found = (up_to > (uniform * total)[:, None]) & (weight > 0)
    return jnp.where(jnp.any(found, axis=-1), _first(found), jnp.argmax(weight, axis=-1)), total


def _first(mask):
    """Returns the first index [N] at which mask [N, V] holds, V where none does."""
    return jnp.min(jnp.where(mask, jnp.arange(mask.shape[-1]), mask.shape[-1]), axis=-1)
