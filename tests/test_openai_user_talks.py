"""Whole talks with a user behind an endpoint."""

import random

import pytest

pytest.importorskip('httpx', reason="the openai user needs httpx: pip install 'infopo_jax[users]'")

from dialogues import exchange
from endpoint import Endpoint
from openai_user import ask, hurry
from talk import tiny_chat

from infopo_jax.envs.retail import Retail
from infopo_jax.envs.tools import render
from infopo_jax.rollout.dialogue import Dialogue, Limits
from infopo_jax.types import EndReason


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    hurry(monkeypatch)


def shopper(request):
    """Plays the customer of retail as a language model would: reads his instructions, answers what is asked for."""
    system, asked = request['messages'][0]['content'], request['messages'][-1]['content']
    fact = next(line for line in system.splitlines() if line.startswith('- ') and line.split()[1].strip(':') in asked)
    return f'Here you are: {fact.partition(": ")[2]}'


def finish(env, seed=0, member=0):
    env.reset(seed=seed, options={'task': 'cancel_order order_17 delay', 'member': member})
    said = [env.step(text)[0][0]['content'] for text in ('Tell me the order.', 'And the reason?')]
    call = render('cancel_order', {'order': 'order_17', 'reason': 'delay'})
    return said, env.step(call)


def test_retail_is_played_with_a_model_as_its_customer():
    with Endpoint(lambda _, request: shopper(request)) as endpoint:
        said, (messages, reward, terminated, _, info) = finish(Retail(user=ask(endpoint)))
    assert said == ['Here you are: order_17', 'Here you are: delay']
    assert terminated and reward == 1.0 and info['success'] and messages[-1]['content'].startswith('Thank you')
    last = endpoint.requests[-1]['messages']
    assert [m['role'] for m in last] == ['system', 'assistant', 'user', 'assistant', 'user']
    assert 'cancel' in last[1]['content'] and last[3]['content'] == said[0]


def test_members_of_a_group_draw_answers_of_their_own(tmp_path):
    with Endpoint(lambda number, _: f'answer {number}') as endpoint:
        env = Retail(user=ask(endpoint, cache_dir=str(tmp_path)))
        first, second, again = (finish(env, member=member)[0] for member in (0, 1, 0))
    assert first != second and first == again


def test_a_model_that_plays_does_not_decide_what_was_done():
    with Endpoint(lambda *_: 'Thank you, all is well!') as endpoint:
        env = Retail(user=ask(endpoint))
        env.reset(options={'task': 'cancel_order order_17 delay'})
        env.step('Which order?')
        _, reward, terminated, _, info = env.step(render('cancel_order', {'order': 'order_17', 'reason': 'price'}))
    assert terminated and reward == 0.0 and not info['success']


def test_examples_for_the_warm_start_ask_nobody():
    with Endpoint() as endpoint:
        env = Retail(user=ask(endpoint))
        for seed in range(20):
            env.example(random.Random(seed))
    assert not endpoint.requests


def roll_out(env, chat, member):
    dialogue = Dialogue(
        chat, Limits(6, 900, 600, 60, 200, 3), 'cancel_order order_17 delay', group=0, member=member, seed=member
    )
    exchange(dialogue, env)
    calls = ['Which order?', 'Why?', 'Which order?', render('cancel_order', {'order': 'order_17', 'reason': 'delay'})]
    for text in calls:
        while dialogue.pending:
            dialogue.take(50)
        if not dialogue.ended:
            ids = [*chat.encode(text), chat.stop_id]
            dialogue.hear(ids, [0.0] * len(ids))
            exchange(dialogue)
    return dialogue


@pytest.mark.parametrize('retries', [0, 5])
def test_with_a_third_of_all_calls_failing_no_rollout_is_lost(retries):
    failures = [(500, {}, ''), 'DROP', (429, {'Retry-After': '0.01'}, ''), (200, {}, '{'), (200, {}, '{"choices": []}')]
    rng, chat = random.Random(0), tiny_chat()

    def plan(number, request):
        return rng.choice(failures) if rng.random() < 1 / 3 else 'order_17, I think.'

    with Endpoint(plan) as endpoint:
        user = ask(endpoint, retries=retries)
        dialogues = [roll_out(Retail(user=user), chat, member) for member in range(20)]
    counts, ends = user.counters(), [d.end_reason for d in dialogues]
    masked = [d for d in dialogues if not d.valid]
    assert all(d.end_reason == EndReason.DONE and d.success for d in dialogues if d.valid)
    assert all('no answer after 1 tries' in d.error_text for d in masked)
    assert len(masked) == counts['failed_calls'] and ends.count(EndReason.DONE) == 20 - len(masked)
    if retries:
        assert not masked and counts['retried_calls'] >= 10
    else:
        assert 8 <= len(masked) <= 19 and counts['retries'] == 0
