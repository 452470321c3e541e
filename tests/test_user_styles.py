"""Styles of scripted users: each talks in its manner, and leaves every task to be solved."""

import random
import re

import pytest
import usergym_play as gyms

from infopo_jax.envs.retail import Retail
from infopo_jax.envs.retail.database import ITEMS, PRODUCTS, REASONS
from infopo_jax.envs.retail.expert import act
from infopo_jax.envs.retail.tasks import Request
from infopo_jax.envs.retail.user import CONFUSED, User
from infopo_jax.envs.usergym import UserGym
from infopo_jax.envs.webshop import WebShop, catalog
from infopo_jax.users.styles import STYLES, Manner

EVASIONS = {evasion for style in STYLES.values() for evasion in style.evasions}
CANCEL = 'cancel_order order_17 delay'
TALKING = ('intention', 'travel', 'turtle', 'telepathy', 'persuade')
EXTRA = {'distracted': {0, 1}, 'stubborn': {1}}  # turns that a style may cost a talk with one request; others: none


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
    concerns = {'time', 'why'}  # also words of persuade, whose user names his concern first
    assert not words & {word for gym in TALKING for word in UserGym(gym).gym.words} - concerns
    offered = [catalog.KINDS, catalog.ATTRIBUTES, *catalog.OPTIONS.values()]
    assert not words & {*' '.join(value for values in offered for value in sum(values.values(), ())).split()}


def test_styles_are_the_same_for_the_same_seed():
    for style in STYLES:
        runs = [play(Retail(2, user_style=style), Retail(2).tasks('test')[3], seed=5)[0] for _ in range(2)]
        assert runs[0] == runs[1]


def test_retail_refuses_an_unknown_style_or_one_for_another_user():
    with pytest.raises(ValueError, match=r"user_style must be one of \('plain', .*got 'rude'"):
        Retail(user_style='rude')
    with pytest.raises(ValueError, match='is for the scripted user'):
        Retail(user_style='terse', user=object())


# Our own gyms


def extra_turns(plain, styled):
    """Returns by how many turns the expert takes longer than with the plain user, over the test tasks; all solved."""
    extra = set()
    for seed, task in enumerate(plain.tasks('test')):
        turns = []
        for env in (plain, styled):
            env.reset(seed=seed, options={'task': task})
            info = gyms.play(env, env.expert)
            assert info['success'] and info['outcome'] == 1.0, task
            turns.append(info['turns'])
        extra.add(turns[1] - turns[0])
    return extra


@pytest.mark.parametrize('style', STYLES)
@pytest.mark.parametrize('level', gyms.LEVELS)
@pytest.mark.parametrize('gym', TALKING)
def test_every_gym_stays_solvable_within_the_turn_limit(gym, level, style):
    plain, styled = UserGym(gym, level=level), UserGym(gym, level=level, user_style=style)
    extra = extra_turns(plain, styled)
    assert extra <= EXTRA.get(style, {0}) and max(extra) == max(EXTRA.get(style, {0}))


@pytest.mark.parametrize('gym', TALKING)
def test_gym_tells_the_same_in_every_style(gym):
    heard = {}
    for style in STYLES:
        env, _ = gyms.start(gym, user_style=style)
        question = env.gym.plan()
        heard[style] = [gyms.say(env, *question) for _ in range(2)], env.gym.notes
    replies = {style: [text for text, _ in said] for style, (said, _) in heard.items()}
    assert all(notes == heard['plain'][1] for _, notes in heard.values())
    assert not any(info['is_error'] for said, _ in heard.values() for _, info in said)
    assert replies['terse'] == [', '.join(heard['plain'][1].values())] * 2
    assert all(text.endswith(STYLES['verbose'].chatter) for text in replies['verbose'])
    assert [text in EVASIONS for text in replies['stubborn']] == [True, False]


def test_gym_opens_in_the_manner_of_its_user():
    opening = lambda gym, style: gyms.start(gym, user_style=style)[1][1]['content']  # noqa: E731
    assert opening('intention', 'terse').startswith('Plan a ') and opening('travel', 'terse') == 'An inn.'
    assert opening('persuade', 'verbose').endswith(STYLES['verbose'].chatter)
    for gym, style in (('telepathy', 'verbose'), ('telepathy', 'terse'), ('turtle', 'terse')):
        assert opening(gym, style) == opening(gym, 'plain')  # a table is no talk
    scene, candidates = opening('turtle', 'plain').split(' who: ')
    assert opening('turtle', 'verbose') in {f'{scene} {more} who: {candidates}' for more in STYLES['verbose'].chatter}


def test_stubborn_user_of_a_gym_evades_questions_only():
    env, _ = gyms.start('travel', user_style='stubborn')
    assert gyms.say(env, 'action', 'Bananas.')[1]['is_error'] and gyms.say(env, 'search', 'loft')[0] not in EVASIONS
    assert gyms.say(env, 'action', 'area?')[0] in EVASIONS and 'area' not in env.gym.notes
    puzzle = gyms.deal('persuade', claim='No.', concerns=(('cost', 'figures'), ('time', 'studies')))
    env, _ = gyms.start('persuade', puzzle, user_style='stubborn')
    assert gyms.say(env, 'action', 'cost figures')[0] == 'Fair enough, but still.'
    assert gyms.say(env, 'action', 'why?')[0] in EVASIONS and 'studies' in gyms.say(env, 'action', 'why?')[0]


# The shop


@pytest.mark.parametrize('style', STYLES)
@pytest.mark.parametrize(('level', 'num_hidden', 'turn_limit'), [(1, 1, 9), (1, 3, 9), (2, 2, 9), (2, 4, 11)])
def test_every_wish_can_be_met(level, num_hidden, turn_limit, style):
    knobs = {'level': level, 'num_hidden': num_hidden, 'turn_limit': turn_limit}
    assert extra_turns(WebShop(**knobs), WebShop(**knobs, user_style=style)) == EXTRA.get(style, {0})


def test_customer_tells_the_same_wishes_in_every_style():
    openings, replies = set(), {}
    for style in STYLES:
        env = WebShop(level=2, num_hidden=4, user_style=style)
        openings.add(env.reset(options={'task': env.tasks('test')[0]})[0][1]['content'])
        asks = ('feature', 'feature', 'color', 'size', 'price', 'weather')
        replies[style] = [env.step(f'ask[{fact}]')[0][0]['content'] for fact in asks]
    assert len(openings) == 1
    feature, _, color, size, price, none = plain = replies['plain']
    values = [color.removeprefix('color: '), size.removeprefix('size: '), re.search(r'[\d.]+', price)[0]]
    assert replies['terse'] == [feature, feature, *values, none]
    for text, verbose in zip(plain, replies['verbose'], strict=True):
        assert verbose.startswith(f'{text}. ') and verbose.endswith(STYLES['verbose'].chatter)
    assert replies['stubborn'][0] in EVASIONS and replies['stubborn'][1:] == plain[1:]


# What all of them share


def test_examples_of_a_style_are_drawn_in_it():
    for env in (UserGym('intention', user_style='stubborn'), WebShop(num_hidden=2, user_style='stubborn')):
        assert set(env.corpus()) & EVASIONS


@pytest.mark.parametrize(
    ('make', 'knobs', 'words'),
    [
        (UserGym, {'user_style': 'rude'}, 'user_style must be one of'),
        (UserGym, {'gym': 'function', 'user_style': 'terse'}, "nobody talks in gym 'function': .* got 'terse'"),
        (UserGym, {'gym': 'search', 'user_style': 'terse'}, "nobody talks in gym 'search'"),
        (UserGym, {'gym': 'TauGym', 'user_style': 'terse'}, "gym 'TauGym' has no knob 'user_style'"),
        (UserGym, {'gym': 'travel', 'user_style': 'terse', 'user': object()}, "gym 'travel' has no knob 'user'"),
        (WebShop, {'num_hidden': 1, 'user_style': 'rude'}, 'user_style must be one of'),
        (WebShop, {'user_style': 'terse'}, "user_style='terse' .* set num_hidden to 1 or more"),
    ],
)
def test_gyms_and_shop_refuse_a_style_where_nobody_talks(make, knobs, words):
    with pytest.raises(ValueError, match=words):
        make(**knobs)
    assert UserGym('search', user_style='plain') and WebShop(user_style='plain')


def request():
    answers = {'order': ('order', 'order_1'), 'reason': ('reason', 'delay')}
    return Request('cancel_order', {'order': 'order_1'}, answers)
