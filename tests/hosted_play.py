"""A tiny model in a world of echoes, and hosted rollouts of the two."""

import jax
from flax import nnx
from models import often_stopping, tiny_model
from talk import Colour, tiny_chat

from infopo_jax.rollout.batches import to_turns
from infopo_jax.rollout.dialogue import Limits
from infopo_jax.rollout.hosted import HostedRollout

LIMITS = Limits(
    max_turns=4, max_tokens=80, max_prompt_tokens=20, max_action_tokens=7, max_feedback_tokens=20, max_bad_actions=2
)
TASKS = ['red', 'blue', 'red']
CHAT = tiny_chat()


class Echo(Colour):
    """Answers whatever is said, at a length that depends on it, so that slots fall out of step."""

    def step(self, text):
        info = {'is_error': len(text) % 2 == 1, 'success': True}
        return f'it is {self.goal} ' * (len(text) % 4), float(len(text)), len(text) % 5 == 2, False, info


def make_model():
    model = tiny_model(CHAT.vocab_size, num_layers=2, num_heads=2, num_kv_heads=1, tie_embeddings=False, head=2.0)
    return often_stopping(model, CHAT.stop_id, 4.0)


def engine_maker(model):
    """Returns a function that builds an engine, once per setting."""
    made, graphdef = {}, nnx.split(model)[0]

    def engine(num_slots=6, chunk=2, feed_sizes=(5,), num_aside=0):
        setting = num_slots, chunk, feed_sizes, num_aside
        if setting not in made:
            made[setting] = HostedRollout(
                Echo, CHAT, graphdef, LIMITS,
                num_slots=num_slots, chunk=chunk, feed_sizes=feed_sizes, num_aside=num_aside,
            )  # fmt: skip
        return made[setting]

    return engine


def play(engine, model, *, tasks=TASKS, group_size=2, seed=8, temperature=1.0):
    params = nnx.split(model)[1]
    key = jax.random.key(seed)
    dialogues, clock = engine.rollout(params, key, tasks, group_size=group_size, seed=1, temperature=temperature)
    return dialogues, to_turns(dialogues, LIMITS.max_tokens, LIMITS.max_turns), clock
