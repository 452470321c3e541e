"""A user behind an endpoint, against a real server that answers well and badly."""

import json
import logging
import random
import threading
import time

import pytest

pytest.importorskip('httpx', reason="the openai user needs httpx: pip install 'infopo_jax[users]'")

from endpoint import Endpoint, completion
from talk import tiny_chat

from infopo_jax import build_user, config as config_lib, users
from infopo_jax.envs.retail import Retail
from infopo_jax.envs.tools import render
from infopo_jax.rollout.dialogue import Dialogue, Limits
from infopo_jax.rollout.workers import Workers
from infopo_jax.types import EndReason
from infopo_jax.users import UserFailed, limits
from infopo_jax.users.openai import OpenAIUser

KEY = 'sk-test-0123456789abcdef'
TALK = [{'role': 'system', 'content': 'You want tea.'}, {'role': 'user', 'content': 'What can I do for you?'}]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setenv('TEST_KEY', KEY)
    monkeypatch.setattr(limits, 'BACKOFF', 0.01)
    monkeypatch.setattr(limits, 'MAX_BACKOFF', 0.05)


def ask(endpoint, **knobs):
    return OpenAIUser('tiny', base_url=endpoint.url, api_key_env='TEST_KEY', **{'timeout': 5.0, **knobs})


def after(failures, then='tea, please'):
    """Returns a plan: the failures first, one a request, then good answers."""
    return lambda number, _: failures[number] if number < len(failures) else then


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


def test_retry_after_is_honoured_by_every_thread():
    """All wait for what one was told."""
    with Endpoint(after([(429, {'Retry-After': '0.5'}, '')])) as endpoint:
        user = ask(endpoint)
        first = threading.Thread(target=user.reply, args=(TALK,))
        first.start()
        end = time.monotonic() + 5
        while user.counters()['retries'] < 1 and time.monotonic() < end:  # it has been told, and waits
            time.sleep(0.001)
        user.reply(TALK, nonce='another')
        first.join()
    assert min(endpoint.times[1:]) - endpoint.times[0] >= 0.5


@pytest.mark.parametrize(
    ('value', 'seconds'),
    [(None, None), ('3', 3.0), ('0.5', 0.5), ('-1', 0.0), ('soon', None), ('nan', None), ('1e9', 120.0)],
)
def test_retry_after_reads_seconds(value, seconds):
    assert limits.retry_after(value) == seconds


def test_retry_after_reads_dates():
    from email.utils import formatdate

    assert 28 <= limits.retry_after(formatdate(time.time() + 30, usegmt=True)) <= 30
    assert limits.retry_after(formatdate(time.time() - 30, usegmt=True)) == 0.0


def test_backoff_doubles_up_to_a_limit_with_jitter(monkeypatch):
    monkeypatch.setattr(limits, 'BACKOFF', 1.0)
    monkeypatch.setattr(limits, 'MAX_BACKOFF', 10.0)
    for attempt, most in enumerate([1, 2, 4, 8, 10, 10]):
        waits = [limits.backoff(attempt, random.Random(i)) for i in range(200)]
        assert most / 2 <= min(waits) < 0.6 * most and 0.9 * most < max(waits) <= most


class Clock:
    """Time that passes by sleeping alone."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def test_pace_spaces_requests_evenly():
    clock = Clock()
    pace = limits.Pace(30, clock=clock, sleep=clock.sleep)
    assert [pace.wait() for _ in range(3)] == [0.0, 2.0, 2.0]
    clock.now += 60
    assert [pace.wait() for _ in range(2)] == [0.0, 2.0]  # what was not used does not add up
    pace.close_for(7.0)
    assert pace.wait() == 7.0
    assert limits.Pace(0, clock=clock, sleep=clock.sleep).wait() == 0.0


def test_rate_and_concurrency_are_bounded():
    with Endpoint(lambda *_: ('SLOW', 0.05, 'tea')) as endpoint:
        user = ask(endpoint, concurrency=3, requests_per_minute=60 * 50)
        threads = [threading.Thread(target=user.reply, args=(TALK,), kwargs={'nonce': str(i)}) for i in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert endpoint.most_busy <= 3 and len(endpoint.requests) == 12
    assert endpoint.times[-1] - endpoint.times[0] >= 11 * 0.02 - 0.01


def test_waiting_for_a_place_is_no_timeout():
    with Endpoint(lambda *_: ('SLOW', 0.2, 'tea')) as endpoint:
        user = ask(endpoint, concurrency=1, timeout=0.6)
        threads = [threading.Thread(target=user.reply, args=(TALK,), kwargs={'nonce': str(i)}) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(endpoint.requests) == 6 and user.counters()['retries'] == 0


# Patience


@pytest.mark.parametrize(
    ('plan', 'words'),
    [
        (lambda *_: ('SLOW', 3.0, 'too late'), 'ReadTimeout'),
        (lambda *_: ('DRIP', 0.05, 'far too long'), 'ReadTimeout'),
        (lambda *_: (500, {}, 'oops'), 'status 500'),
        (lambda *_: (429, {'Retry-After': '60'}, 'slow down'), 'status 429: slow down'),
    ],
    ids=['slow', 'drip', '500', '429'],
)
def test_patience_ends_a_call_that_could_go_on(plan, words):
    """Whatever is slow: one request of many seconds, many that fail, or an endpoint that wants to be left alone."""
    with Endpoint(plan) as endpoint:
        user = ask(endpoint, timeout=60.0, retries=10_000, patience=0.4)
        start = time.monotonic()
        with pytest.raises(UserFailed, match=f'within 0.4 s .*config.rollout.call_seconds.*{words}') as failure:
            user.reply(TALK)
        assert 0.4 <= time.monotonic() - start < 1.5  # not before: a rollout that is begun again asks at once
        counts = user.counters()
        assert counts['failed_calls'] == 1 and counts['requests'] == len(endpoint.requests)
        assert KEY not in str(failure.value) and failure.value.__suppress_context__


@pytest.mark.parametrize('knobs', [{'concurrency': 1}, {'requests_per_minute': 6.0}], ids=str)
def test_patience_counts_the_wait_for_room_and_for_the_rate(knobs):
    with Endpoint(lambda number, _: 'tea' if number else ('SLOW', 1.0, 'tea')) as endpoint:
        user = ask(endpoint, patience=3.0, **knobs)
        first = threading.Thread(target=user.reply, args=(TALK,))
        first.start()
        end = time.monotonic() + 5
        while not endpoint.requests and time.monotonic() < end:
            time.sleep(0.001)
        user.patience = 0.3
        with pytest.raises(UserFailed, match=r'within 0.3 s .*no room, or no start by the rate limit'):
            user.reply(TALK, nonce='another')
        first.join()
        assert len(endpoint.requests) == 1 and user.counters()['waited_seconds'] >= 0.3


def test_room_is_not_held_while_a_start_is_waited_for(monkeypatch):
    """Else requests that may start would wait behind those that may not."""
    with Endpoint() as endpoint:
        user, free = ask(endpoint, concurrency=1), []

        def wait(deadline):
            free.append(user._room.acquire(blocking=False))
            user._room.release()

        monkeypatch.setattr(user._pace, 'wait', wait)
        user.reply(TALK)
    assert free == [True]


def test_pace_leaves_a_start_behind_the_deadline_to_others():
    clock = Clock()
    pace = limits.Pace(30, clock=clock, sleep=clock.sleep)
    pace.wait()
    with pytest.raises(TimeoutError):
        pace.wait(clock.now + 1.5)
    assert clock.now == 101.5 and pace.wait(clock.now + 0.5) == 0.5
    pace.close_for(7.0)
    with pytest.raises(TimeoutError):
        pace.wait_open(clock.now + 3.0)
    pace.wait_open(clock.now + 5.0)
    assert clock.now == 109.0


def test_a_slow_endpoint_is_a_failed_user_before_the_environment_is_given_up(monkeypatch):
    """As a config builds them: the user's patience is shorter than what an environment's call may take."""
    config = config_lib.base_config()
    config.env.name, config.env.kind, config.env.level = 'retail', 'hosted', 1
    config.user.model, config.rollout.call_seconds = 'tiny', 1.0
    with Endpoint(lambda *_: ('SLOW', 5.0, 'too late')) as endpoint:
        config.user.base_url, config.user.api_key_env = endpoint.url, 'TEST_KEY'
        config_lib.validate(config)
        user = build_user.make_user(config)['user']
        env = Retail(user=user)
        env.reset(options={'task': 'cancel_order order_17 delay'})
        crew = Workers(1, limit=config.rollout.call_seconds)
        try:
            crew.submit('row', lambda: env.step('Which order?'))
            (reply,) = crew.collect(wait=20)
        finally:
            crew.close()
    assert user.patience == 0.9 and isinstance(reply.error, UserFailed)
    config.user.patience = 0.5
    assert build_user.make_user(config)['user'].patience == 0.5


# Replays


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


def test_seeds_are_those_of_the_rollout_not_of_the_moment():
    with Endpoint() as endpoint:
        for _ in range(2):
            for nonce in ('0/0', '0/1'):
                ask(endpoint).reply(TALK, nonce=nonce)
    seeds = [request['seed'] for request in endpoint.requests]
    assert seeds[:2] == seeds[2:] and seeds[0] != seeds[1]


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
    assert users.make('scripted', model=None, temperature=1.0) is None
    user = users.make('openai', model='tiny', api_key_env='TEST_KEY', temperature=None, retries=2)
    assert (user.model, user.temperature, user.retries) == ('tiny', 1.0, 2)
    with pytest.raises(ValueError, match="unknown user 'opneai', did you mean 'openai'"):
        users.make('opneai')
    with pytest.raises(ValueError, match="has no knob 'modell', did you mean 'model'"):
        users.make('openai', modell='tiny')


# In a talk


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
    dialogue.start(env)
    calls = ['Which order?', 'Why?', 'Which order?', render('cancel_order', {'order': 'order_17', 'reason': 'delay'})]
    for text in calls:
        while dialogue.pending:
            dialogue.take(50)
        if not dialogue.ended:
            ids = [*chat.encode(text), chat.stop_id]
            dialogue.hear(ids, [0.0] * len(ids))
            dialogue.step()
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
