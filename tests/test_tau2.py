"""tau2-bench: our side of it, with another in the place of the real package (see test_tau2_package.py)."""

import stat
import sys

import pytest
from endpoint import EndpointUser

from infopo_jax.envs import remote
from infopo_jax.envs.tau2 import Tau2
from infopo_jax.envs.tools import render
from infopo_jax.users import UserFailed

TOOLS = [
    {'type': 'function', 'function': {'name': name, 'parameters': {'properties': properties, 'type': 'object'}}}
    for name, properties in (('refuel', {'gb': {'type': 'number'}}), ('done', {}))
]
WORDS = {'role': 'user', 'content': 'fine', 'terminated': False}


@pytest.fixture(scope='module', autouse=True)
def end_interpreters():
    yield
    remote.close_all()


class Far:
    """Stands for the other interpreter: answers from a list, keeps what it was asked."""

    def __init__(self, *answers):
        self.answers, self.asked, self.closed = list(answers), [], 0

    def call(self, method, **arguments):
        self.asked.append((method, arguments))
        return self.answers.pop(0)

    def close(self):
        self.closed += 1


def play(*answers, **knobs):
    env = Tau2(**{'domain': 'retail', 'user': EndpointUser(), **knobs})
    opening = {'messages': [{'role': 'system', 'content': 'be kind'}], 'tools': TOOLS, 'version': '1.0.1'}
    env._remote = Far(opening, *answers)
    env.reset(options={'task': '7'})
    return env


@pytest.mark.parametrize(
    ('text', 'sent'),
    [
        ('Hello. ', {'text': 'Hello.'}),
        ('<think>He is cross.</think>Hello.', {'text': 'Hello.'}),
        ('{"name": "refuel", "arguments": {"gb": 2}}', {'text': '{"name": "refuel", "arguments": {"gb": 2}}'}),
        (render('refuel', {'gb': 2}), {'call': {'name': 'refuel', 'arguments': {'gb': 2}}}),
        ('One moment. ' + render('done', {}), {'call': {'name': 'done', 'arguments': {}}}),
    ],
)
def test_step_sends_text_or_one_call(text, sent):
    env = play(WORDS)
    messages, reward, terminated, truncated, info = env.step(text)
    assert env._remote.asked[-1] == ('step', {'action': sent})
    assert messages == [{'role': 'user', 'content': 'fine'}] and info == {'is_error': False}
    assert (reward, terminated, truncated) == (0.0, False, False)


@pytest.mark.parametrize(
    ('text', 'error'),
    [
        ('<tool_call>{"name"', 'a call must stand between'),
        (render('refuel', {'gb': 'two'}), 'argument "gb" of refuel must be of type number'),
        (render('refule', {}), 'no tool "refule"; did you mean "refuel"?'),
        (render('done', {}) * 2, 'more than one call'),
        ('', 'say something, or call a tool'),
        ('<think>Hm.</think>', 'say something, or call a tool'),
    ],
)
def test_step_answers_what_is_no_action_itself(text, error):
    env = play()
    messages, _, terminated, truncated, info = env.step(text)
    assert messages[0]['role'] == 'tool' and messages[0]['content'].startswith(f'Error: {error}')
    assert info == {'is_error': True} and not terminated and not truncated
    assert len(env._remote.asked) == 1  # the package never hears of it


@pytest.mark.parametrize(('solo', 'error'), [(False, UserFailed), (True, remote.RemoteTimeout)])
def test_a_late_answer_is_the_users_failure_where_there_is_one(solo, error):
    env = play(domain='telecom', solo=solo, user=None if solo else EndpointUser())

    def late(method, **arguments):
        raise remote.RemoteTimeout('no answer within 5 s')

    env._remote.call = late
    with pytest.raises(error, match='within 5 s'):
        env.step(render('refuel', {'gb': 2}))


def test_step_tells_a_solo_agent_that_there_is_no_user():
    env = play(domain='telecom', solo=True, user=None)
    assert 'there is no user' in env.step('Hello?')[0][0]['content']


def test_step_marks_errors_of_tools_alone():
    env = play(WORDS | {'role': 'tool', 'content': 'Error: no such line'}, WORDS | {'content': 'Error: I am cross'})
    assert [env.step('hm')[4] for _ in range(2)] == [{'is_error': True, 'malformed': False}, {'is_error': False}]


@pytest.mark.parametrize(
    ('reason', 'reward', 'ends', 'success'),
    [
        ('user_stop', 1.0, (True, False), True),
        ('agent_stop', 0.5, (True, False), False),
        ('too_many_errors', 0.0, (True, False), False),
        ('max_steps', 0.0, (False, True), False),
        ('timeout', 0.0, (False, True), False),
    ],
)
def test_step_reads_how_it_ended(reason, reward, ends, success):
    end = {'terminated': True, 'reason': reason, 'reward': reward, 'parts': {'DB': reward}, 'user_cost': 0.01}
    env = play(WORDS | end)
    _, got, terminated, truncated, info = env.step('bye')
    assert (got, (terminated, truncated)) == (reward, ends)
    assert (info['success'], info['outcome'], info['reason'], info['user_cost']) == (success, reward, reason, 0.01)
    assert env._remote.closed == 2  # at reset and at the end
    with pytest.raises(ValueError, match='call reset first'):
        env.step('hello?')


def test_step_cuts_after_max_turns_with_nothing_earned():
    env = play(WORDS, turn_limit=2)
    env.step('one')
    _, reward, terminated, truncated, info = env.step(render('nothing', {}))
    assert (reward, terminated, truncated, info['success'], info['outcome']) == (0.0, False, True, False, 0.0)
    assert info['reason'] == 'max_turns'


def test_reset_seeds_the_user_by_rollout():
    env = Tau2('airline', user=EndpointUser())
    seeds = []
    for seed, member in ((0, 0), (0, 1), (1, 0), (0, 0)):
        env._remote = Far({'messages': [], 'tools': [], 'version': ''})
        env.reset(seed=seed, options={'task': 3, 'member': member})
        assert env._remote.asked[0][1]['task'] == '3'
        seeds.append(env._remote.asked[0][1]['seed'])
    assert len(set(seeds)) == 3 and seeds[0] == seeds[3] and all(0 <= seed < 2**31 for seed in seeds)


@pytest.mark.parametrize(
    ('knobs', 'message'),
    [
        ({'domain': 'banking'}, 'domain must be one of'),
        ({'domain': 'retail'}, "needs a language model as its user: set config.user.name='openai'"),
        ({'domain': 'telecom', 'solo': False}, 'needs a language model'),
        ({'domain': 'retail', 'solo': True}, 'only telecom can be played solo'),
        ({'domain': 'telecom-solo', 'solo': False}, 'only telecom'),
        ({'evaluation': 'some'}, "must be 'all' or 'env'"),
        ({'turn_limit': 0}, 'at least 1'),
    ],
)
def test_tau2_refuses_what_does_not_exist(knobs, message):
    with pytest.raises(ValueError, match=message):
        Tau2(**knobs)


def test_tau2_plays_telecom_alone_unless_there_is_a_user():
    assert Tau2().solo and Tau2('telecom-solo').solo and Tau2('telecom-solo').domain == 'telecom'
    assert not Tau2(user=EndpointUser()).solo


def test_missing_package_gives_the_install_command():
    with pytest.raises(
        ValueError, match=r"(?s)cannot be used: .*No module named.*git clone https.*pip install './tau2-"
    ):
        Tau2(python=interpreter_with(None)).tasks('train')


def test_the_index_package_of_that_name_gives_the_install_command(tmp_path):
    python = interpreter_with(tmp_path)
    named = r'(?s)another package named tau2 is installed there.*not the package tau2 of the'
    with pytest.raises(ValueError, match=named):
        Tau2(python=python).tasks('train')


def interpreter_with(folder):
    """Returns an interpreter with a physics package named tau2 in a folder; without a folder, one without tau2."""
    if folder is None:
        return sys.executable
    for name in ('tau2', 'loguru'):
        (folder / name).mkdir()
    (folder / 'tau2' / '__init__.py').write_text('def lepton_mass(): return 1776.86\n')
    (folder / 'loguru' / '__init__.py').write_text('class logger:\n    remove = staticmethod(lambda: None)\n')
    script = folder / 'python'
    script.write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return str(script)
