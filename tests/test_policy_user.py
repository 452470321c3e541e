"""The language model itself as the user: what an answer depends on, what fails and how."""

import copy
import gc
import random
import re
import threading
import time

import jax
import pytest
from flax import nnx
from models import often_stopping, tiny_model
from talking_model import CHAT, LONGER, SYSTEM, TALK, make_model

from infopo_jax import config as config_lib, users
from infopo_jax.lm import decoding
from infopo_jax.lm.chat import Chat
from infopo_jax.lm.generate import Sampler, generate
from infopo_jax.users import UserFailed
from infopo_jax.users.policy import PolicyUser


@pytest.fixture(scope='module')
def model():
    return make_model(0)


@pytest.fixture
def make(model):
    """Returns a function that makes a user who plays with the model, or a checkpoint; they are withdrawn at the end."""
    made = []

    def of(model=model, chat=CHAT, key=0, **knobs):
        user = PolicyUser(**{'max_tokens': 12, 'concurrency': 4} | knobs)
        graphdef, params = nnx.split(model)
        user.bind(chat, graphdef, key=jax.random.key(key))
        user.publish(params, params)
        made.append(user)
        return user

    yield of
    for user in made:
        user.withdraw()


def say(monkeypatch, user, *texts):
    """Lets the user say texts, one after the other, the last one for ever; returns the attempts as they are made."""
    said, attempts = list(texts), []

    def ask(prompt, words, end):
        attempts.append(words[2])
        return [*CHAT.encode_action(said.pop(0) if len(said) > 1 else said[0]), CHAT.stop_id]

    monkeypatch.setattr(user, '_ask', ask)
    return attempts


# --- What an answer is, and what it depends on.


def test_reply_is_the_models_continuation_of_the_talk(model, make):
    user = make(temperature=0.0)
    prompt = CHAT.prompt(LONGER)
    wanted = generate(
        model, [prompt], key=jax.random.key(5), max_new_tokens=12, temperature=0.0, stop_ids=CHAT.stop_ids
    )
    assert user.reply(LONGER, nonce='0/1') == CHAT.action_text(wanted.ids(0)).strip() != ''
    counts = user.counters()
    assert (counts['calls'], counts['batches'], counts['failed_calls']) == (1, 1, 0)
    assert counts['prompt_tokens'] == len(prompt) and counts['completion_tokens'] == wanted.lengths[0]
    assert counts['seconds'] > 0


def test_reply_depends_on_weights_messages_nonce_and_key(make):
    user = make()
    first = user.reply(TALK, nonce='1/2/3')
    assert user.reply(copy.deepcopy(TALK), nonce='1/2/3') == first
    others = [user.reply(TALK, nonce=f'1/2/{n}') for n in range(4, 8)]
    others.append(user.reply([SYSTEM | {'content': 'take blue'}, TALK[1]], nonce='1/2/3'))
    others += [make(key=1).reply(TALK, nonce='1/2/3'), make(make_model(1)).reply(TALK, nonce='1/2/3')]
    assert first not in others and len(set(others)) == len(others)
    assert make().reply(TALK, nonce='1/2/3') == first


def test_reply_does_not_depend_on_who_else_is_answered(make, monkeypatch):
    """To the last bit, log-probabilities too, whatever the order, the delays and the company."""
    noted, companies, generate_ = {}, set(), Sampler.generate

    def note(self, prompts, *, folds, **options):
        out = generate_(self, prompts, folds=folds, **options)
        companies.add(len(prompts))
        for n, name in enumerate(folds):
            row = (out.ids(n), out.logps[n].tobytes())
            assert noted.setdefault((tuple(prompts[n]), tuple(name)), row) == row
        return out

    monkeypatch.setattr(Sampler, 'generate', note)
    user = make()
    talks = [[SYSTEM, {'role': 'user', 'content': 'which colour ' * n}] for n in (1, 2, 2, 3, 6, 9)]
    calls = [(talk, f'{n}/{member}') for n, talk in enumerate(talks) for member in range(4)]
    alone = [user.reply(talk, nonce=nonce) for talk, nonce in calls]
    assert companies == {1} and len(set(alone)) > 20
    for seed in range(4):
        rng, answers = random.Random(seed), {}

        def work(mine, pause, answers=answers):
            for index in mine:
                time.sleep(pause)
                answers[index] = user.reply(*calls[index][:1], nonce=calls[index][1])

        order = rng.sample(range(len(calls)), len(calls))
        threads = [threading.Thread(target=work, args=(order[t::6], rng.random() * 0.02)) for t in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert [answers[index] for index in range(len(calls))] == alone
    assert max(companies) > 1


def test_reply_compiles_nothing_for_another_number_of_questions(make):
    user = make()
    user.reply(TALK, nonce='0')
    programs = (decoding._prefill, decoding._begin, decoding._advance, decoding._grow)
    before = [program._cache_size() for program in programs]
    threads = [threading.Thread(target=user.reply, args=(TALK,), kwargs={'nonce': str(n)}) for n in range(1, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert user.counters()['calls'] == 8 and user.counters()['batches'] < 8
    assert [program._cache_size() for program in programs] == before


def test_reply_leaves_thoughts_out(make, monkeypatch):
    user = make()
    say(monkeypatch, user, '<think>he wants red</think> which colour')
    assert user.reply(TALK) == 'which colour'
    opens = copy.deepcopy(CHAT.tokenizer)
    opens.chat_template = opens.chat_template.replace("'<|assistant|>'", "'<|assistant|><think>\\n'")
    user = make(chat=Chat(opens))
    say(monkeypatch, user, 'he wants red', 'red</think>blue')
    assert user.reply(TALK) == 'blue' and user.counters()['retries'] == 1


# --- What fails, and how.


def test_reply_draws_again_where_nothing_was_said_then_fails(make, monkeypatch):
    user = make(retries=2)
    attempts = say(monkeypatch, user, ' ', '', 'red')
    assert user.reply(TALK) == 'red' and attempts == [0, 1, 2]
    say(monkeypatch, user, '<think>no end')
    with pytest.raises(UserFailed, match=r'3 answers were blank or all thought.*raise config.user.max_tokens = 12'):
        user.reply(TALK)
    assert user.counters()['retries'] == 4 and user.counters()['failed_calls'] == 1
    greedy = make(temperature=0.0)
    assert say(monkeypatch, greedy, ' ') == []
    with pytest.raises(UserFailed, match='1 answers were blank'):
        greedy.reply(TALK)


def test_reply_does_not_stop_before_it_has_begun(make):
    hasty = often_stopping(tiny_model(CHAT.vocab_size, tie_embeddings=False), CHAT.stop_id, 50.0)
    user = make(hasty)
    assert all(user.reply(TALK, nonce=str(n)) for n in range(8)) and user.counters()['completion_tokens'] < 40


def test_reply_refuses_a_talk_that_is_too_long(make):
    room = len(CHAT.prompt(TALK))
    user = make(max_prompt_tokens=room)
    assert user.reply(TALK)
    with pytest.raises(UserFailed, match=rf'\d\d tokens, more than {room}: raise config.user.max_prompt_tokens'):
        user.reply(LONGER)
    short = tiny_model(CHAT.vocab_size, max_position=40)
    with pytest.raises(UserFailed, match='more than 28: raise'):
        make(short).reply([*LONGER, *LONGER[1:]])


def test_reply_says_what_the_template_or_the_device_refuses(make, monkeypatch):
    picky = copy.deepcopy(CHAT.tokenizer)
    rule = "{% if messages[-1]['role'] == 'assistant' %}{{ raise_exception('no last word') }}{% endif %}"
    picky.chat_template = rule + picky.chat_template
    with pytest.raises(UserFailed, match=r'no last word.*config.user.path'):
        make(chat=Chat(picky)).reply(LONGER[:3])

    user, generate_ = make(), Sampler.generate
    monkeypatch.setattr(Sampler, 'generate', lambda *_, **__: (_ for _ in ()).throw(MemoryError('8 GiB')))
    with pytest.raises(UserFailed, match=r'lower config.user.concurrency\? MemoryError: 8 GiB'):
        user.reply(TALK)
    monkeypatch.setattr(Sampler, 'generate', generate_)
    assert user.reply(TALK)


def test_reply_without_weights_is_refused_and_withdrawing_lets_go_of_them(model, make):
    with pytest.raises(UserFailed, match='only while a run plays rollouts'):
        PolicyUser().reply(TALK)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.split(model)[1]))
    before = held()
    user = make()
    assert user.reply(TALK) and held() > before + 0.8 * weights
    user.withdraw()
    assert held() < before + 0.1 * weights
    assert not [thread for thread in threading.enumerate() if thread.name == 'batcher']
    with pytest.raises(UserFailed, match='only while a run plays rollouts'):
        user.reply(TALK)


def held():
    """Returns the bytes of all arrays."""
    gc.collect()
    return sum(leaf.nbytes for leaf in jax.live_arrays())


def test_withdraw_turns_away_who_still_waits(make, monkeypatch):
    user, busy, go, errors = make(), threading.Event(), threading.Event(), []
    decode = user._decode
    monkeypatch.setattr(user, '_decode', lambda *args: busy.set() or (go.wait(30) and decode(*args)))

    def ask(talk):
        try:
            user.reply(talk)
        except UserFailed as error:
            errors.append(str(error))

    threads = [threading.Thread(target=ask, args=(talk,)) for talk in (TALK, LONGER)]
    threads[0].start()
    assert busy.wait(30)
    threads[1].start()
    while not user._batcher._waiting:
        time.sleep(0.001)
    threading.Timer(0.05, go.set).start()
    user.withdraw()
    for thread in threads:
        thread.join(30)
    assert len(errors) == 1 and 'the rollouts were over' in errors[0]


# --- Settings.


@pytest.mark.parametrize(
    ('fields', 'words'),
    [
        ({'user.name': 'police'}, "config.user.name = 'police': did you mean 'policy'"),
        ({'user.weights': 'old'}, "config.user.weights = 'old': did you mean"),
        (
            {'user.name': 'openai', 'user.model': 'x', 'user.weights': 'frozen'},
            "config.user.weights = 'frozen': is for config.user.name = 'policy'; set that, or leave it away",
        ),
        ({'user.path': 'mine'}, "config.user.path = 'mine': is for config.user.name = 'policy'"),
        (
            {'user.name': 'policy', 'user.path': 'mine', 'user.weights': 'current'},
            "config.user.weights = 'current': must be 'frozen' or None",
        ),
        ({'user.name': 'policy', 'user.max_prompt_tokens': 0}, 'config.user.max_prompt_tokens = 0: must be at least 1'),
    ],
)
def test_validate_names_a_bad_setting_and_the_fix(fields, words):
    config = config_lib.base_config()
    config.update_from_flattened_dict(fields)
    with pytest.raises(ValueError, match=re.escape(words)):
        config_lib.validate(config)


@pytest.mark.parametrize(
    ('knobs', 'words'),
    [
        ({'weights': 'old'}, 'weights must be one of current, frozen'),
        ({'weights': 'current', 'path': 'mine'}, "config.user.path = 'mine': a checkpoint of the user's own"),
        ({'max_tokens': 0}, 'at least 1'),
        ({'concurrency': 0}, 'at least 1'),
        ({'retries': -1}, 'at least 0'),
        ({'temperature': -1.0}, 'temperature must be at least 0'),
        ({'model': 'gpt'}, "user 'policy' has no knob 'model', did you mean"),
    ],
)
def test_make_refuses_what_cannot_be_meant(knobs, words):
    with pytest.raises(ValueError, match=words):
        users.make('policy', **knobs)
