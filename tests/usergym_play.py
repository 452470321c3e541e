"""Episodes of our own gyms for their tests."""

from infopo_jax.envs.usergym import UserGym
from infopo_jax.envs.usergym.base import puzzles
from infopo_jax.envs.usergym.env import OWN
from infopo_jax.envs.usergym.moves import written

GYMS = list(OWN)
LEVELS = (1, 2, 3)


def start(gym, puzzle=None, *, seed=0, **knobs):
    """Returns an environment in the first turn; a puzzle that is given takes the place of the task's own."""
    env = UserGym(gym, **knobs)
    messages, _ = env.reset(seed=seed, options={'task': env.tasks('test')[0]})
    if puzzle:
        env.gym.puzzle = puzzle
        messages = [messages[0], {'role': 'user', 'content': env.gym.open()}]
    return env, messages


def deal(gym, **fields):
    """Returns a puzzle of a gym with these fields."""
    return type(next(iter(puzzles(type(UserGym(gym).gym), 1).values())))(**fields)


def play(env, policy):
    """Plays to the end; returns the last step's info with the number of turns."""
    for turn in range(1, env.max_turns + 1):
        *_, terminated, truncated, info = env.step(policy())
        if terminated or truncated:
            return info | {'turns': turn, 'terminated': terminated}
    raise AssertionError('no end at the turn limit')


def say(env, choice, content=''):
    """Makes a move; returns the text of the reply, and the info."""
    messages, _, _, _, info = env.step(written((choice, content)))
    return messages[0]['content'], info
