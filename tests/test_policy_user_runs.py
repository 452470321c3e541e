"""Runs with the language model itself as the user: its weights, its base under adapters, another checkpoint."""

import itertools
import types

import jax
import numpy as np
import pytest
from flax import nnx
from models import tiny_model
from talking_model import CHAT, TALK, make_model

from infopo_jax import build, build_user, config as config_lib, sharding, train
from infopo_jax.envs.usergym import UserGym
from infopo_jax.lm import hf, lora
from infopo_jax.lm.generate import generate
from infopo_jax.logger import read_jsonl
from infopo_jax.state import TrainState
from infopo_jax.users.policy import PolicyUser


@pytest.fixture(scope='module')
def model():
    return make_model(0)


# --- Settings.


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
        with pytest.raises(ValueError, match="'frozen': the run kept no policy from before its training"):
            train.evaluate(config_of(**{'user.weights': 'frozen', 'loss.kl_coef': 0.0}), str(tmp_path))
        return
    assert all((leaves[1] == current[0]).all() for leaves in published)
    again = train.evaluate(config, str(tmp_path))
    assert again['step'] == 3 and again['reward'] == metrics['reward'] and again['length'] == metrics['length']
    assert len(published) == 6 and all((a == b).all() for a, b in zip(published[5], published[4], strict=True))
    scripted = {'user.name': 'scripted', 'user.max_tokens': None, 'user.concurrency': None}
    assert train.evaluate(config_of(**{'loss.kl_coef': 0.0, **scripted}), str(tmp_path))['step'] == 3
    assert len(published) == 6


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
