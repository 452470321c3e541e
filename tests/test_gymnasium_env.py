"""Tests of the adapter to Gymnasium, with environments that this file defines."""

import random
import sys
from typing import ClassVar

import pytest

from infopo_jax.envs.gymnasium import Gymnasium, text_of
from infopo_jax.envs.tools import parse, render

HERE = f'{__name__}:Door'
ACTIONS = 'turn=turn {way}; knock=knock'


class Door:
    """A door that opens to 'turn left' (reward 1); 'knock' pays 0.25, 'jam' breaks it, 'wait' truncates."""

    made: ClassVar = []

    def __init__(self):
        self.seeds, self.heard, self.closed = [], [], False
        Door.made.append(self)

    def reset(self, *, seed=None, options=None):
        self.seeds.append(seed)
        return f'A door, number {seed}.', {}

    def step(self, action):
        self.heard.append(action)
        if action == 'jam':
            raise RuntimeError('jammed')
        opened = action == 'turn left'
        reward = 1.0 if opened else 0.25 if action == 'knock' else 0.0
        text = {'feedback': f'You {action}.', 'step': len(self.heard)}
        return text, reward, opened, action == 'wait', {'is_error': action == 'shout'}

    def close(self):
        self.closed = True


class Judging(Door):
    """Says itself whether it was a success."""

    def step(self, action):
        *rest, _ = super().step('turn left')
        return *rest, {'success': False} if action == 'bad' else {'is_success': True}


class Silent(Door):
    def reset(self, *, seed=None, options=None):
        return [1, 2], {}


def start(gym=HERE, **knobs):
    env = Gymnasium(gym, **knobs)
    messages, info = env.reset(options={'task': 3})
    return env, messages, info


def test_reset_passes_the_task_as_seed_and_shows_prompt_and_text():
    _, messages, info = start(prompt='Open it.')
    assert messages == [{'role': 'system', 'content': 'Open it.'}, {'role': 'user', 'content': 'A door, number 3.'}]
    assert Door.made[-1].seeds == [3]
    assert info == {'tools': [], 'task': 3}


def test_step_without_tools_says_what_the_agent_says_and_sums_rewards():
    env, _, _ = start()
    assert env.step('knock') == ([{'role': 'user', 'content': 'You knock.'}], 0.25, False, False, {'is_error': False})
    assert env.step('shout')[4] == {'is_error': True, 'malformed': False}
    *_, reward, terminated, truncated, info = env.step('turn left')
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert info == {'is_error': False, 'success': True, 'outcome': 1.25}
    assert Door.made[-1].heard == ['knock', 'shout', 'turn left'] and Door.made[-1].closed
    with pytest.raises(ValueError, match='call reset'):
        env.step('knock')


@pytest.mark.parametrize('actions', [ACTIONS, {'turn': 'turn {way}', 'knock': 'knock'}])
def test_step_maps_calls_of_tools_to_action_strings(actions):
    env, _, info = start(actions=actions)
    turn, knock = (tool['function'] for tool in info['tools'])
    assert turn['parameters']['required'] == ['way'] and knock['parameters']['required'] == []
    assert env.step(render('knock', {}))[0] == [{'role': 'tool', 'content': 'You knock.'}]
    assert env.step(render('turn', {'way': 'left'}))[2]
    assert Door.made[-1].heard == ['knock', 'turn left']


@pytest.mark.parametrize('text', ['', 'turn left', render('push', {}), render('turn', {'way': 3}), '<tool_call>'])
def test_step_answers_what_is_no_call_itself(text):
    env, _, _ = start(actions=ACTIONS)
    messages, reward, terminated, truncated, info = env.step(text)
    assert messages[0]['content'].startswith('Error: ') and info == {'is_error': True}
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert Door.made[-1].heard == []


def test_step_truncates_without_success():
    env, _, _ = start(turn_limit=2, success_at=0.5)
    env.step('knock')
    *_, terminated, truncated, info = env.step('knock')
    assert (terminated, truncated) == (False, True)
    assert info == {'is_error': False, 'success': False, 'outcome': 0.5}
    env, _, _ = start()
    assert env.step('wait')[2:4] == (False, True)


def test_success_is_the_environments_own_word_before_the_sum_of_rewards():
    for action, success in (('bad', False), ('good', True)):
        env, _, _ = start(f'{__name__}:Judging', success_at=5.0)
        assert env.step(action)[4]['success'] == success
    env, _, _ = start(success_at=1.5)
    assert not env.step('turn left')[4]['success']


def test_reset_closes_an_episode_that_was_left():
    env, _, _ = start()
    left = Door.made[-1]
    env.reset(options={'task': 4})
    assert left.closed and not Door.made[-1].closed


def test_step_lets_a_failure_through():
    env, _, _ = start()
    with pytest.raises(RuntimeError, match='jammed'):
        env.step('jam')


def test_tasks_are_disjoint_seeds():
    env = Gymnasium(HERE, num_tasks=20)
    assert env.tasks('train') == list(range(20)) and env.tasks('test') == list(range(20, 25))
    assert {env.reset(seed=s)[1]['task'] for s in range(9)} <= set(range(20))
    with pytest.raises(ValueError, match="'train' or 'test'"):
        env.tasks('valid')


@pytest.mark.parametrize(
    ('knobs', 'words'),
    [
        ({}, 'say which environment'),
        ({'gym': 'no_such_module:Name'}, "cannot import 'no_such_module'"),
        ({'gym': HERE, 'turn_limit': 0}, 'turn_limit must be at least 1'),
        ({'gym': HERE, 'outcome_range': 0.0}, 'outcome_range must be above 0'),
        ({'gym': HERE, 'actions': 'turn'}, 'actions must be like'),
        ({'gym': HERE, 'actions': 'turn=turn {a.b}'}, 'actions must be like'),
    ],
)
def test_gymnasium_refuses_knobs_with_the_fix(knobs, words):
    with pytest.raises(ValueError, match=words):
        Gymnasium(**knobs)


def test_text_of_names_what_it_got():
    assert text_of('a') == text_of({'feedback': 'a', 'more': 1}) == 'a'
    with pytest.raises(ValueError, match='got a dict of'):
        text_of({'state': 'a'})
    with pytest.raises(ValueError, match='got list; wrap it'):
        start(f'{__name__}:Silent')


@pytest.mark.parametrize(
    ('gym', 'words'),
    [
        ('json:loads', "'json:loads' must make an environment without arguments: missing a required argument: 's'"),
        ('math:pi', 'not a callable'),
        ('os:getcwd', "'os:getcwd' must make something with reset and step, got str"),
        ('builtins:dict', 'must make something with reset and step, got dict'),  # shows no signature
    ],
)
def test_reset_says_what_a_name_must_make(gym, words):
    with pytest.raises(ValueError, match=words):
        start(gym)


def test_maker_without_the_package_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, 'gymnasium', None)
    with pytest.raises(ValueError, match="pip install 'gymnasium>=1,<2'"):
        Gymnasium('Door-v0')


def test_example_shows_syntax_with_words_of_the_opening():
    env, rng, tools = Gymnasium(HERE, actions=ACTIONS), random.Random(0), set()
    for _ in range(30):
        history, target = env.example(rng)
        call = parse(target, env.reset()[1]['tools'])
        assert call.error is None and set(call.arguments.values()) <= set(history[-1]['content'].split())
        tools.add(call.name)
    assert tools == {'turn', 'knock'}
    assert all(any(part in text for text in env.corpus()) for part in env.special_tokens())


@pytest.mark.parametrize('old', [False, True])
def test_gymnasium_plays_registered_environments_of_either_age(old):
    gymnasium = pytest.importorskip('gymnasium', reason="pip install 'gymnasium>=1,<2'")

    class Registered(gymnasium.Env):
        action_space = gymnasium.spaces.Discrete(2)  # as UserRL's gyms have: what is said is a string all the same
        observation_space = gymnasium.spaces.Dict({})

        if old:

            def reset(self, seed=None):
                return {'feedback': f'old {seed}'}, {}
        else:

            def reset(self, *, seed=None, options=None):
                return {'feedback': f'new {seed}'}, {}

        def step(self, action):
            return {'feedback': action}, 1.0, True, False, {}

    name = f'Registered{old}-v0'
    gymnasium.register(id=name, entry_point=Registered, max_episode_steps=5)
    env, messages, _ = start(name)
    assert messages[0]['content'] == ('old 3' if old else 'new 3')
    assert env.step('go')[4] == {'is_error': False, 'success': True, 'outcome': 1.0}
    with pytest.raises(ValueError, match='package:Name-v0'):
        Gymnasium('Nowhere-v0')
