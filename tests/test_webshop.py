"""Episodes in the embedded shop, and what is taught of them."""

import random
import re

import numpy as np
import pytest

from infopo_jax.envs.webshop import WebShop, pages
from infopo_jax.lm.tokenizer import train_tokenizer

SETTINGS = [(1, 0), (1, 3), (2, 0), (2, 2)]  # level, num_hidden


def play(env, task, policy):
    """Plays to the end; returns the last step's info and the number of turns."""
    env.reset(options={'task': task})
    for turns in range(1, env.max_turns + 1):
        *_, terminated, truncated, info = env.step(policy())
        if terminated or truncated:
            return info, turns
    raise AssertionError('the episode did not end')


# Episodes


@pytest.mark.parametrize(('level', 'num_hidden'), SETTINGS)
def test_expert_meets_every_wish(level, num_hidden):
    env = WebShop(level=level, num_hidden=num_hidden)
    for task in [*env.tasks('test'), *env.tasks('train')[::5]]:
        info, turns = play(env, task, env.expert)
        assert info == {'is_error': False, 'success': True, 'outcome': 1.0}
        assert turns >= 3 + level + num_hidden


@pytest.mark.parametrize(('level', 'num_hidden'), SETTINGS)
def test_random_play_earns_little_and_doing_nothing_none(level, num_hidden):
    env, rng = WebShop(level=level, num_hidden=num_hidden), random.Random(0)
    infos = [play(env, task, lambda: env.random_action(rng))[0] for task in env.tasks('test')]
    assert 0.01 < np.mean([info['outcome'] for info in infos]) < 0.2
    assert np.mean([info['success'] for info in infos]) < 0.03
    for text in ('', 'hello', 'search[hello]', 'click[Buy Now]'):
        info, turns = play(env, env.tasks('test')[0], lambda text=text: text)
        assert not info['success'] and info['outcome'] == 0.0 and turns == 9


def test_random_action_is_legal():
    env, rng = WebShop(num_hidden=2), random.Random(1)
    for task in env.tasks('train')[:50]:
        env.reset(options={'task': task})
        terminated = truncated = False
        while not (terminated or truncated):
            *_, terminated, truncated, info = env.step(env.random_action(rng))
            assert not info['is_error']


def test_step_pays_at_the_purchase():
    env = WebShop(level=1)
    task = env.tasks('test')[0]
    messages, info = env.reset(options={'task': task})
    assert info['task'] == task and messages[1]['content'].startswith('Instruction: i need a')
    [message], earned, terminated, truncated, info = env.step(env.expert())
    assert (earned, terminated, truncated, info) == (0.0, False, False, {'is_error': False})
    env.step(f'click[{re.search(r"B0[A-Z]{4}", message["content"])[0]}]')
    _, earned, terminated, _, info = env.step('click[Buy Now]')
    assert terminated and 0 < earned < 1 and info == {'is_error': False, 'success': False, 'outcome': earned}
    with pytest.raises(ValueError, match='call reset'):
        env.step('click[Buy Now]')


@pytest.mark.parametrize(
    ('text', 'is_action'),
    [
        ('', False), ('buy', False), ('ask[color]', False),
        ('click[nothing]', True), ('search[]', True), ('search[ ]', True), ('click[Buy Now]', True),
    ],
)  # fmt: skip
def test_step_answers_what_does_nothing_with_an_error(text, is_action):
    env = WebShop()
    env.reset()
    [message], earned, terminated, truncated, info = env.step(text)
    assert message['content'].startswith('Error: ')
    assert info == {'is_error': True} | ({'malformed': False} if is_action else {})
    assert (earned, terminated, truncated) == (0.0, False, False)


def test_customer_tells_what_is_hidden_when_asked():
    env = WebShop(level=2, num_hidden=4)
    for task in env.tasks('train')[:20]:
        opening = env.reset(options={'task': task})[0][1]['content']
        attributes, options = task.split(' | ')[1:3], task.split(' | ')[3:5]
        assert not any(f' {value}' in opening for value in (*attributes, *options)) and 'dollars' not in opening
        told = ' '.join(env.step(f'ask[{name}]')[0][0]['content'] for name in ('Feature', 'color', 'size', 'price'))
        assert all(value in told for value in attributes) and task.split(' | ')[-1] in told
        assert env.step('ask[weather]')[0][0]['content'] == 'i have no wish about that'
    assert env.reset(seed=1, options={'task': task}) == env.reset(seed=2, options={'task': task})


def test_reset_draws_a_training_task_and_refuses_unknown_ones():
    env = WebShop(level=1)
    assert {env.reset(seed=seed)[1]['task'] for seed in range(20)} <= set(env.tasks('train'))
    for task in ('nothing', 7, ['a'], WebShop(level=2).tasks('train')[0]):
        with pytest.raises(ValueError, match='unknown task'):
            env.reset(options={'task': task})
    with pytest.raises(ValueError, match="'train' or 'test'"):
        env.tasks('valid')


@pytest.mark.parametrize(
    ('knobs', 'message'),
    [
        ({'level': 3}, 'level must be one of'),
        ({'turn_limit': 0}, 'turn_limit must be at least 1'),
        ({'level': 1, 'num_hidden': 4}, 'num_hidden must be from 0 to 3'),
        ({'page_size': 0}, 'page_size'),
    ],
)
def test_webshop_refuses_knobs_out_of_range(knobs, message):
    with pytest.raises(ValueError, match=message):
        WebShop(**knobs)


# What is taught


@pytest.mark.parametrize(('level', 'num_hidden'), [(1, 0), (2, 2)])
def test_example_is_legal_copies_and_meets_no_wish(level, num_hidden):
    env, rng = WebShop(level=level, num_hidden=num_hidden), random.Random(0)
    train, hidden, verbs = set(env.tasks('train')), 0, set()
    openings = {env.reset(options={'task': task})[0][1]['content']: task for task in train}
    for _ in range(300):
        history, target = env.example(rng)
        replay = WebShop(level=level, num_hidden=num_hidden)
        shown = replay.reset(options={'task': openings[history[1]['content']]})[0][1]['content']
        for action, reply in zip(history[2::2], history[3::2], strict=True):
            [message] = replay.step(action['content'])[0]
            if num_hidden == 0:  # else two tasks may open alike
                assert reply['content'] in (message['content'], env.placeholder)
            hidden += reply['content'] == env.placeholder
            shown += message['content']
        verb, argument = pages.parse(target, can_ask=num_hidden > 0)
        verbs.add(verb)
        if num_hidden == 0:
            assert verb == 'search' or argument in shown.lower()
            assert all(word in shown for word in argument.split()) or verb == 'click'
            *_, info = replay.step(target)
            assert not info['is_error'] and not info.get('success')
    assert 50 < hidden < 250 and verbs == {'search', 'click'} | ({'ask'} if num_hidden else set())


def test_example_never_ends_with_the_right_purchase(monkeypatch):
    monkeypatch.setattr(WebShop, 'random_action', lambda self, rng: self.expert())  # lucky draws only
    targets = {WebShop(level=1).example(random.Random(seed))[1] for seed in range(100)}
    assert len(targets) > 20 and 'click[Buy Now]' not in targets


def test_example_leaves_a_running_episode_alone():
    env = WebShop(level=1)
    env.reset(options={'task': env.tasks('test')[0]})
    env.step(env.expert())
    before = env.expert()
    env.example(random.Random(0))
    env.corpus()
    assert env.expert() == before


def test_tokenizer_keeps_what_is_copied_whole():
    env = WebShop(level=1)
    tokenizer = train_tokenizer(env.corpus(), env.special_tokens(), vocab_size=640)
    for text, most in (('click[B0KATO]', 5), ('click[Buy Now]', 3), ('search[slim fit shirt]', 5)):
        ids = tokenizer.encode(text)
        assert len(ids) <= most and tokenizer.decode(ids) == text
