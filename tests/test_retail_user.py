"""The scripted customer of the retail world."""

import random

import pytest

from infopo_jax.envs.retail.tasks import Request
from infopo_jax.envs.retail.user import User, asked

REFUND = Request('return_item', {'order': 'order_3'}, {'order': ('order', 'order_3')}, refund='$40')
PLAIN = Request('cancel_order', {'order': 'order_1'}, {'order': ('order', 'order_1'), 'reason': ('reason', 'delay')})


def user(*requests, states_intent=True):
    return User(requests, random.Random(0), states_intent=states_intent)


@pytest.mark.parametrize(
    ('text', 'facts'),
    [
        ('Which order?', ['order']),
        ('May I have your ORDER id?', ['order']),
        ('Why do you want to cancel it?', ['reason']),
        ('For which order, and what is the reason?', ['order', 'reason']),
        ('Which new item?', ['new_item']),
        ('Which item do you want instead?', ['new_item']),
        ('How would you like to pay?', ['payment']),
        ('Who are you?', ['customer']),
        ('How can I help?', ['intent']),
        ('Bananas.', []),
    ],
)
def test_asked_reads_keywords(text, facts):
    assert asked(text) == facts


def test_user_answers_once_and_then_says_that_he_has_answered():
    customer = user(PLAIN)
    customer.open()
    assert 'order_1' in customer.hear('Which order?')
    again = customer.hear('Which order?')
    assert 'order_1' in again and 'said' in again
    assert 'delay' in customer.hear('Which order, and why?')  # the question that is still open
    assert not customer.done


def test_user_does_not_understand_and_goes_on():
    customer = user(PLAIN)
    assert customer.hear('') in ('I do not understand.', 'What do you mean?')
    assert not customer.done


def test_user_goes_on_to_the_next_request_and_stops_when_done():
    customer = user(PLAIN, REFUND, states_intent=False)
    assert customer.open().startswith('Hello') and 'cancel' in customer.hear('How can I help?')
    assert 'refund' in customer.notice('cancel_order', {'order': 'order_1'})
    assert customer.notice('return_item', {'order': 'order_3'}) is None and not customer.done
    assert customer.hear('Your refund is $40.').startswith('Thank you') and customer.done and customer.content


@pytest.mark.parametrize('text', ['Your refund is $45.', 'It is $40 or $45.'])
def test_user_leaves_when_told_another_amount(text):
    customer = user(REFUND)
    customer.notice('return_item', {'order': 'order_3'})
    customer.hear(text)
    assert customer.done and not customer.content


def test_user_leaves_when_the_amount_is_told_before_the_change():
    customer = user(REFUND)
    customer.hear('$40')
    assert customer.done and not customer.content
