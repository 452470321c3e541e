"""From outcomes and information gains to advantages: statistics inside a group of rollouts of one prompt.

Row n belongs to group n // group_size. Every function is pure and works on [N] or [N, T]; invalid rows enter no
statistic and get 0. Values are centred after the group's first valid value is taken off, so that ties give exactly 0.0:
the float32 mean of eight times 10.7 is not 10.7, and (x - mean) / (std + 1e-6) would be 0.47 on every row.
"""

import jax
import jax.numpy as jnp

from infopo_jax.types import Array, check_shape

EPSILON = 1e-6
BASELINES = ('group', 'turn', 'none')


def centre(x: Array, mask: Array, *, axis: int, weight: Array | None = None) -> Array:
    """Subtracts the masked, weighted mean along one axis; equal values give exactly 0.

    Args:
        x: values; entries outside the mask may hold anything, NaN included.
        mask: bool, shape of x, True at entries that count.
        axis: axis of the statistic.
        weight: positive weights, shape of x; None weighs every entry by 1.

    Returns:
        x - mean, 0 outside the mask.
    """
    x = jnp.where(mask, x, 0)
    first = jnp.take_along_axis(x, jnp.argmax(mask, axis=axis, keepdims=True), axis=axis)
    x = jnp.where(mask, x - first, 0)
    weight = jnp.where(mask, 1 if weight is None else weight, 0)
    total = jnp.sum(weight, axis=axis, keepdims=True)
    mean = jnp.sum(weight * x, axis=axis, keepdims=True) / jnp.where(total > 0, total, 1)
    return jnp.where(mask, x - mean, 0)


def masked_std(centred: Array, mask: Array, *, ddof: int, weight: Array | None = None) -> Array:
    """Returns sqrt(sum(weight * centred**2) / max(sum(weight) - ddof, 1)) over the last axis, kept with size 1.

    Args:
        centred: values from `centre`, 0 outside the mask.
        mask, weight: as for `centre`.
        ddof: what is taken off the sum of the weights; 1 is torch.std's.
    """
    weight = jnp.where(mask, 1 if weight is None else weight, 0)
    total = jnp.sum(weight, axis=-1, keepdims=True)
    return jnp.sqrt(jnp.sum(weight * centred**2, axis=-1, keepdims=True) / jnp.maximum(total - ddof, 1))


def outcome_advantage(outcome: Array, *, group_size: int, valid: Array | None = None) -> Array:
    """Standardises outcomes inside each group, as GRPO does.

        advantage = (outcome - mean) / (std + 1e-6), std with ddof 1

    DeepSeekMath, https://arxiv.org/abs/2402.03300, section 4.1.2. The floor-free std and the 1e-6 are those of InfoPO's
    release.

    Args:
        outcome: [N] float, score of each rollout.
        group_size: G, static; N must be a multiple of it.
        valid: [N] bool, rows that count; None: all do.

    Returns:
        [N] float32: 0 for invalid rows, for tied groups (exactly) and for groups with fewer than two valid rows.

    Raises:
        ValueError: for a wrong rank, size or dtype, or when N is not a multiple of group_size.
    """
    outcome, valid = _grouped_outcome(outcome, valid, group_size)
    centred = centre(outcome, valid, axis=1)
    return (centred / (masked_std(centred, valid, ddof=1) + EPSILON)).reshape(-1)


def variance_gate(outcome: Array, *, group_size: int, temperature: float = 0.05, valid: Array | None = None) -> Array:
    """Opens where a group's outcomes tie and closes where they differ.

        gate = sigmoid(-std_group(outcome) / temperature), std with ddof 1

    InfoPO, https://arxiv.org/abs/2603.00656, variance-gated fusion. The gate is at most 1/2.

    Args:
        outcome: [N] float, score of each rollout.
        group_size: G, static; N must be a multiple of it.
        temperature: positive, in units of the outcome: multiply by the environment's outcome range where it is not 1.
        valid: [N] bool, rows that count; None: all do.

    Returns:
        [N] float32 in [0, 1/2], one value per group: exactly 1/2 for tied groups and fewer than two valid rows. Invalid
        rows carry their group's value; their advantages are 0.

    Raises:
        ValueError: for a wrong rank, size or dtype, or when N is not a multiple of group_size.
    """
    outcome, valid = _grouped_outcome(outcome, valid, group_size)
    std = masked_std(centre(outcome, valid, axis=1), valid, ddof=1)
    return jnp.broadcast_to(jax.nn.sigmoid(-std / temperature), outcome.shape).reshape(-1)


def info_advantage(
    gain: Array,
    gain_mask: Array,
    *,
    group_size: int,
    valid: Array | None = None,
    std_floor: float = 0.0,
    baseline: str = 'group',
    num_turns: Array | None = None,
    action_len: Array | None = None,
) -> Array:
    """Standardises information gains inside each group.

        'group'  (gain - mean) / (max(std, std_floor) + 1e-6), statistics over all turns of the group that have a gain,
                 ddof 1 (InfoPO, https://arxiv.org/abs/2603.00656)
        'turn'   (gain - mean_t) / (max(std, std_floor) + 1e-6), mean_t over the group's rows that acted at turn t. The
                 action that ended a dialogue (turn num_turns - 1) counts as gain 0, so asking is compared with acting.
                 std is the root mean square of all the group's centred values. Other turns without a gain (errors) are
                 left out; a turn at which fewer than two rows count compares nothing: it gives 0 and stays out of std
        'none'   gain / (max(std, std_floor) + 1e-6), std of 'group'; 0 where max(std, std_floor) is 0

    With `action_len` the statistics are those of InfoPO's released code: a gain is first divided by len(a_t), then
    every TOKEN of a_t counts once, that is, a turn weighs len(a_t) in mean and std. As there, a gain of exactly 0 is
    taken for "no gain": it is left out of the statistics and gets 0 (the ending action of 'turn' is 0 by definition
    and stays in).

    Args:
        gain: [N, T] float, nats per token; read only where gain_mask is True.
        gain_mask: [N, T] bool, True where the turn has a gain.
        group_size: G, static; N must be a multiple of it.
        valid: [N] bool, rows that count; None: all do.
        std_floor: smallest std to divide by, in units of the gain; keeps tiny gains from becoming large advantages.
        baseline: 'group', 'turn' or 'none'.
        num_turns: [N] int32, actions taken; needed by 'turn', not read by the others.
        action_len: [N, T] int32, tokens per action; None: statistics over turns (the paper).

    Returns:
        [N, T] float32; 0 for turns without a value and for invalid rows. Where values are centred ('group', 'turn')
        also 0, exactly, for ties and for fewer than two values.

    Raises:
        ValueError: for a wrong rank, size or dtype, an unknown baseline, 'turn' without num_turns, or when N is not a
            multiple of group_size.
    """
    _check_info(gain, gain_mask, valid, num_turns, action_len, group_size=group_size, baseline=baseline)
    shape = (gain.shape[0] // group_size, group_size, gain.shape[1])
    used = gain_mask if valid is None else gain_mask & valid[:, None]
    gain = jnp.where(used, gain, 0).astype(jnp.float32)
    weight = jnp.ones_like(gain)
    if action_len is not None:
        weight = jnp.maximum(action_len, 1).astype(jnp.float32)
        gain = gain / weight
        used = used & (gain != 0)
    if baseline == 'turn':
        ends = jnp.arange(gain.shape[1]) == num_turns[:, None] - 1
        used = used | (ends if valid is None else ends & valid[:, None])
    gain, used, weight = gain.reshape(shape), used.reshape(shape), weight.reshape(shape)
    if baseline == 'turn':
        used = used & (jnp.sum(used, axis=1, keepdims=True) >= 2)
        centred = _flat(centre(gain, used, axis=1, weight=weight))
    else:
        centred = centre(_flat(gain), _flat(used), axis=1, weight=_flat(weight))
    std = masked_std(centred, _flat(used), ddof=0 if baseline == 'turn' else 1, weight=_flat(weight))
    std = jnp.maximum(std, std_floor)
    if baseline == 'none':
        centred = jnp.where(std > 0, _flat(gain), 0)
    return (centred / (std + EPSILON)).reshape(-1, shape[-1])


def fuse(outcome_adv: Array, info_adv: Array, gate: Array, *, info_weight: float | Array) -> Array:
    """Adds the gated information advantage to the outcome advantage.

        advantage[n, t] = outcome_adv[n] + info_weight * gate[n] * info_adv[n, t]

    InfoPO, https://arxiv.org/abs/2603.00656.

    Args:
        outcome_adv: [N] float. info_adv: [N, T] float. gate: [N] float.
        info_weight: scalar, may be traced.

    Returns:
        [N, T] float.

    Raises:
        ValueError: for a wrong rank, size or dtype.
    """
    check_shape('info_adv', info_adv, (None, None), 'f')
    check_shape('outcome_adv', outcome_adv, (info_adv.shape[0],), 'f')
    check_shape('gate', gate, (info_adv.shape[0],), 'f')
    return outcome_adv[:, None] + info_weight * gate[:, None] * info_adv


def to_tokens(turn_adv: Array, turn: Array, action_mask: Array) -> Array:
    """Gives every token of action a_t the advantage of turn t.

    Args:
        turn_adv: [N, T] float. turn: [N, L] int32. action_mask: [N, L] bool, True at the agent's own tokens.

    Returns:
        [N, L] float, 0 outside action_mask.

    Raises:
        ValueError: for a wrong rank, size or dtype.
    """
    check_shape('turn_adv', turn_adv, (None, None), 'f')
    check_shape('turn', turn, (turn_adv.shape[0], None), 'i')
    check_shape('action_mask', action_mask, tuple(turn.shape), 'b')
    num_turns = turn_adv.shape[1]
    used = action_mask & (turn >= 0) & (turn < num_turns)
    values = jnp.take_along_axis(turn_adv, jnp.clip(turn, 0, num_turns - 1), axis=1)
    return jnp.where(used, values, 0)


def _flat(x: Array) -> Array:
    """[P, G, T] -> [P, G * T]."""
    return x.reshape(x.shape[0], -1)


def _check_groups(num_rows: int, group_size: int) -> None:
    """Raises ValueError unless the rows fill whole groups."""
    if group_size < 1 or num_rows % group_size:
        raise ValueError(f'the {num_rows} rows must fill whole groups: N must be a multiple of group_size={group_size}')


def _grouped_outcome(outcome: Array, valid: Array | None, group_size: int) -> tuple[Array, Array]:
    """Checks outcome [N] and valid [N] and returns both as [P, G]."""
    check_shape('outcome', outcome, (None,), 'f')
    num_rows = outcome.shape[0]
    _check_groups(num_rows, group_size)
    if valid is None:
        valid = jnp.ones(num_rows, bool)
    check_shape('valid', valid, (num_rows,), 'b')
    return outcome.astype(jnp.float32).reshape(-1, group_size), valid.reshape(-1, group_size)


def _check_info(gain, gain_mask, valid, num_turns, action_len, *, group_size: int, baseline: str) -> None:
    """Checks the arguments of `info_advantage`."""
    if baseline not in BASELINES:
        raise ValueError(f'baseline {baseline!r} is unknown; valid names: {", ".join(BASELINES)}')
    check_shape('gain', gain, (None, None), 'f')
    num_rows = gain.shape[0]
    _check_groups(num_rows, group_size)
    check_shape('gain_mask', gain_mask, tuple(gain.shape), 'b')
    if valid is not None:
        check_shape('valid', valid, (num_rows,), 'b')
    if action_len is not None:
        check_shape('action_len', action_len, tuple(gain.shape), 'i')
    if baseline == 'turn':
        if num_turns is None:
            raise ValueError("baseline 'turn' needs num_turns [N], the number of actions that each row took")
        check_shape('num_turns', num_turns, (num_rows,), 'i')
