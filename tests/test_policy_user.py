"""The language model itself as the user: what an answer depends on, what fails and how, and runs with him."""

import copy
import gc
import itertools
import random
import re
import threading
import time
import types

import jax
import numpy as np
import pytest
from flax import nnx
from models import often_stopping, tiny_model
from talk import tiny_chat

from infopo_jax import build, build_user, config as config_lib, sharding, train, users
from infopo_jax.envs.usergym import UserGym
from infopo_jax.lm import decoding, hf, lora
from infopo_jax.lm.chat import Chat
from infopo_jax.lm.generate import Sampler, generate
from infopo_jax.logger import read_jsonl
from infopo_jax.state import TrainState
from infopo_jax.users import UserFailed
from infopo_jax.users.policy import PolicyUser

CHAT = tiny_chat()
SYSTEM = {'role': 'system', 'content': 'take red'}
TALK = [SYSTEM, {'role': 'user', 'content': 'which colour'}]
LONGER = [*TALK, {'role': 'assistant', 'content': 'red'}, {'role': 'user', 'content': 'it is blue. ' * 3}]


def make_model(seed):
    model = tiny_model(CHAT.vocab_size, seed=seed, head=2.0, tie_embeddings=False)
    return often_stopping(model, CHAT.stop_id, 3.0)


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

    def ask(prompt, words):
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
        ({'user.name': 'openai', 'user.weights': 'frozen'}, "config.user.weights = 'frozen': is for config.user.name"),
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


def test_worlds_that_bring_their_own_client_or_nobody_say_so():
    with pytest.raises(ValueError, match=r"at an endpoint: config.user.name must be 'openai'"):
        UserGym('TurtleGym', user=PolicyUser())
    with pytest.raises(ValueError, match="gym 'travel' has no knob 'user'"):
        UserGym('travel', user=PolicyUser())
    with pytest.raises(ValueError, match=r"config.user.name = 'policy': environment 'intent' has nobody who could be"):
        build.make_loop(config_of(**{'env.name': 'intent', 'env.kind': 'jitted', 'env.level': None}))
    with pytest.raises(ValueError, match=r"needs a language model as its user: set config.user.name='openai'"):
        build.make_loop(config_of(**{'env.name': 'tau2', 'env.domain': 'airline', 'env.level': None}))


# --- Runs.

TINY = {
    'steps': 3, 'env.name': 'retail', 'env.kind': 'hosted', 'env.level': 1, 'batch.prompts': 2, 'batch.group_size': 2,
    'model.dim': 16, 'model.num_layers': 1, 'model.num_heads': 2, 'model.num_kv_heads': 1, 'model.head_dim': 8,
    'model.mlp_dim': 16, 'rollout.max_prompt_tokens': 100, 'rollout.max_tokens': 144, 'rollout.max_action_tokens': 6,
    'rollout.max_feedback_tokens': 12, 'warmstart.steps': 30, 'warmstart.batch': 8, 'warmstart.lr': 1e-2,
    'optim.warmup_steps': 0, 'optim.lr': 1e-2, 'eval.interval': 0, 'eval.episodes': 4, 'log.rollouts': 2,
    'log.tensorboard': False, 'user.name': 'policy', 'user.max_tokens': 8, 'user.concurrency': 4,
}  # fmt: skip


def config_of(**fields):
    config = config_lib.base_config()
    config.update_from_flattened_dict(TINY | fields)
    config_lib.validate(config)
    return config


@pytest.mark.parametrize('weights', ['current', 'frozen'])
def test_training_with_the_policy_as_user(weights, tmp_path, monkeypatch):
    """Three updates of retail; without a KL only the user needs the policy as it was, which a resumed run finds."""
    published, publish = [], PolicyUser.publish

    def note(self, current, reference=None):
        published.append([np.array(jax.tree.leaves(p)[0]) for p in (current, reference) if p is not None])
        publish(self, current, reference)

    monkeypatch.setattr(PolicyUser, 'publish', note)
    monkeypatch.setattr(train.report, 'write_report', lambda workdir: workdir)  # it draws for seconds
    config = config_of(**{'user.weights': weights, 'loss.kl_coef': 0.0})
    metrics = train.main(config, str(tmp_path))
    rows = read_jsonl(tmp_path / 'metrics.jsonl')
    assert [row['step'] for row in rows if row['phase'] == 'train'] == [1, 2, 3] and len(rows) == 5
    counts = rows[3]['time']
    assert counts['user_calls'] > 20 and 0 < counts['user_batches'] < counts['user_calls']
    assert rows[3]['masked'] == 0 and not any(name.startswith('user') for name in rows[3])
    said = [turn['feedback'] for row in read_jsonl(tmp_path / 'rollouts.jsonl') for turn in row['turns']]
    assert len(set(said)) > 5
    current = [leaves[0] for leaves in published]
    assert len(current) == 5 and all((a != b).any() for a, b in itertools.pairwise(current[1:]))
    if weights == 'current':
        assert all(len(leaves) == 1 for leaves in published)
        return
    assert all((leaves[1] == current[0]).all() for leaves in published)
    again = train.evaluate(config, str(tmp_path))
    assert again['step'] == 3 and again['reward'] == metrics['reward'] and again['length'] == metrics['length']
    assert len(published) == 6 and all((a == b).all() for a, b in zip(published[5], published[4], strict=True))


def bound(rule, **fields):
    """Returns a user of a config's, bound as a run binds him; he answers greedily."""
    config = config_of(**{'user.temperature': 0.0, **fields})
    user = build_user.make_user(config)['user']
    build_user.bind_user(config, user, CHAT, types.SimpleNamespace(mesh=sharding.make_mesh(1, 1, 1), **rule))
    return user


def first_words(user, *weights):
    """Returns what a user says first."""
    user.publish(*weights)
    try:
        return user.reply(TALK, nonce='0')
    finally:
        user.withdraw()


def test_adapters_leave_their_base_to_a_frozen_user():
    graphdef, params = nnx.split(tiny_model(CHAT.vocab_size, lora_rank=2, head=2.0))
    adapters, base = lora.split(params)
    moved = jax.tree.map(lambda leaf: leaf + 1.0, adapters)
    rule = {'graphdef': graphdef, 'base_graphdef': nnx.split(tiny_model(CHAT.vocab_size))[0]}
    current, frozen = (bound(rule, **{'user.weights': weights}) for weights in ('current', 'frozen'))
    state = TrainState(params=moved, reference=None, opt_state=None, key=None, step=0, bad_updates=0, frozen=base)
    wanted = make_words(nnx.merge(rule['base_graphdef'], base))
    assert first_words(frozen, state.weights, state.start) == wanted
    assert first_words(current, state.weights, state.start) == make_words(nnx.merge(graphdef, state.weights)) != wanted


def test_another_checkpoint_may_play(model, tmp_path):
    hf.save(model, tmp_path)
    CHAT.tokenizer.save_pretrained(tmp_path)
    user = bound({}, **{'user.path': str(tmp_path)})
    assert not user.needs_reference
    assert first_words(user, None) == make_words(model)
    with pytest.raises(ValueError, match=r"config.user.path = './nowhere': ./nowhere is neither a folder nor"):
        bound({}, **{'user.path': './nowhere'})


def make_words(model):
    """Returns what a model says greedily."""
    prompt, stops = [CHAT.prompt(TALK)], CHAT.stop_ids
    said = generate(model, prompt, key=jax.random.key(5), max_new_tokens=8, temperature=0.0, stop_ids=stops)
    return CHAT.action_text(said.ids(0)).strip()
