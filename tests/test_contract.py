"""What an environment may open and answer with: what breaks the contract, fails its rollout and says why."""

import pytest
from chat_templates import tokenizer_of
from dialogues import ROOMY, begin, feed, say, utter
from talk import Colour

from infopo_jax.envs.text import step_info
from infopo_jax.lm.chat import Chat
from infopo_jax.types import EndReason


class Breaks(Colour):
    """Opens, or answers, with what it is given."""

    def __init__(self, *, opening=('which colour', {}), answer=('it is ', 0.0, False, False, {})):
        super().__init__()
        self.opening, self.answer = opening, answer

    def reset(self, *, seed=0, options=None):
        return self.opening

    def step(self, text):
        return self.answer


def ended(outcome):
    return 'nothing', 0.5, True, False, {'success': True, 'outcome': outcome}


@pytest.mark.parametrize('is_malformed', [False, True])
@pytest.mark.parametrize('is_error', [False, True])
def test_step_info_says_what_counts_towards_max_bad_actions(is_error, is_malformed):
    info = step_info(is_error=is_error, is_malformed=is_malformed)
    assert (info['is_error'], info.get('malformed', info['is_error'])) == (is_error, is_malformed)
    assert ('malformed' in info) == (is_error != is_malformed)


@pytest.mark.parametrize(
    ('answer', 'words'),
    [
        (([{'role': 'user'}], 0.0, False, False, {}), "{'role': str, 'content': str}, got {'role': 'user'}"),
        (([{'role': 'user', 'content': None}], 0.0, False, False, {}), "'content': None"),
        (([{'content': 'red'}], 0.0, False, False, {}), "got {'content': 'red'}"),
        ((['red'], 0.0, False, False, {}), "got 'red'"),
        ((None, 0.0, False, False, {}), 'NoneType'),
        (('\ud800', 0.0, False, False, {}), ''),  # half a character
        (('red', None, False, False, {}), 'the reward must be a finite number, got None'),
        (('red', float('nan'), False, False, {}), 'the reward must be a finite number, got nan'),
        (('red', 0.0, False, False, None), 'NoneType'),
        (ended(None), "info['outcome'] must be a finite number, got None"),
        (ended('won'), "info['outcome'] must be a finite number, got 'won'"),
        (ended(float('inf')), "info['outcome'] must be a finite number, got inf"),
        (None, 'NoneType'),
    ],
    ids=str,
)
def test_an_answer_that_breaks_the_contract_fails_its_rollout_and_says_why(answer, words):
    d = say(begin(env=Breaks(answer=answer)), 'ask')
    assert (d.end_reason, d.valid, d.success, d.outcome) == (EndReason.ENV_ERROR, False, False, 0.0)
    assert 'breaks the contract of envs/text.py: ' in d.error_text and words in d.error_text
    assert d.num_turns == len(d.rewards) == len(d.errors) == 1 and not d.pending and not d.waiting


@pytest.mark.parametrize(
    'opening',
    [
        ([{'role': 'system', 'content': None}, {'role': 'user', 'content': 'which colour'}], {}),
        ([{'role': 'user'}], {}),
        ([], {}),
        ('which colour', {'tools': [{'name': 'ask'}, 3]}),
        ('which colour', None),
        'which colour',
    ],
    ids=str,
)
def test_an_opening_that_breaks_the_contract_fails_its_rollout(opening):
    d = begin(env=Breaks(opening=opening))
    assert (d.end_reason, d.valid, d.num_turns) == (EndReason.ENV_ERROR, False, 0)
    assert 'breaks the contract of envs/text.py: ' in d.error_text and d.ids


def test_a_role_that_the_chat_template_refuses_fails_its_rollout():
    chat = Chat(tokenizer_of('gemma'))  # user and model are to alternate, and the model has just spoken
    env = Breaks(answer=([{'role': 'assistant', 'content': 'red'}], 0.0, False, False, {}))
    d = begin(chat=chat, env=env, **ROOMY)
    feed(d)
    utter(d, chat, 'red', chat.stop_id)
    assert (d.end_reason, d.valid) == (EndReason.ENV_ERROR, False)
    assert "the chat template cannot render messages of the roles ['user', 'assistant', 'assistant']" in d.error_text
