"""Sample rollouts as rows, on one that is written out by hand."""

import dataclasses
import json

import builders
import jax.numpy as jnp
import numpy as np

from infopo_jax import logger, samples
from infopo_jax.types import EndReason, Role

P, A, F, M = Role.PROMPT, Role.ACTION, Role.FEEDBACK, Role.TEMPLATE
ROW = [(1, P, -1), (2, P, -1), (3, A, 0), (4, A, 0), (9, M, 0), (5, F, 0), (6, F, 0), (9, M, 0), (7, A, 1), (4, A, 1)]
SHORT = [(1, P, -1), (8, A, 0)]


def decode(ids):
    return ' '.join(f'w{int(i)}' for i in ids)


def rows_of(**changes):
    turns = dataclasses.replace(
        builders.turns_of([ROW, SHORT]),
        outcome=np.array([1.0, 0.25], np.float32),
        success=np.array([True, False]),
        turn_reward=np.array([[0.0, 1.0], [0.25, 0.0]], np.float32),
        end_reason=np.array([EndReason.DONE, EndReason.BAD_ACTION], np.int8),
        turn_error=np.array([[True, False], [False, False]]),
    )
    fields = {
        'token_gain': np.arange(20, dtype=np.float32).reshape(2, 10) / 4,
        'gain': np.array([[0.5, 0.0], [0.0, 0.0]], np.float32),
        'gain_mask': np.array([[True, False], [False, False]]),
        'advantage': np.where(turns.action_mask, turns.turn + 1.5, 0.0),
    } | changes
    return samples.sample_rows(turns, **fields, decode=decode, group_size=2, phase='eval')


def test_sample_rows_golden():
    first, second = rows_of()
    assert first == {
        'phase': 'eval', 'index': 0, 'group': 0, 'prompt': 'w1 w2', 'outcome': 1.0, 'success': True, 'end': 'DONE',
        'turns': [
            {
                'action': 'w3 w4', 'tokens': ['w3', 'w4'], 'ids': [3, 4], 'log_ratio': None, 'feedback': 'w5 w6',
                'gain': 0.5, 'advantage': 1.5, 'reward': 0.0, 'is_error': True,
            },
            {
                'action': 'w7 w4', 'tokens': ['w7', 'w4'], 'ids': [7, 4], 'log_ratio': [2.0, 2.25], 'feedback': '',
                'gain': None, 'advantage': 2.5, 'reward': 1.0, 'is_error': False,
            },
        ],
    }  # fmt: skip
    assert (second['index'], second['group'], second['end'], len(second['turns'])) == (1, 0, 'BAD_ACTION', 1)


def test_sample_rows_without_a_counterfactual_have_no_log_ratio():
    assert [turn['log_ratio'] for row in rows_of(token_gain=None) for turn in row['turns']] == [None] * 3


def test_sample_rows_are_json_whatever_the_arrays_are():
    rows = rows_of(token_gain=jnp.full((2, 10), jnp.nan), gain=jnp.full((2, 2), jnp.inf))
    text = json.dumps(logger.plain(rows), allow_nan=False)
    assert json.loads(text)[0]['turns'][1]['log_ratio'] == ['NaN', 'NaN']
