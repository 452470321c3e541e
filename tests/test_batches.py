"""The ladder of shapes that hosted batches are cut to."""

import dataclasses

import builders
import jax.numpy as jnp
import numpy as np
import pytest
from hosted_play import LIMITS

from infopo_jax import packing
from infopo_jax.rollout.batches import Ladder
from infopo_jax.types import Role


@pytest.mark.parametrize('horizon', [1, 2, 'all'])
def test_ladder_has_at_most_four_rungs_and_the_last_holds_anything(horizon):
    ladder = Ladder.of(LIMITS, num_placeholder=3, horizon=horizon)
    assert 1 <= len(ladder.rungs) <= 4 and ladder.rungs == tuple(sorted(ladder.rungs))
    assert ladder.rungs[-1][0] == LIMITS.max_tokens
    rng = np.random.default_rng(0)
    for _ in range(10):
        rows = [builders.random_row(rng, num_turns=t, action=(1, 8), feedback=(1, 8)) for t in (4, 4, 3, 1)]
        rows = [row for row in rows if len(row) <= LIMITS.max_tokens]
        ladder.fit(builders.turns_of(rows, max_turns=4, length=LIMITS.max_tokens), [1, 2, 3], horizon)


def answered(length, num_turns, num_messages):
    """Returns a row with several messages, of a token each, to a turn."""
    row = [(5, Role.PROMPT, -1)]
    for t in range(num_turns - 1):
        row += [(6, Role.ACTION, t), *[(7, Role.FEEDBACK, t), (8, Role.TEMPLATE, t)] * num_messages]
    row.append((6, Role.ACTION, num_turns - 1))
    assert len(row) <= length
    return row


@pytest.mark.parametrize('horizon', [1, 3, 'all'])
@pytest.mark.parametrize('num_placeholder', [0, 1, 8])
@pytest.mark.parametrize(('num_turns', 'num_messages'), [(10, 4), (3, 47), (10, 1)])
def test_ladder_holds_many_messages_to_a_turn(num_turns, num_messages, num_placeholder, horizon):
    limits = dataclasses.replace(LIMITS, max_turns=10, max_tokens=192)
    ladder = Ladder.of(limits, num_placeholder=num_placeholder, horizon=horizon)
    turns = builders.turns_of([answered(192, num_turns, num_messages)], max_turns=10, length=192)
    placeholder = range(1, num_placeholder + 1)
    (branch_len, target_len), _ = ladder.fit(turns, placeholder, horizon)
    packed = packing.pack(
        turns, jnp.array(placeholder, jnp.int32), horizon=horizon, branch_len=branch_len, target_len=target_len
    )
    assert int(packed.branch_used.max()) <= branch_len
    assert int(packed.target_mask.sum()) == num_turns


def test_ladder_of_ordinary_answers_has_room_for_one_message_to_a_turn():
    limits = dataclasses.replace(LIMITS, max_turns=10, max_tokens=192, max_action_tokens=16)
    ladder = Ladder.of(limits, num_placeholder=8, horizon=1)
    assert ladder.rungs == ((128, 64, 32), (192, 96, 48), (192, 282, 160), (192, 864, 160))
    assert Ladder.of(limits, num_placeholder=1, horizon=1).rungs[-1] == (192, 212, 160)  # a token stands for a token


def test_ladder_fits_the_lowest_rung_that_holds_the_batch():
    ladder = Ladder(((32, 16, 8), (64, 32, 16), (96, 64, 64)))
    row = [(5, Role.PROMPT, -1), (6, Role.ACTION, 0), (7, Role.FEEDBACK, 0), (8, Role.ACTION, 1)]
    small = builders.turns_of([row], length=96)
    bounds, cut = ladder.fit(small, [1], 1)
    assert bounds == (16, 8) and cut.tokens.shape == (1, 32) and cut.turn_reward.shape == (1, 2)
    long_row = row[:1] * 40 + row[1:]
    assert ladder.fit(builders.turns_of([long_row], length=96), [1], 1)[1].tokens.shape == (1, 64)
    many = row[:1] + row[1:2] * 17 + row[2:]  # few tokens, but more targets than the second rung has
    assert ladder.fit(builders.turns_of([many], length=96), [1], 1)[0] == (64, 64)
    wide = ladder.fit(small, list(range(20)), 1)  # a longer placeholder needs more branch tokens
    assert wide[0] == (32, 16) and packing.bounds(small, range(20), multiple=1)[0] > 16
    with pytest.raises(ValueError, match='fits no rung'):
        ladder.fit(builders.turns_of([row[:1] * 97 + row[1:]], length=120), [1], 1)
