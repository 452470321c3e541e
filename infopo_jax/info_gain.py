"""From per-token log-ratios to one information gain per turn."""

import jax.numpy as jnp

from infopo_jax.types import Array, check_shape


def turn_sum(x: Array, turn: Array, mask: Array, *, num_turns: int) -> Array:
    """Sums per-token values by turn.

        sum[..., t] = sum over i with mask[i] and turn[i] == t of x[..., i]

    One fused compare-and-reduce: neither a scatter (whose order of additions an accelerator may change from run to run)
    nor a one-hot product (which a TPU would round to bfloat16), and no [..., L, T] array is kept under jit.

    Args:
        x: [..., L] values; entries outside the mask may hold anything, NaN included.
        turn: [..., L] int32, turn of each token; turns outside [0, num_turns) are dropped.
        mask: [..., L] bool, True at tokens that count.
        num_turns: T, static.

    Returns:
        [..., T], dtype of x.
    """
    hit = (turn[..., None] == jnp.arange(num_turns)) & mask[..., None]
    return jnp.sum(jnp.where(hit, x[..., None], 0), axis=-2)


def info_gain(
    token_gain: Array, turn: Array, action_mask: Array, feedback_mask: Array, *, num_turns: int
) -> tuple[Array, Array]:
    """Averages token gains into the information gain of each turn, credited to the action that drew the feedback out.

        gain[n, t] = mean over h in 1..H with a_{t+h} present of
                     mean over tokens i of a_{t+h} of token_gain[n, h-1, i]

    where token_gain[n, h-1, i] = log p(x_i | ..., o_t, ...) - log p(x_i | ..., placeholder, ...) for a token of action
    a_{t+h} when only o_t is masked (t = turn[i] - h), or the exact KL of the two next-token distributions there. H = 1
    is InfoPO, https://arxiv.org/abs/2603.00656. Worked example, H = 1, one row of two turns::

        role        P  A  A  F  F  A  A  A      gain      = [(3 + 1 + 2) / 3, 0]
        turn       -1  0  0  0  0  1  1  1      gain_mask = [True, False]: nothing follows a_1
        token_gain  .  .  .  .  .  3  1  2      (entries marked . are never read)

    Args:
        token_gain: [N, H, L] float, nats; read only at tokens of a_{t+h}, so other entries may hold anything.
        turn: [N, L] int32, turn of each token.
        action_mask: [N, L] bool, True at the agent's own tokens.
        feedback_mask: [N, L] bool, True at feedback tokens that may earn a gain; the caller takes out feedback that
            marks an error and rows that are invalid.
        num_turns: T, static.

    Returns:
        gain [N, T] float, nats per token, exactly 0 where gain_mask is False; gain_mask [N, T] bool, True where turn t
        has feedback and at least one of a_{t+1}..a_{t+H} exists.

    Raises:
        ValueError: for a wrong rank, size or dtype.
    """
    check_shape('token_gain', token_gain, (None, None, None), 'f')
    num_rows, horizon, length = token_gain.shape
    check_shape('turn', turn, (num_rows, length), 'i')
    check_shape('action_mask', action_mask, (num_rows, length), 'b')
    check_shape('feedback_mask', feedback_mask, (num_rows, length), 'b')
    token_gain = token_gain.astype(jnp.promote_types(token_gain.dtype, jnp.float32))  # bfloat16 cannot count past 256
    ones = jnp.ones((num_rows, length), token_gain.dtype)
    sums = turn_sum(token_gain, turn[:, None], action_mask[:, None], num_turns=num_turns)
    counts = turn_sum(ones, turn, action_mask, num_turns=num_turns)
    action_mean = sums / jnp.maximum(counts, 1)[:, None]  # [N, H, T], 0 for actions that do not exist

    total = jnp.zeros((num_rows, num_turns), token_gain.dtype)
    num_later = jnp.zeros((num_rows, num_turns), jnp.int32)
    for h in range(1, min(horizon, num_turns - 1) + 1):
        # a_{t+h} stands at index t + h; pulling it back to t leaves the last h turns without it.
        total = total.at[:, :-h].add(action_mean[:, h - 1, h:])
        num_later = num_later.at[:, :-h].add((counts[:, h:] > 0).astype(jnp.int32))
    has_feedback = turn_sum(ones, turn, feedback_mask, num_turns=num_turns) > 0
    gain_mask = has_feedback & (num_later > 0)
    return jnp.where(gain_mask, total / jnp.maximum(num_later, 1), 0), gain_mask
