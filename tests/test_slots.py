"""The rows of hosted rollouts, driven by hand."""

import jax
import numpy as np
import pytest
from flax import nnx
from models import tiny_model
from talk import tiny_chat

from infopo_jax.rollout.slots import FEED_SIZES, Slots

CHAT = tiny_chat()
PROMPT = list(range(5, 25))


@pytest.fixture(scope='module')
def slots():
    """Returns a function that gives one slot, its prompt fed, and the parameters' batch begun anew."""
    graphdef, params = nnx.split(
        tiny_model(CHAT.vocab_size, num_layers=2, num_heads=2, num_kv_heads=1, tie_embeddings=False, head=2.0)
    )
    slots = Slots(graphdef, num_slots=1, num_aside=0, max_tokens=400, chunk=8, stop_ids=(CHAT.stop_id,))

    def begin():
        slots.begin(params, jax.random.key(0))
        slots.seat([0], [(0, 0)], PROMPT)
        return slots

    return begin


def say(slots, *, fed, drawn):
    tokens, logps, count = slots.decode(numbers(fed), numbers(drawn), numbers(8), temperature=1.0)
    return tokens[0, : count[0]].tolist(), logps[0, : count[0]]


def numbers(x):
    return np.array([x], np.int32)


def test_a_row_that_falls_back_does_not_see_what_stood_there(slots):
    """As a dialogue does that is rendered anew without its thoughts: the row is shorter than before."""
    short = list(range(40, 56))  # one part, without padding that would clear what stands behind it
    assert len(short) == FEED_SIZES[0]
    row = slots()
    row.feed({0: short}, numbers(20))
    wanted, logps = say(row, fed=36, drawn=0)
    row = slots()
    row.feed({0: list(range(30, 230))}, numbers(20))
    row.feed({0: short}, numbers(20))
    tokens, again = say(row, fed=36, drawn=0)
    assert tokens == wanted and len(tokens) > 3
    np.testing.assert_allclose(again, logps, atol=1e-5)


def test_keys_are_folded_from_the_number_of_a_token_not_from_its_place(slots):
    """A row that falls back comes to the same places again, and must not draw by the same keys."""
    said = [say(slots(), fed=20, drawn=drawn)[0] for drawn in (0, 0, 8)]
    assert said[0] == said[1] != said[2]
