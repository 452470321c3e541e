"""Episodes of the retail world for its tests."""

from infopo_jax.envs.retail import Retail

CANCEL = 'cancel_order order_17 delay'
RETURN = 'return_item order_3 item_5'


def start(task=CANCEL, *, level=1, seed=0, **knobs):
    """Returns an environment in the first turn of a task."""
    env = Retail(level, **knobs)
    messages, _ = env.reset(seed=seed, options={'task': task})
    return env, messages


def play(env, messages, policy):
    """Plays to the end; returns the messages and the last step's result."""
    while True:
        action = policy(messages)
        answer, reward, terminated, truncated, info = env.step(action)
        messages = [*messages, {'role': 'assistant', 'content': action}, *answer]
        if terminated or truncated:
            return messages, (reward, terminated, truncated, info)


def contents(messages):
    return [message['content'] for message in messages]
