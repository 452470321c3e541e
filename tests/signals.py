"""Small batches of signals, and the estimators run on them, compiled once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from infopo_jax import types
from infopo_jax.estimators import ESTIMATORS

NAN = np.nan
KEY = jax.random.key(0)
HYPER = {
    'info_weight': 0.5,
    'weight_decay': 0.01,
    'gate_temperature': 0.05,
    'outcome_range': 2.0,
    'std_floor': 0.1,
    'baseline': 'turn',
    'norm': 'turn',
    'downscale': False,
}
PAPER = {'baseline': 'group', 'std_floor': 0.0}
RELEASE = {**PAPER, 'norm': 'token', 'downscale': True}


def make_signals(seed=0, num_rows=12, num_turns=4, action_len=(1, 4)):
    """Groups of 4 (or 3): the first ties at 0.7; one row is invalid; a_t is 1-3 tokens, o_t one token."""
    rng = np.random.default_rng(seed)
    length = 1 + num_turns * action_len[1]
    turn = np.full((num_rows, length), -1, np.int32)
    action_mask = np.zeros((num_rows, length), bool)
    taken = rng.integers(2, num_turns + 1, num_rows).astype(np.int32)
    for n in range(num_rows):
        at = 1
        for t in range(taken[n]):
            k = rng.integers(*action_len)
            turn[n, at : at + k + 1], action_mask[n, at : at + k] = t, True
            at += k + 1
    outcome = rng.random(num_rows).astype(np.float32)
    outcome[:4] = 0.7
    gain_mask = np.arange(num_turns) < taken[:, None] - 1
    gain_mask[5, 0] = False  # an error
    gain = np.where(gain_mask, rng.normal(0.5, 0.4, gain_mask.shape), 0).astype(np.float32)
    return types.Signals(
        turn=jnp.asarray(turn),
        action_mask=jnp.asarray(action_mask),
        outcome=jnp.asarray(outcome),
        turn_reward=jnp.zeros((num_rows, num_turns)),
        valid=jnp.asarray(np.arange(num_rows) != 9),
        num_turns=jnp.asarray(taken),
        gain=jnp.asarray(gain),
        gain_mask=jnp.asarray(gain_mask),
        update=jnp.int32(30),
    )


STATIC = ('group_size', 'baseline', 'norm', 'downscale')
JITTED = {name: jax.jit(function, static_argnames=STATIC) for name, function in ESTIMATORS.items()}


def credit_of(name, signals, group_size=4, key=KEY, **hyper):
    return JITTED[name](signals, group_size=group_size, key=key, **HYPER | hyper)


def by_token(turn_adv, signals):
    """[N, T] -> [N, L] by a loop."""
    out = np.zeros(signals.turn.shape)
    for n, i in zip(*np.nonzero(np.asarray(signals.action_mask & signals.valid[:, None])), strict=True):
        out[n, i] = turn_adv[n, signals.turn[n, i]]
    return out


def assert_equal(credit, other, rtol=0.0):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol, atol=rtol), credit, other)
