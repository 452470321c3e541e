"""InfoPO's estimators: what the outcome and the information add up to."""

import dataclasses
import functools
import math

import jax.numpy as jnp
import numpy as np
from signals import PAPER, RELEASE, by_token, credit_of, make_signals

from infopo_jax import advantage, types


def test_infopo_adds_the_gated_information():
    signals = make_signals()
    adv = np.asarray(advantage.outcome_advantage(signals.outcome, group_size=4, valid=signals.valid))
    info = advantage.info_advantage(
        signals.gain,
        signals.gain_mask,
        group_size=4,
        valid=signals.valid,
        std_floor=0.1,
        baseline='turn',
        num_turns=signals.num_turns,
    )
    gate = np.zeros(12)
    for n in range(12):
        rows = [m for m in range(n // 4 * 4, n // 4 * 4 + 4) if m != 9]
        std = np.std(np.asarray(signals.outcome)[rows], ddof=1) if n >= 4 else 0.0
        gate[n] = 1 / (1 + math.exp(std / (0.05 * 2.0)))  # outcome_range 2 doubles the temperature
    weight = 0.5 * math.exp(-0.01 * 30)
    expected = by_token(adv[:, None] + weight * gate[:, None] * np.asarray(info), signals)
    np.testing.assert_allclose(credit_of('infopo', signals).advantage, expected, rtol=1e-4, atol=1e-6)


def test_infopo_without_weight_is_grpo():
    signals = make_signals()
    credit = credit_of('infopo', signals, info_weight=0.0)
    np.testing.assert_array_equal(credit.advantage, credit_of('grpo', signals).advantage)


def test_infopo_teaches_where_every_outcome_ties():
    signals = make_signals()
    tied = dataclasses.replace(signals, outcome=jnp.full(12, 10.7))
    assert not credit_of('grpo', tied).advantage.any()
    credit = credit_of('infopo', tied)
    assert credit.advantage.any()
    assert credit.metrics['tied_groups'] == 1 and credit.metrics['gate'] == 0.5 and credit.metrics['info_share'] == 1


def test_infopo_by_token_with_downscale_is_the_release():
    """Statistics, scaling and gate over explicit lists of tokens, as InfoPO's released code takes them."""
    signals = make_signals()
    turn, gain, mask = np.asarray(signals.turn), np.asarray(signals.gain), np.asarray(signals.action_mask).copy()
    mask[9] = False  # the invalid row
    spread, info = np.zeros(turn.shape), np.zeros(turn.shape)
    for n, i in zip(*np.nonzero(mask), strict=True):
        spread[n, i] = gain[n, turn[n, i]] / np.sum(mask[n] & (turn[n] == turn[n, i]))
    for start in range(0, 12, 4):
        rows = slice(start, start + 4)
        values = spread[rows][spread[rows] != 0]
        info[rows] = np.where(spread[rows] != 0, (spread[rows] - values.mean()) / (values.std(ddof=1) + 1e-6), 0)
    gate = advantage.variance_gate(signals.outcome, group_size=4, temperature=0.5, valid=signals.valid)
    outcome_adv = advantage.outcome_advantage(signals.outcome, group_size=4, valid=signals.valid)
    outcome = np.where(mask, outcome_adv[:, None], 0)
    bound = max(outcome[mask].std(ddof=1) + 1e-6, 1.0) / (info[mask].std(ddof=1) + 1e-6)
    expected = outcome + 0.5 * math.exp(-0.3) * np.asarray(gate)[:, None] * min(1.0, bound) * info
    credit = credit_of('infopo', signals, **RELEASE, gate_temperature=0.25)
    np.testing.assert_allclose(credit.advantage, expected, rtol=1e-4, atol=1e-5)


def test_infopo_downscale_bounds_the_std_over_tokens_and_never_scales_up():
    """Two rows of three turns; the extreme gains belong to the long actions, so tokens vary more than turns."""
    lengths, gains = np.array([[10, 1, 1], [1, 10, 1]]), np.array([[1.0, 2.0, 0.0], [2.0, 3.0, 0.0]])
    turn = np.stack([np.repeat(np.arange(3), k) for k in lengths])
    signals = types.Signals(
        turn=jnp.asarray(turn),
        action_mask=jnp.ones(turn.shape, bool),
        outcome=jnp.zeros(2),
        turn_reward=jnp.zeros((2, 3)),
        valid=jnp.ones(2, bool),
        num_turns=jnp.full(2, 3),
        gain=jnp.asarray(gains, jnp.float32),
        gain_mask=jnp.array([[True, True, False]] * 2),
        update=jnp.int32(0),
    )
    # Gains 1 2 2 3: mean 2, squares 2, over 3.
    per_turn = np.where(np.arange(3) < 2, (gains - 2) / math.sqrt(2 / 3), 0)
    info = np.stack([np.repeat(v, k) for v, k in zip(per_turn, lengths, strict=True)])
    std = info.std(ddof=1)
    assert std > 1
    run = functools.partial(credit_of, 'info_only', signals, group_size=2, **PAPER)
    np.testing.assert_allclose(run().advantage, info, rtol=1e-4)
    np.testing.assert_allclose(run(downscale=True).advantage, info / std, rtol=1e-4)
    small = credit_of(
        'info_only', signals, group_size=2, **PAPER | {'std_floor': 5.0, 'downscale': True}
    )  # not scaled up
    np.testing.assert_allclose(small.advantage, info * math.sqrt(2 / 3) / 5.0, rtol=1e-4)
    spread = dataclasses.replace(signals, outcome=jnp.array([0.0, 1.0]))
    wide_open = {'downscale': True, 'gate_temperature': 1e6, 'weight_decay': 0.0}
    fused = credit_of('infopo', spread, group_size=2, **PAPER | wide_open)
    outcome = np.array([[-1], [1]]) * math.sqrt(0.5) + np.zeros(info.shape)
    scale = min(1.0, max(1.0, outcome.std(ddof=1)) / std)
    np.testing.assert_allclose(fused.advantage, outcome + 0.5 * 0.5 * scale * info, rtol=1e-4, atol=1e-6)


def test_info_only_does_not_know_the_outcome():
    signals = make_signals()
    other = dataclasses.replace(signals, outcome=signals.outcome[::-1])
    credit = credit_of('info_only', signals, **RELEASE)
    np.testing.assert_array_equal(credit.advantage, credit_of('info_only', other, **RELEASE).advantage)
    assert credit.metrics['info_share'] == 1 and credit.metrics['gate'] == 1
