"""InfoPO: the outcome advantage plus the gated information advantage, and the information advantage alone."""

import jax
import jax.numpy as jnp

from infopo_jax import advantage
from infopo_jax.estimators.grpo import assemble
from infopo_jax.info_gain import turn_sum
from infopo_jax.types import Array, Credit, Signals

NORMS = ('turn', 'token')


def infopo(
    signals: Signals,
    *,
    group_size: int,
    key: jax.Array,
    info_weight: float | Array = 0.5,
    weight_decay: float | Array = 0.0,
    gate_temperature: float | Array = 0.05,
    outcome_range: float | Array = 1.0,
    std_floor: float | Array = 0.1,
    baseline: str = 'turn',
    norm: str = 'turn',
    downscale: bool = False,
    **_,
) -> Credit:
    """Credits the outcome of the rollout and what each turn found out.

        advantage[n, i] = outcome_adv[n] + weight * gate[n] * info_adv[n, turn[i]]
        weight = info_weight * exp(-weight_decay * update)
        gate = sigmoid(-std_group(outcome) / (gate_temperature * outcome_range))

    InfoPO, https://arxiv.org/abs/2603.00656. The paper has baseline 'group', norm 'turn', std_floor 0; its released
    code has baseline 'group', norm 'token', std_floor 0 and downscale. The defaults are those of
    `config.base_config`.

    Args:
        signals: what there is to turn into credit.
        group_size: G, static.
        key: not used.
        info_weight: weight of the information part before its gate, which is at most 1/2.
        weight_decay: rate of the weight's decay, per update.
        gate_temperature: in units of outcome_range.
        outcome_range: the environment's largest minus smallest outcome.
        std_floor: smallest std that gains are divided by, in units of the gain.
        baseline: 'group', 'turn' or 'none', static; see `advantage.info_advantage`.
        norm: 'turn' (each turn counts once) or 'token' (the release: gain / len(a_t), each token counts once), static.
        downscale: static; see `normalised_gain`.

    Returns:
        Credit; see `assemble` for its metrics.

    Raises:
        ValueError: for an unknown baseline or norm.
    """
    del key
    outcome_adv = advantage.outcome_advantage(signals.outcome, group_size=group_size, valid=signals.valid)
    scaling = {'std_floor': std_floor, 'baseline': baseline, 'norm': norm, 'downscale': downscale}
    info_adv = normalised_gain(signals, outcome_adv, group_size=group_size, **scaling)
    temperature = gate_temperature * outcome_range
    gate = advantage.variance_gate(signals.outcome, group_size=group_size, temperature=temperature, valid=signals.valid)
    weight = decayed(info_weight, signals.update, rate=weight_decay)
    return assemble(signals, outcome_adv, info_adv, gate, info_weight=weight, group_size=group_size)


def info_only(
    signals: Signals,
    *,
    group_size: int,
    key: jax.Array,
    std_floor: float | Array = 0.1,
    baseline: str = 'turn',
    norm: str = 'turn',
    downscale: bool = False,
    **_,
) -> Credit:
    """Credits what each turn found out and nothing else: what information alone teaches.

        advantage[n, i] = info_adv[n, turn[i]]

    As in the ablation of InfoPO's released code there is neither gate (it reads the outcome) nor weight (it weighs
    against the outcome), so the advantage has unit scale, as GRPO's has.

    Args:
        signals, group_size, key, std_floor, baseline, norm, downscale: as for `infopo`, with an outcome advantage of 0.

    Returns:
        Credit; see `assemble` for its metrics.

    Raises:
        ValueError: for an unknown baseline or norm.
    """
    del key
    zeros = jnp.zeros(signals.gain.shape[0])
    scaling = {'std_floor': std_floor, 'baseline': baseline, 'norm': norm, 'downscale': downscale}
    info_adv = normalised_gain(signals, zeros, group_size=group_size, **scaling)
    return assemble(signals, zeros, info_adv, jnp.ones_like(zeros), info_weight=1.0, group_size=group_size)


def decayed(weight: float | Array, update: Array, *, rate: float | Array) -> Array:
    """Returns weight * exp(-rate * update)."""
    return weight * jnp.exp(-rate * update)


def normalised_gain(
    signals: Signals,
    outcome_adv: Array,
    *,
    group_size: int,
    std_floor: float | Array,
    baseline: str,
    norm: str,
    downscale: bool,
) -> Array:
    """Standardises the batch's gains; see `advantage.info_advantage`.

    With `downscale` the result is scaled as in InfoPO's released code, never up, by

        min(1, max(std(outcome_adv) + 1e-6, 1) / (std(info_adv) + 1e-6))    std over all tokens that train, ddof 1

    Args:
        signals: the batch. outcome_adv: [N] float, read by `downscale` alone.
        group_size, std_floor, baseline, norm, downscale: as for `infopo`.

    Returns:
        [N, T] float32.

    Raises:
        ValueError: for an unknown baseline or norm.
    """
    if norm not in NORMS:
        raise ValueError(f'norm {norm!r} is unknown; valid names: {", ".join(NORMS)}')
    num_turns = signals.gain.shape[1]
    loss_mask = signals.action_mask & signals.valid[:, None]
    action_len = turn_sum(loss_mask.astype(jnp.int32), signals.turn, loss_mask, num_turns=num_turns)
    info_adv = advantage.info_advantage(
        signals.gain,
        signals.gain_mask,
        group_size=group_size,
        valid=signals.valid,
        std_floor=std_floor,
        baseline=baseline,
        num_turns=signals.num_turns,
        action_len=action_len if norm == 'token' else None,
    )
    if not downscale:
        return info_adv
    bound = jnp.maximum(_token_std(jnp.broadcast_to(outcome_adv[:, None], info_adv.shape), action_len), 1)
    return info_adv * jnp.minimum(bound / _token_std(info_adv, action_len), 1)


def _token_std(turn_adv: Array, action_len: Array) -> Array:
    """Returns the std over action tokens of a per-turn advantage: turn t counts len(a_t) times; ddof 1, plus 1e-6."""
    x, mask, weight = turn_adv.reshape(-1), (action_len > 0).reshape(-1), action_len.astype(jnp.float32).reshape(-1)
    centred = advantage.centre(x, mask, axis=0, weight=weight)
    return advantage.masked_std(centred, mask, ddof=1, weight=weight)[0] + advantage.EPSILON
