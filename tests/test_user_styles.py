"""Styles of scripted users: each talks in its manner, and leaves every task to be solved."""

import random
import re

import pytest

from infopo_jax.envs.retail import Retail
from infopo_jax.envs.retail.database import ITEMS, PRODUCTS, REASONS
from infopo_jax.envs.retail.expert import act
from infopo_jax.envs.retail.tasks import Request
from infopo_jax.envs.retail.user import CONFUSED, User
from infopo_jax.users.styles import STYLES, Manner

EVASIONS = {evasion for style in STYLES.values() for evasion in style.evasions}
CANCEL = 'cancel_order order_17 delay'


def patient(messages):
    """Plays the expert, who asks again when a question was evaded."""
    kept = list(messages)
    for i in range(len(messages) - 1, 0, -1):
        if messages[i]['content'] in EVASIONS:
            del kept[i - 1 : i + 1]
    return act(kept)


def play(env, task, seed=0):
    messages, _ = env.reset(seed=seed, options={'task': task})
    while True:
        action = patient(messages)
        answer, _, terminated, truncated, info = env.step(action)
        messages = [*messages, {'role': 'assistant', 'content': action}, *answer]
        if terminated or truncated:
            return messages, info


def said(messages):
    return [message['content'] for message in messages if message['role'] == 'user']


def test_terse_user_says_the_bare_value():
    messages, info = play(Retail(user_style='terse'), CANCEL)
    assert said(messages)[0] in ('Cancel an order.', 'Cancel my order.')
    assert said(messages)[1:3] == ['order_17', 'delay'] and info['success']


def test_verbose_user_says_what_the_plain_one_says_and_more():
    plain = User((request(),), random.Random(0), states_intent=True)
    verbose = User((request(),), random.Random(0), states_intent=True, style='verbose')
    for text in (plain.open(), verbose.open()):
        assert text.startswith(('I want to cancel an order.', 'Please cancel my order.'))
    answer = verbose.hear('Which order?')
    assert re.match(r'(It is|My order is)? ?order_1[.,]', answer)
    assert answer.endswith(STYLES['verbose'].chatter)


def test_stubborn_user_evades_the_first_question_about_each_request():
    customer = User((request(), request()), random.Random(0), states_intent=True, style='stubborn')
    customer.open()
    for _ in range(2):
        assert customer.hear('Which order?') in STYLES['stubborn'].evasions
        assert 'order_1' in customer.hear('Which order?') and 'delay' in customer.hear('Why?')
        customer.notice('cancel_order', {'order': 'order_1'})
    assert customer.done and customer.content


def test_distracted_user_evades_about_half_of_the_requests():
    evaded = 0
    for seed in range(400):
        customer = User((request(),), random.Random(seed), states_intent=True, style='distracted')
        customer.open()
        replies = [customer.hear('Which order?') for _ in range(3)]
        assert sum(reply in EVASIONS for reply in replies) <= 1
        evaded += replies[0] in EVASIONS
    assert 160 <= evaded <= 240  # four standard deviations about 200


def test_an_evaded_question_counts_as_not_asked():
    customer = User((request(),), random.Random(0), states_intent=True, style='stubborn')
    customer.open()
    customer.hear('Which order?')
    assert 'said' not in customer.hear('Which order?')  # no 'I already said order_1.'


def test_what_is_not_understood_is_not_evaded():
    customer = User((request(),), random.Random(0), states_intent=True, style='stubborn')
    assert customer.hear('Bananas.') in CONFUSED


def test_plain_manner_draws_nothing_and_changes_nothing():
    rng = random.Random(3)
    state, manner = rng.getstate(), Manner('plain', rng)
    assert manner.say('It is order_1.', 'order_1') == 'It is order_1.' and manner.evade() is None
    assert rng.getstate() == state


@pytest.mark.parametrize('style', STYLES)
@pytest.mark.parametrize('level', [1, 2, 3])
def test_every_task_stays_solvable_within_the_turn_limit(level, style):
    env = Retail(level, user_style=style)
    for seed, task in enumerate(env.tasks('test')):
        messages, info = play(env, task, seed)
        assert info['success'], messages


def test_a_stubborn_user_costs_one_turn_for_each_request():
    for level, requests in ((1, 1), (2, 1), (3, 2)):
        task = Retail(level).tasks('test')[0]
        turns = [
            sum(message['role'] == 'assistant' for message in play(Retail(level, user_style=style), task)[0])
            for style in ('plain', 'stubborn')
        ]
        assert turns[1] - turns[0] == requests


def test_no_text_of_a_style_can_be_taken_for_a_value():
    texts = [text for style in STYLES.values() for text in (*style.chatter, *style.evasions)]
    words = set(re.findall(r'\w+', ' '.join(texts).lower()))
    assert texts and not words & {*REASONS, *PRODUCTS, *ITEMS, 'cancel', 'exchange', 'return', 'refund', 'order', 'pay'}
    assert not re.search(r'[\d_$]', ' '.join(texts))


def test_styles_are_the_same_for_the_same_seed():
    for style in STYLES:
        runs = [play(Retail(2, user_style=style), Retail(2).tasks('test')[3], seed=5)[0] for _ in range(2)]
        assert runs[0] == runs[1]


def test_retail_refuses_an_unknown_style_or_one_for_another_user():
    with pytest.raises(ValueError, match=r"user_style must be one of \('plain', .*got 'rude'"):
        Retail(user_style='rude')
    with pytest.raises(ValueError, match='is for the scripted user'):
        Retail(user_style='terse', user=object())


def request():
    answers = {'order': ('order', 'order_1'), 'reason': ('reason', 'delay')}
    return Request('cancel_order', {'order': 'order_1'}, answers)
