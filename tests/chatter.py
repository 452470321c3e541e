"""An array environment that takes any action and answers at random, for tests of rollouts inside XLA."""

import jax
import jax.numpy as jnp

from infopo_jax.envs.intent import pick
from infopo_jax.types import pytree_dataclass

VOCAB, STOP = 20, 1


@pytree_dataclass
class State:
    """One episode."""

    goal: jax.Array  # []
    heard: jax.Array  # [] sum of all that the agent has said
    turns: jax.Array  # []
    done: jax.Array  # []


class Chatter:
    """Prompts of 3-5 tokens, feedback of 0-4, rewards, errors and ends by chance, from the key of the call."""

    vocab = tuple(f'w{i}' for i in range(VOCAB))
    stop_id, prompt_len, action_len, feedback_len, max_turns = STOP, 5, 4, 4, 5
    feedback_open, feedback_close, placeholder = (2, 3), (4,), (5, 6, 7)
    outcome_range = 100.0

    def __init__(self, end=0.15, error=0.4, least=0):
        """Sets how likely a turn is to end the episode or to be an error, and the shortest feedback."""
        self.end, self.error, self.least = end, error, least

    def reset(self, key, split):
        """Starts an episode; test goals are negative."""
        draw = jax.random.uniform(key, (self.prompt_len + 2,))
        goal = pick(draw[0], 1, 1000) * (1 if split == 'train' else -1)
        mask = jnp.arange(self.prompt_len) < pick(draw[1], 3, self.prompt_len + 1)
        prompt = pick(draw[2:], 8, VOCAB)
        zero = jnp.int32(0)
        return State(goal=goal, heard=zero, turns=zero, done=jnp.bool_(False)), jnp.where(mask, prompt, 0), mask

    def step(self, key, state, action, action_mask):
        """Answers with random tokens, to which what was said is added."""
        draw = jax.random.uniform(key, (self.feedback_len + 4,))
        said = jnp.sum(jnp.where(action_mask, action, 0))
        feedback = 8 + (pick(draw[4:], 0, 12) + said) % 12
        mask = jnp.arange(self.feedback_len) < pick(draw[0], self.least, self.feedback_len + 1)
        done, is_error = draw[1] < self.end, draw[2] < self.error
        new = State(goal=state.goal, heard=state.heard + said, turns=state.turns + 1, done=done)
        return new, jnp.where(mask, feedback, 0), mask, draw[3], done, is_error & ~done

    def score(self, state):
        """Returns an outcome that depends on all that was said, and success wherever that is even."""
        return (state.heard + state.goal).astype(jnp.float32), state.heard % 2 == 0
