"""Replays of what a user has answered."""

import json
import warnings

import pytest

pytest.importorskip('httpx', reason="the openai user needs httpx: pip install 'infopo_jax[users]'")

from endpoint import Endpoint
from openai_user import TALK, after, ask, hurry

from infopo_jax.users import UserFailed
from infopo_jax.users.openai import OpenAIUser
from infopo_jax.users.replay import Replay


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


def test_replay_leaves_nothing_half_written(tmp_path):
    replay, key = Replay(tmp_path), Replay.key({})
    with pytest.raises(UnicodeEncodeError):
        replay.put(key, {}, 'half a pair: \ud800')
    (tmp_path / key[:2] / f'{key}.json').mkdir()  # something stands in the place of the file
    with pytest.raises(OSError):
        replay.put(key, {}, 'tea')
    assert not [path for path in tmp_path.rglob('*') if path.is_file()]


def test_a_cache_that_cannot_be_written_costs_no_answer_and_is_told_once(tmp_path):
    (tmp_path / 'file').write_text('')
    with Endpoint() as endpoint, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        user = ask(endpoint, cache_dir=str(tmp_path / 'file'))
        assert [user.reply(TALK, nonce=nonce) for nonce in '012'] == ['hello'] * 3
    assert user.counters()['failed_calls'] == 0
    (warning,) = [str(entry.message) for entry in told]
    assert warning.startswith('config.user.cache_dir cannot be written, answers are not kept: ') and 'file' in warning
