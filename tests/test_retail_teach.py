"""What is taught of the retail world: examples and the values in them."""

import random

import pytest
from retail_play import contents, play, start

from infopo_jax.envs.retail import Retail, teach
from infopo_jax.envs.retail.expert import act
from infopo_jax.envs.retail.tasks import LEVELS
from infopo_jax.envs.retail.tools import SCHEMAS
from infopo_jax.envs.tools import parse


class Recorder(Retail):
    """Remembers how its last episode started."""

    def reset(self, *, seed=0, options=None):
        self.start = {'seed': seed, 'options': options}
        return super().reset(seed=seed, options=options)


@pytest.mark.parametrize('level', LEVELS)
def test_example_is_legal_and_never_a_solved_episode(level):
    env, rng = Recorder(level), random.Random(0)
    train = set(env.tasks('train'))
    for _ in range(1000):
        history, target = teach.example(env, rng)
        assert parse(target, SCHEMAS).error is None
        assert env.start['options']['task'] in train
        shown = {value for m in history if m['role'] != 'assistant' for _, value in teach.values(m)}
        needed = {word for goal in env.start['options']['task'].split(' & ') for word in goal.split()[1:]}
        assert not needed <= shown
        replay = Retail(level)
        replay.reset(**env.start)
        actions = [message['content'] for message in history if message['role'] == 'assistant']
        for action in [*actions, target]:
            _, _, _, _, info = replay.step(action)
        assert not info.get('success')


def test_example_copies_what_the_history_shows():
    env, rng = Retail(), random.Random(0)
    copied = drawn = hidden = two = 0
    for _ in range(2000):
        history, target = env.example(rng)
        seen = {value for message in history[1:] if message['role'] != 'assistant' for value in teach.values(message)}
        shown = {value for _, value in seen}
        hidden += env.placeholder in contents(history)
        arguments = list(parse(target, SCHEMAS).arguments.values())
        copied += sum(value in shown for value in arguments)
        two += len(arguments) > 1 and set(arguments) <= shown
        drawn += len(arguments)
    assert copied == drawn > 500
    assert two > 100  # calls of which every argument is copied
    assert 500 < hidden < 1400


def test_example_leaves_a_running_episode_alone():
    env, messages = start()
    env.example(random.Random(0))
    env.corpus()
    assert play(env, messages, act)[1][3]['success']


def test_values_tells_a_new_item_from_an_item():
    message = {'role': 'user', 'content': 'I want item_3 instead, because of the delay, for $40.'}
    assert teach.values(message) == [('item', 'item_3'), ('reason', 'delay'), ('refund', '$40')]
    assert teach.values(message, 'Which new item?')[0] == ('new_item', 'item_3')
