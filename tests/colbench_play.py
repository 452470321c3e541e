"""Episodes of collaborative programming for its tests."""

import pytest

from infopo_jax.envs import sandbox
from infopo_jax.envs.colbench import ColBench
from infopo_jax.envs.colbench.functions import MARKER

needs_sandbox = pytest.mark.skipif(sandbox.refusal() is not None, reason=str(sandbox.refusal()))

GOAL = 'discount 150 15'
RIGHT = f'{MARKER}\ndef discount(total):\n    return total * (100 - 15) / 100 if total > 150 else total'


def start(task=GOAL, *, level=1, seed=0, **knobs):
    env = ColBench(level, **knobs)
    messages, _ = env.reset(seed=seed, options={'task': task})
    return env, messages


def play(env, policy):
    """Plays to the end; returns the last step's result."""
    while True:
        result = env.step(policy())
        if result[2] or result[3]:
            return result


def texts(messages):
    return [message['content'] for message in messages]


class Parrot:
    """A user who answers with what he was asked."""

    def __init__(self, answer=None):
        self.heard, self.answer = [], answer

    def reply(self, messages, *, nonce=''):
        self.heard.append((messages, nonce))
        return messages[-1]['content'] if self.answer is None else self.answer
