"""Replays of what a user has answered."""

import json

import pytest

pytest.importorskip('httpx', reason="the openai user needs httpx: pip install 'infopo_jax[users]'")

from endpoint import Endpoint
from openai_user import TALK, after, ask, hurry

from infopo_jax.users import UserFailed
from infopo_jax.users.openai import OpenAIUser


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    hurry(monkeypatch)


def test_replay_answers_the_same_call_and_no_other(tmp_path):
    with Endpoint(lambda number, _: f'answer {number}') as endpoint:
        user = ask(endpoint, cache_dir=str(tmp_path))
        assert [user.reply(TALK, nonce=nonce) for nonce in ('0/0', '0/1', '0/0', '0/1')] == ['answer 0', 'answer 1'] * 2
        assert user.reply(TALK[:1], nonce='0/0') == 'answer 2'  # another talk
        assert ask(endpoint, cache_dir=str(tmp_path), temperature=0.1).reply(TALK, nonce='0/0') == 'answer 3'
        counts = user.counters()
        assert (counts['calls'], counts['cached'], counts['requests']) == (5, 2, 3)
        url = endpoint.url
    again = OpenAIUser('tiny', base_url=url, api_key_env='', cache_dir=str(tmp_path))  # nobody listens any more
    assert again.reply(TALK, nonce='0/1') == 'answer 1' and again.counters()['requests'] == 0


def test_replay_keeps_no_failure_and_survives_a_broken_file(tmp_path):
    with Endpoint(after([(500, {}, '')])) as endpoint:
        user = ask(endpoint, cache_dir=str(tmp_path), retries=0)
        with pytest.raises(UserFailed):
            user.reply(TALK)
        assert not list(tmp_path.rglob('*.json'))
        assert user.reply(TALK) == 'tea, please'
        (file,) = tmp_path.rglob('*.json')
        assert json.loads(file.read_text())['call']['messages'] == TALK
        for broken in ('{"reply', '[]', '{"reply": 3}', ''):
            file.write_text(broken)
            assert user.reply(TALK) == 'tea, please'
        assert json.loads(file.read_text())['reply'] == 'tea, please' and not list(tmp_path.rglob('*.part'))
