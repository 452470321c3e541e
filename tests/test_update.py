"""The update on hand-made rollouts: one pass equals two, parts equal the whole, and bad batches change nothing."""

import dataclasses
import functools

import builders
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from models import tiny_model

from infopo_jax import estimators, score, state as state_lib, update as update_lib
from infopo_jax.types import Role

N, G, VOCAB = 8, 4, 50
HYPER = dict(info_weight=0.5, std_floor=0.1, gate_temperature=0.05, outcome_range=1.0)


def make_turns(seed=0, **fields):
    turns = builders.random_turns(seed, num_turns=(3, 2, 3, 1, 2, 3, 2, 3), vocab=VOCAB)
    rng = np.random.default_rng(seed)
    outcome = rng.random(N).astype(np.float32)
    logp = np.where(turns.action_mask, -rng.random(turns.tokens.shape) * 3, 0.0).astype(np.float32)
    return dataclasses.replace(turns, **{'outcome': outcome, 'sampled_logp': logp, **fields})


TURNS = make_turns()


@pytest.fixture(scope='module')
def model():
    return tiny_model(VOCAB, num_heads=2, num_kv_heads=1, mlp_dim=16, head=3.0)


@pytest.fixture(scope='module')
def rule(model):
    return update_lib.UpdateRule(
        graphdef=nnx.split(model)[0], optimizer=optax.sgd(1.0), estimator=estimators.get('infopo'), hyper=HYPER,
        needs_gain=True, group_size=G, placeholder=(40, 41), branch_len=48, target_len=24,
    )  # fmt: skip


def grpo(rule, **fields):
    return dataclasses.replace(rule, **{'estimator': estimators.get('grpo'), 'needs_gain': False, **fields})


def begin(rule, model):
    params = nnx.split(model)[1]
    return state_lib.fresh_state(rule.optimizer, params, jax.random.key(0), keep_reference=bool(rule.kl_coef))


_compiled = {}


def run(rule, model, turns=TURNS, state=None, function=update_lib.update):
    """Returns the state after an update and its metrics; compiles once per rule."""
    _, step = _compiled.setdefault((id(rule), function), (rule, jax.jit(functools.partial(function, rule))))
    state = begin(rule, model) if state is None else state
    return step(state, jax.tree.map(jnp.asarray, turns), jax.random.key(5))


def credit_of(rule, scores, turns=TURNS):
    """Returns credit, gain, gain_mask and metrics."""
    return jax.jit(lambda s, t: update_lib.credit(rule, s, t, jax.random.key(0), jnp.int32(0)))(scores, turns)


def moved(state, model):
    """Returns the parameters' change as one vector."""
    changes = jax.tree.map(lambda a, b: np.ravel(a - b), state.params, nnx.split(model)[1])
    return np.concatenate(jax.tree.leaves(changes))


def assert_equal(a, b, atol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=atol), a, b)


@pytest.fixture(scope='module')
def infopo_step(rule, model):
    return run(rule, model)


def test_update_moves_towards_the_advantage(infopo_step, rule, model):
    state, metrics = infopo_step
    assert int(state.step) == 1 and metrics['skipped'] == metrics['bad_updates'] == 0
    assert metrics['grad_norm'] > 0.01 and metrics['ratio_mean'] == 1.0 and metrics['clip_fraction'] == 0
    assert {'gain_turn_0', 'gain_turn_1', 'info_share', 'sampler_gap', 'reward', 'end_done'} <= set(metrics)
    scores = score.score(model, TURNS, jnp.array(rule.placeholder))
    credit = credit_of(rule, scores)[0]
    small = jax.tree.map(lambda a, b: a + 1e-3 * (b - a), nnx.split(model)[1], state.params)
    after = score.score(nnx.merge(rule.graphdef, small), TURNS, None)
    assert jnp.sum((after.logp - scores.logp) * credit.advantage) > 0


def test_update_in_one_pass_equals_scoring_first(infopo_step, rule, model):
    def two_passes(rule, state, turns, key):
        keys = jax.random.split(key)
        batch, metrics = update_lib._score_batch(
            rule, nnx.merge(rule.graphdef, state.params), turns, keys[0], state.step
        )
        state, more = update_lib._passes(rule, state, batch, keys[1])
        return state, metrics | more

    state, metrics = infopo_step
    other, other_metrics = run(rule, model, function=two_passes)
    assert_equal(other.params, state.params)
    shared = set(metrics) & set(other_metrics)
    assert {'loss', 'gain_turn_0', 'gain_mean', 'info_share', 'sampler_gap', 'advantage_abs', 'entropy'} <= shared
    for name in shared:
        np.testing.assert_allclose(other_metrics[name], metrics[name], atol=1e-5, err_msg=name)


def test_update_in_microbatches_equals_one_large_batch(infopo_step, rule, model):
    """Four parts of two rows: each cuts a group of four, and every part has another number of tokens."""
    state, metrics = infopo_step
    parts, part_metrics = run(dataclasses.replace(rule, microbatches=4), model)
    assert_equal(parts.params, state.params)
    for name in ('loss', 'policy_loss', 'grad_norm', 'gain_turn_0', 'info_share', 'tied_groups'):
        np.testing.assert_allclose(part_metrics[name], metrics[name], atol=1e-5, err_msg=name)


def test_update_in_microbatches_equals_one_large_batch_with_every_term(rule, model):
    """Down-scaling reads the whole batch, the unit weighs tokens, the reference is scored in each part."""
    full = dataclasses.replace(
        rule, hyper=HYPER | {'downscale': True, 'norm': 'token'}, unit='turn', kl_coef=0.1, kl='full', entropy_coef=0.1,
        importance_cap=1.5, optimizer=optax.sgd(0.1),
    )  # fmt: skip
    other = begin(full, model)
    reference = jax.tree.map(lambda p: p * 1.1, other.reference)
    states = [
        run(dataclasses.replace(full, microbatches=k), model, state=dataclasses.replace(other, reference=reference))[0]
        for k in (1, 2)
    ]
    assert_equal(states[0].params, states[1].params)


def test_grpo_in_microbatches_scores_nothing_twice(rule, model, monkeypatch):
    calls, score_turns = [], update_lib.score_turns

    def counted(*args, **kwargs):
        calls.append(kwargs)
        return score_turns(*args, **kwargs)

    monkeypatch.setattr(update_lib, 'score_turns', counted)
    one = grpo(rule, epochs=1, minibatches=1, importance_cap=1.5, optimizer=optax.sgd(0.1))
    states, metrics = zip(*[run(dataclasses.replace(one, microbatches=k), model) for k in (1, 4)], strict=True)
    assert len(calls) == 2  # traced once in each, in the loss
    assert_equal(states[1].params, states[0].params)
    for name in metrics[0]:
        np.testing.assert_allclose(metrics[1][name], metrics[0][name], rtol=1e-3, atol=1e-5, err_msg=name)


def test_update_in_microbatches_measures_as_one_large_batch(rule, model):
    """In the second epoch ratios differ from token to token; the parts have unequal numbers of tokens."""
    many = grpo(rule, epochs=2, optimizer=optax.adam(3e-2), kl_coef=0.1)
    metrics = [run(dataclasses.replace(many, microbatches=k), model)[1] for k in (1, 4)]
    assert metrics[0]['ratio_max'] > 1.1 and metrics[0]['clip_fraction'] > 0
    for name in metrics[0]:
        np.testing.assert_allclose(metrics[1][name], metrics[0][name], rtol=1e-3, atol=1e-5, err_msg=name)


def test_update_steps_once_per_minibatch_and_epoch(rule, model):
    many = grpo(rule, epochs=3, minibatches=2, optimizer=optax.adam(1e-2))
    state, metrics = run(many, model)
    assert int(state.opt_state[0].count) == 6 and int(state.step) == 1
    assert metrics['ratio_max'] > 1.0 and metrics['approx_kl'] != 0  # later passes see the weights that sampled as old
    again, _ = run(many, model)
    jax.tree.map(np.testing.assert_array_equal, state.params, again.params)


def test_passes_see_every_group_once_an_epoch_in_another_order(rule, monkeypatch):
    num_groups, epochs = 6, 3
    turns = builders.turns_of([[(5, Role.PROMPT, -1), (6, Role.ACTION, 0)]] * (num_groups * G))
    turns = dataclasses.replace(turns, outcome=np.arange(num_groups * G, dtype=np.float32))

    def note(rule, state, batch, key):
        count, seen = state
        metrics = dict.fromkeys(('skipped', 'loss', 'policy_loss', 'grad_norm', 'loss_tokens', 'ratio_max'), 0.0)
        return (count + 1, seen.at[count].set(batch.turns.outcome)), metrics | {'bad_updates': 0}

    monkeypatch.setattr(update_lib, '_apply', note)
    many = dataclasses.replace(rule, epochs=epochs, minibatches=2)
    start = jnp.int32(0), jnp.zeros((epochs * 2, num_groups // 2 * G))
    (count, seen), _ = update_lib._passes(
        many, start, update_lib.Batch(jax.tree.map(jnp.asarray, turns)), jax.random.key(0)
    )
    groups = np.asarray(seen, int).reshape(epochs, num_groups, G)
    assert count == 6 and (groups % G == np.arange(G)).all(), 'groups stay whole and in order'
    order = groups[:, :, 0] // G
    assert (np.sort(order, axis=1) == np.arange(num_groups)).all() and len(np.unique(order, axis=0)) == epochs


@pytest.mark.parametrize('fields', [{}, {'epochs': 2, 'minibatches': 2}], ids=['one pass', 'four updates'])
def test_update_refuses_what_is_not_finite(rule, model, fields):
    careful = grpo(rule, optimizer=optax.adam(1e-2), **fields)
    good, _ = run(careful, model)
    poisoned = dataclasses.replace(TURNS, outcome=np.where(np.arange(N) == 1, np.nan, TURNS.outcome))
    if fields:  # every minibatch has a bad group
        poisoned = dataclasses.replace(TURNS, outcome=np.full(N, np.nan, np.float32))
    bad, metrics = run(careful, model, poisoned, state=good)
    count = 4 if fields else 1
    assert metrics['bad_updates'] == metrics['skipped'] == count and int(bad.bad_updates) == count
    jax.tree.map(np.testing.assert_array_equal, (bad.params, bad.opt_state), (good.params, good.opt_state))
    assert int(bad.step) == 2
    twice, _ = run(careful, model, poisoned, state=bad)
    assert int(twice.bad_updates) == 2 * count
    healed, metrics = run(careful, model, state=twice)
    assert int(healed.bad_updates) == 0 and metrics['skipped'] == 0 and np.isfinite(metrics['loss'])
    assert np.abs(moved(healed, model) - moved(good, model)).max() > 1e-3


def test_update_does_not_see_invalid_rows(rule, model):
    """Rows that failed hold garbage, in whatever is read of them."""
    valid = np.arange(N) % 4 != 1
    garbage = {
        'tokens': np.where(valid[:, None], TURNS.tokens, 7), 'outcome': np.where(valid, TURNS.outcome, np.nan),
        'sampled_logp': np.where(valid[:, None], TURNS.sampled_logp, np.nan),
        'turn_reward': np.where(valid[:, None], TURNS.turn_reward, np.nan).astype(np.float32),
    }  # fmt: skip
    clean, metrics = run(rule, model, dataclasses.replace(TURNS, valid=valid))
    dirty, dirty_metrics = run(rule, model, dataclasses.replace(TURNS, valid=valid, **garbage))
    assert_equal(clean.params, dirty.params, atol=1e-6)
    for name, value in metrics.items():
        np.testing.assert_allclose(dirty_metrics[name], value, atol=1e-6, err_msg=name)
    none, metrics = run(rule, model, dataclasses.replace(TURNS, valid=np.zeros(N, bool)))
    assert (moved(none, model) == 0).all() and metrics['loss'] == 0 and metrics['failed'] == 1


@pytest.mark.parametrize('fields', [{}, {'microbatches': 2}, {'epochs': 2, 'minibatches': 2, 'unit': 'turn'}])
def test_update_trains_only_where_the_estimator_says(rule, model, fields):
    """An estimator that drops a group (RAGEN filters by reward spread) leaves what dropping its rollouts leaves."""

    def first_group_only(signals, **kwargs):
        credit = estimators.get('grpo')(signals, **kwargs)
        return dataclasses.replace(credit, loss_mask=credit.loss_mask & (jnp.arange(N) < G)[:, None])

    kept = grpo(rule, kl_coef=0.1, entropy_coef=0.01, **fields)
    other, _ = run(kept, model, make_turns(valid=np.arange(N) < G))
    state, _ = run(dataclasses.replace(kept, estimator=first_group_only), model)
    assert_equal(state.params, other.params)
    assert np.abs(moved(state, model) - moved(run(kept, model)[0], model)).max() > 1e-3


def test_update_of_grpo_never_runs_the_counterfactual(rule, model, monkeypatch):
    placeholders, scorer = [], score.score
    monkeypatch.setattr(score, 'score', lambda m, t, p, **kw: placeholders.append(p) or scorer(m, t, p, **kw))
    for fields in ({}, {'epochs': 2}):
        state, metrics = run(grpo(rule, **fields), model)
    assert len(placeholders) >= 3 and not any(p is not None for p in placeholders)
    assert not [name for name in metrics if name.startswith('gain')] and metrics['info_share'] == 0
    assert np.abs(moved(state, model)).max() > 0


@pytest.mark.parametrize(
    ('fields', 'rows'),
    [({'epochs': 2}, N), ({'minibatches': 2}, N // 2), ({'minibatches': 2, 'microbatches': 2}, N // 4)],
)
def test_update_scores_no_more_rows_at_once_than_it_holds(rule, model, fields, rows, monkeypatch):
    seen, scorer = [], score.score
    monkeypatch.setattr(score, 'score', lambda m, t, p, **kw: seen.append(t.outcome.shape[0]) or scorer(m, t, p, **kw))
    parted = grpo(rule, **fields)
    jax.eval_shape(functools.partial(update_lib.update, parted), begin(parted, model), TURNS, jax.random.key(5))
    assert set(seen) == {rows} and len(seen) >= 2  # before the update, and in it


def test_score_in_parts_equals_one_pass(rule, model):
    def signals(parted):
        batch, metrics = jax.jit(
            lambda turns: update_lib._score_batch(parted, model, turns, jax.random.key(0), jnp.int32(0))
        )(jax.tree.map(jnp.asarray, TURNS))
        return (batch.advantage, batch.loss_mask, batch.old_logp), metrics

    whole = signals(dataclasses.replace(rule, epochs=2))
    for fields in ({'minibatches': 2}, {'minibatches': 2, 'microbatches': 4}):
        assert_equal(signals(dataclasses.replace(rule, **fields)), whole)


def test_fresh_state_keeps_a_reference_only_where_kl_is_used(rule, model):
    assert begin(rule, model).reference is None
    state = begin(dataclasses.replace(rule, kl_coef=0.1), model)
    jax.tree.map(np.testing.assert_array_equal, state.reference, state.params)
    assert jax.tree.leaves(state.reference)[0] is not jax.tree.leaves(state.params)[0]  # the policy is donated


@pytest.mark.parametrize('kind', ['k2', 'k3', 'full'])
def test_update_pulls_towards_the_reference(rule, model, kind):
    """With no advantage, only the KL moves the policy, towards the reference; at the reference nothing moves."""
    tied = dataclasses.replace(TURNS, outcome=np.zeros(N, np.float32))
    pulled = grpo(rule, kl=kind, kl_coef=1.0, optimizer=optax.sgd(0.01))
    at_home, metrics = run(pulled, model, tied)
    np.testing.assert_allclose(metrics['kl'], 0.0, atol=1e-6)
    np.testing.assert_allclose(moved(at_home, model), 0.0, atol=1e-6)
    state = begin(pulled, model)
    state = dataclasses.replace(state, reference=jax.tree.map(lambda p: p * 1.05, state.reference))
    state, before = run(pulled, model, tied, state=state)
    _, after = run(pulled, model, tied, state=state)
    assert before['kl'] > 1e-3 and after['kl'] < before['kl'] and before['loss'] > after['loss']
    scores = score.score(model, TURNS, None, reference=nnx.merge(pulled.graphdef, state.reference))
    mask, diff = TURNS.action_mask, np.asarray(scores.ref_logp - scores.logp)
    wanted = {'k2': diff**2 / 2, 'k3': np.exp(diff) - diff - 1, 'full': np.asarray(scores.ref_kl)}[kind]
    np.testing.assert_allclose(before['kl'], wanted[mask].mean(), atol=1e-5)


def test_update_weighs_tokens_by_scorer_over_sampler_up_to_a_cap(rule, model):
    """Where the sampler was wrong by log 2 at every token, all weights are 1/2, or 2 with a cap of 1.5."""
    scores = score.score(model, TURNS, None)
    plain, _ = run(grpo(rule), model)
    capped = grpo(rule, importance_cap=1.5)
    for sign, factor in ((1, 0.5), (-1, 1.5)):
        shift = np.where(TURNS.action_mask, scores.logp + sign * np.log(2), 0).astype(np.float32)
        state, metrics = run(capped, model, dataclasses.replace(TURNS, sampled_logp=shift))
        np.testing.assert_allclose(moved(state, model), factor * moved(plain, model), atol=1e-5)
        np.testing.assert_allclose(metrics['sampler_gap'], np.log(2), atol=1e-5)


def test_credit_masks_errors_on_demand(rule, model):
    errors = np.zeros(TURNS.turn_reward.shape, bool)
    errors[:, 0] = True
    turns = dataclasses.replace(TURNS, turn_error=errors)
    scores = score.score(model, turns, jnp.array(rule.placeholder))
    _, gain, gain_mask, metrics = credit_of(rule, scores, turns)
    assert not gain_mask[:, 0].any() and (gain[:, 0] == 0).all() and gain_mask[:, 1].any()
    assert metrics['gain_turn_0'] == 0 and abs(metrics['gain_error']) > 1e-3
    assert credit_of(dataclasses.replace(rule, mask_errors=False), scores, turns)[2][:, 0].any()


def test_update_does_not_see_padding(infopo_step, rule, model):
    pad = dataclasses.replace(TURNS, tokens=np.where(TURNS.role == Role.PAD, 9, TURNS.tokens))
    state, _ = run(rule, model, pad)
    assert_equal(state.params, infopo_step[0].params, atol=1e-6)
