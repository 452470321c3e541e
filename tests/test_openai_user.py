"""A user behind an endpoint, against a real server that answers well and badly."""

import gc
import json
import logging
import threading
import time

import pytest

pytest.importorskip('httpx', reason="the openai user needs httpx: pip install 'infopo_jax[users]'")

from endpoint import Endpoint, completion
from openai_user import KEY, TALK, after, ask, hurry

from infopo_jax import users
from infopo_jax.users import UserFailed
from infopo_jax.users.openai import OpenAIUser


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    hurry(monkeypatch)


def test_reply_sends_the_talk_and_returns_the_text():
    with Endpoint(lambda *_: '  tea, please \n') as endpoint:
        user = ask(endpoint, temperature=0.5, max_tokens=40, prompt_price=2.0, completion_price=10.0)
        assert user.reply(TALK, nonce='0/0/0') == 'tea, please'
    request = endpoint.requests[0]
    assert request.pop('seed') >= 0
    assert request == {'model': 'tiny', 'temperature': 0.5, 'max_tokens': 40, 'messages': TALK}
    assert endpoint.headers[0]['Authorization'] == f'Bearer {KEY}'
    counts = user.counters()
    assert (counts['calls'], counts['requests'], counts['retries'], counts['failed_calls']) == (1, 1, 0, 0)
    assert (counts['prompt_tokens'], counts['completion_tokens']) == (10, 4)
    assert counts['cost'] == pytest.approx((10 * 2.0 + 4 * 10.0) / 1e6)


def test_reply_leaves_out_the_seed_and_the_key_when_told():
    with Endpoint() as endpoint:
        OpenAIUser('tiny', base_url=endpoint.url, api_key_env='', send_seed=False).reply(TALK)
    assert 'seed' not in endpoint.requests[0] and 'Authorization' not in endpoint.headers[0]


@pytest.mark.parametrize(
    'failure',
    [
        (429, {}, '{"error": "slow down"}'),
        (500, {}, 'oops'),
        (503, {'Retry-After': '0.02'}, ''),
        (408, {}, ''),
        (200, {}, '{"choices": [{"mess'),
        (200, {}, '[]'),
        (200, {}, '{"choices": []}'),
        (200, {}, '{"error": {"message": "overloaded"}}'),
        (200, {}, completion('')),
        (200, {}, completion(None)),
        (200, {}, completion('<think>He asks what I want.')),
        (200, {'Content-Encoding': 'gzip'}, 'this is no gzip'),
        'DROP',
        ('SLOW', 1.0, 'too late'),
        ('DRIP', 0.05, 'far too long'),
        ('DRIP_ALL', 0.05, 'headers that never end'),
    ],
    ids=str,
)
def test_a_failure_that_may_pass_is_tried_again(failure):
    with Endpoint(after([failure] * 2)) as endpoint:
        user = ask(endpoint, timeout=0.3, retries=2)
        assert user.reply(TALK) == 'tea, please'
        counts = user.counters()
        assert (counts['calls'], counts['requests'], counts['retries'], counts['retried_calls']) == (1, 3, 2, 1)
        assert counts['failed_calls'] == 0 and counts['waited_seconds'] > 0
        with pytest.raises(UserFailed, match=r'tiny at http.*: no answer after 1 tries, the last one: '):
            endpoint.plan = lambda *_: failure
            user.retries = 0
            user.reply(TALK)
        assert user.counters()['failed_calls'] == 1


@pytest.mark.parametrize('status', [400, 401, 403, 404, 422, 301])
def test_a_failure_that_will_not_pass_is_not_tried_again(status):
    with Endpoint(lambda *_: (status, {'Location': 'http://127.0.0.1:9/'}, f'no such thing, {KEY}')) as endpoint:
        user = ask(endpoint)
        with pytest.raises(UserFailed, match=rf'status {status}: no such thing, \*\*\*'):
            user.reply(TALK)
    assert len(endpoint.requests) == 1 and user.counters()['failed_calls'] == 1


def test_nobody_listening_is_a_failed_user():
    with Endpoint() as endpoint:
        url = endpoint.url
    user = OpenAIUser('tiny', base_url=url, api_key_env='', retries=1)
    with pytest.raises(UserFailed, match='after 2 tries, the last one: ConnectError'):
        user.reply(TALK)


def test_retries_draw_another_answer():
    """At a server that honours seeds, the same seed would bring the same empty answer again."""
    with Endpoint(after([completion_of('')] * 3)) as endpoint:
        ask(endpoint).reply(TALK)
    assert len({request['seed'] for request in endpoint.requests}) == 4


def completion_of(text):
    return (200, {}, completion(text))


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('<think>I must not say tea.</think>Tea.', 'Tea.'),
        ('I must not say tea.</think> Tea.', 'Tea.'),
        ('Some <think>what?</think>tea.', 'Some tea.'),
    ],
)
def test_thoughts_do_not_reach_the_agent(text, said):
    with Endpoint(lambda *_: text) as endpoint:
        assert ask(endpoint).reply(TALK) == said


@pytest.mark.parametrize('cached', [False, True])
def test_half_a_surrogate_pair_in_an_answer_loses_nothing(tmp_path, cached):
    """JSON can spell it, UTF-8 cannot: neither a replay nor the next request could hold it."""
    body = completion('Tea?\\ud800 Yes \U0001f375').replace('\\\\ud800', '\\ud800')
    with Endpoint(lambda *_: (200, {}, body)) as endpoint:
        user = ask(endpoint, retries=0, cache_dir=str(tmp_path) if cached else None)
        assert [user.reply(TALK) for _ in range(2)] == ['Tea?? Yes \U0001f375'] * 2
    assert '\\ud800' in body and len(endpoint.requests) == (1 if cached else 2)


def test_seeds_are_those_of_the_rollout_not_of_the_moment():
    with Endpoint() as endpoint:
        for _ in range(2):
            for nonce in ('0/0', '0/1'):
                ask(endpoint).reply(TALK, nonce=nonce)
    seeds = [request['seed'] for request in endpoint.requests]
    assert seeds[:2] == seeds[2:] and seeds[0] != seeds[1]


@pytest.mark.parametrize('kind', ['DRIP', 'DRIP_ALL'])
def test_an_answer_that_drips_takes_no_longer_than_its_time(kind):
    """The headers alone have some 150 bytes, and every one comes before a single read is out of time."""
    with Endpoint(lambda *_: (kind, 0.05, 'too late')) as endpoint:
        user, start = ask(endpoint, timeout=0.3, retries=0), time.monotonic()
        with pytest.raises(UserFailed, match=r'no whole answer within 0\.3 s'):
            user.reply(TALK)
        assert time.monotonic() - start < 2.0


def test_close_turns_away_who_waits_for_an_answer():
    with Endpoint(lambda *_: ('SLOW', 3.0, 'too late')) as endpoint:
        user, failures = ask(endpoint, retries=0), []
        asking = threading.Thread(target=lambda: failures.append(_failure(user)))
        asking.start()
        while not endpoint.requests:
            time.sleep(0.001)
        user.close()
        asking.join(2.0)
    assert len(failures) == 1 and 'the client was closed' in failures[0]
    assert 'the client is closed' in _failure(user)


def _failure(user):
    with pytest.raises(UserFailed) as failure:
        user.reply(TALK)
    return str(failure.value)


def test_a_user_that_nobody_closes_leaves_no_thread():
    with Endpoint() as endpoint:
        user = ask(endpoint)
        user.reply(TALK)
        thread = user._client._thread
        del user
        gc.collect()
        thread.join(20)
    assert not thread.is_alive()


# The key


def test_the_key_is_nowhere_but_in_the_header(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    plan = after([(500, {}, f'bad key {KEY}'), (200, {}, f'{{"broken": "{KEY}"')])
    with Endpoint(plan) as endpoint:
        user = ask(endpoint, cache_dir=str(tmp_path))
        user.reply(TALK)
        endpoint.plan = lambda *_: (429, {}, 'x' * 290 + KEY)  # cut in the middle of it
        user.retries = 0
        with pytest.raises(UserFailed) as failure:
            user.reply(TALK, nonce='1')
    files = [path.read_text() for path in tmp_path.rglob('*') if path.is_file()]
    shown = [repr(user), str(failure.value), caplog.text, json.dumps(user.counters()), json.dumps(user.endpoint())]
    assert files and all(KEY[:10] not in text for text in files + shown)
    assert not any(KEY in json.dumps(request) for request in endpoint.requests)
    assert failure.value.__cause__ is None and failure.value.__suppress_context__


@pytest.mark.parametrize(
    'key', ['sk-se\ncret', 'sk-se cret', 'sk-se\tcret', 'sk-s\xe9cret', '\u201csk-secret\u201d', 'sk-\x7fse']
)
def test_a_key_that_no_header_can_carry_is_refused_unseen(monkeypatch, key):
    monkeypatch.setenv('TEST_KEY', key)
    with pytest.raises(ValueError, match=r'variable TEST_KEY has .*: export the bare key$') as failure:
        OpenAIUser('tiny', api_key_env='TEST_KEY')
    assert 'sk-' not in str(failure.value)
    monkeypatch.setenv('TEST_KEY', f' {KEY}\r\n')  # as $(cat FILE) or an editor leaves it
    assert OpenAIUser('tiny', api_key_env='TEST_KEY')._key == KEY


def test_constructor_refuses_what_cannot_be_meant(monkeypatch):
    monkeypatch.delenv('TEST_KEY')
    for knobs, message in (
        ({'api_key_env': 'TEST_KEY'}, 'no key in the environment variable TEST_KEY: export it'),
        ({'model': ''}, 'set config.user.model'),
        ({'base_url': 'localhost:8000'}, 'must look like https://host/v1'),
        ({'base_url': f'https://me:{KEY}@host/v1'}, 'credentials'),
        ({'base_url': f'https://host/v1?key={KEY}'}, 'credentials'),
        ({'timeout': 0.0}, 'timeout and patience must be above 0'),
        ({'patience': 0.0}, 'timeout and patience must be above 0'),
        ({'retries': -1}, 'retries at least 0'),
        ({'concurrency': 0}, 'concurrency at least 1'),
    ):
        knobs = {'model': 'tiny', 'api_key_env': '', **knobs}
        with pytest.raises(ValueError, match=message) as failure:
            OpenAIUser(**knobs)
        assert KEY not in str(failure.value)


def test_make_knows_users_by_name(monkeypatch):
    monkeypatch.setenv('TEST_KEY', KEY)
    assert users.make('scripted', model=None) is None
    for name in ('model', 'nonsense'):
        with pytest.raises(ValueError, match=f"user 'scripted' has no knob '{name}'; it has none"):
            users.make('scripted', **{name: 'gpt-4o'})
    user = users.make('openai', model='tiny', api_key_env='TEST_KEY', temperature=None, retries=2)
    assert (user.model, user.temperature, user.retries) == ('tiny', 1.0, 2)
    with pytest.raises(ValueError, match="unknown user 'opneai', did you mean 'openai'"):
        users.make('opneai')
    with pytest.raises(ValueError, match="has no knob 'modell', did you mean 'model'"):
        users.make('openai', modell='tiny')
    for knobs in ({}, {'model': None, 'retries': 2}):
        with pytest.raises(ValueError, match=r"user 'openai' needs the knob 'model': set config\.user\.model"):
            users.make('openai', **knobs)
