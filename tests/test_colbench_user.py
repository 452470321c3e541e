"""The collaborator: scripted, or a model."""

import random

import pytest
from colbench_play import GOAL, Parrot, needs_sandbox, start, texts

from infopo_jax.envs.colbench.functions import ASKS
from infopo_jax.envs.colbench.tasks import make
from infopo_jax.envs.colbench.user import UNKNOWN, ModelUser, ScriptedUser, asked
from infopo_jax.users import UserFailed

pytestmark = needs_sandbox


@pytest.mark.parametrize(
    ('text', 'found'),
    [
        *[(ask, [slot]) for slot, ask in ASKS.items()],
        ('From which amount on does it apply?', ['limit']),
        ('How many PERCENT is it?', ['limit', 'rate']),
        ('Who gets it, and what is the fee?', ['group', 'fee']),
        ('What is the maximum?', ['cap']),
        ('Do you want whole numbers? How is it rounded?', ['rounding']),
        ('Hello there.', []),
        ('', []),
    ],
)
def test_asked_reads_keywords(text, found):
    assert asked(text) == found


def test_user_answers_once_and_then_says_that_he_has_answered():
    user = ScriptedUser(make(1, GOAL), random.Random(0))
    assert '150' in user.hear('Which limit?') and 'said' not in user.hear('Which rate?')
    again = user.hear('Which limit?')
    assert '150' in again and 'said' in again
    fresh = ScriptedUser(make(1, GOAL), random.Random(0))
    fresh.hear('Which limit?')
    assert '15' in fresh.hear('Which limit, and which rate?').split('.')[0].split()  # what is still open


def test_user_knows_nothing_of_what_the_function_does_not_need():
    user = ScriptedUser(make(1, GOAL), random.Random(0))
    assert user.hear('Which fee?') in UNKNOWN and user.hear('Which fee?') in UNKNOWN
    assert user.hear('Bananas?') in ('I do not understand.', 'What do you mean?')


def test_user_varies_his_words():
    said = {ScriptedUser(make(1, GOAL), random.Random(seed)).hear('Which limit?') for seed in range(30)}
    assert len(said) == 3 and all('150' in text for text in said)


@pytest.mark.parametrize('answer', ['', '  ', 7])
def test_a_user_who_says_nothing_has_failed(answer):
    with pytest.raises(UserFailed, match='empty answer'):
        ModelUser(make(1, GOAL), Parrot(answer), nonce='').hear('Which limit?')


def test_a_user_may_play_generated_tasks():
    env, _ = start(user=Parrot('It is 150.'))
    assert texts(env.step('Which limit?')[0]) == ['It is 150.']
