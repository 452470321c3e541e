"""The probes: the best behaviour of each, played by hand, and what makes each one a probe."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infopo_jax.envs.probe import PROBES, TIED_OUTCOME, Probe

BEST = {
    'no_info': ['say v3 v1 <end>'],
    'first_turn': ['ask <end>', 'say v3 v1 <end>'],
    'delayed': ['ask <end>', 'ask <end>', 'say v3 v1 <end>'],
    'tied': ['ask <end>', 'say v3 v1 <end>'],
    'error_surprise': ['say v3 v1 <end>'],
}


def play(env, *actions, seed=0):
    """Plays for the goal v3 v1; returns outcome, success and (feedback text, reward, done, is_error) by turn."""
    state, _, _ = env.reset(jax.random.key(0), 'train')
    state = type(state)(**{**vars(state), 'goal': jnp.array([3, 1], jnp.int32)})
    log = []
    for turn, text in enumerate(actions):
        ids = env.encode(text)
        action = jnp.array(ids + [0] * (env.action_len - len(ids)))
        key = jax.random.fold_in(jax.random.key(seed), turn)
        state, feedback, mask, reward, done, is_error = env.step(key, state, action, jnp.arange(4) < len(ids))
        log.append((env.decode(feedback[mask]), float(reward), bool(done), bool(is_error)))
    outcome, success = env.score(state)
    return float(outcome), bool(success), log


def follow(env, split, count=200):
    """Plays the best behaviour ``count`` times, reading values from prompt and answers; returns outcome and success."""
    keys = jax.random.split(jax.random.key(1), count)
    state, prompt, _ = jax.vmap(lambda key: env.reset(key, split))(keys)
    values = np.array(prompt)[:, 1:-1]
    name = next(name for name, rule in PROBES.items() if rule is env.rule)
    for text in BEST[name]:
        ids = env.encode(text)
        actions = np.tile(np.array(ids + [0] * (4 - len(ids)), np.int32), (count, 1))
        if text.startswith('say'):
            actions[:, 1:3] = values
        state, feedback, *_ = jax.vmap(env.step)(keys, state, jnp.asarray(actions), jnp.asarray(actions > 0))
        if state.num_asked.max() == 1:
            values = np.asarray(feedback)[:, :2]
    return jax.vmap(env.score)(state)


@pytest.mark.parametrize('split', ['train', 'test'])
@pytest.mark.parametrize('name', PROBES)
def test_best_behaviour_succeeds(name, split):
    outcome, success = follow(Probe(probe=name), split)
    assert success.all()
    np.testing.assert_allclose(outcome, TIED_OUTCOME if name == 'tied' else 1.0)


@pytest.mark.parametrize('name', PROBES)
def test_prompt_shows_the_values_or_hides_them(name):
    env = Probe(probe=name)
    state, prompt, _ = env.reset(jax.random.key(0), 'train')
    values = ' '.join(f'v{v}' for v in state.goal.tolist()) if name in ('no_info', 'error_surprise') else '? ?'
    assert env.decode(prompt) == f'<user> {values} <agent>'


def test_no_info_answers_noise_that_ignores_the_goal():
    env = Probe(probe='no_info')
    answers = {play(env, 'ask <end>', seed=seed)[2][0][0] for seed in range(40)}
    assert len(answers) > 8 and all(re.fullmatch(r'n\d n\d', answer) for answer in answers)
    state, _, _ = env.reset(jax.random.key(0), 'train')
    ask = jnp.array([*env.encode('ask <end>'), 0, 0]), jnp.arange(4) < 2
    for key in jax.random.split(jax.random.key(0), 5):
        other = type(state)(**{**vars(state), 'goal': state.goal + 1})
        np.testing.assert_array_equal(env.step(key, state, *ask)[1], env.step(key, other, *ask)[1])


def test_first_turn_answers_the_first_question_only():
    outcome, success, log = play(Probe(probe='first_turn'), 'say <end>', *['ask <end>'] * 3, 'say v3 v1 <end>')
    assert [text for text, *_ in log] == ['<error>', 'v3 v1', 'ok', 'ok', '']
    assert [reward for _, reward, *_ in log] == [0, 0, 0, 0, 1] and (outcome, success) == (1.0, True)
    assert [is_error for *_, is_error in log] == [True, False, False, False, False]


def test_delayed_refuses_what_is_said_too_early():
    env = Probe(probe='delayed')
    assert play(env, 'ask <end>', 'say v3 v1 <end>') == (
        0.0, False, [('v3 v1', 0.0, False, False), ('', 0.0, True, False)]
    )  # fmt: skip
    outcome, success, log = play(env, *BEST['delayed'])
    assert (outcome, success) == (1.0, True) and [text for text, *_ in log] == ['v3 v1', 'ok', '']


def test_tied_outcome_is_the_same_whatever_is_done():
    env = Probe(probe='tied')
    plays = [BEST['tied'], ['say v0 v0 <end>'], ['ask <end>'] * 4, ['say <end>']]
    outcomes, successes, logs = zip(*(play(env, *actions) for actions in plays), strict=True)
    assert set(outcomes) == {float(np.float32(0.7))} and successes == (True, False, False, False)
    assert all(sum(reward for _, reward, *_ in log) == outcomes[0] for log in logs)


def test_error_surprise_surprises_by_errors_only():
    env = Probe(probe='error_surprise')
    seen = [play(env, 'say <end>', 'ask <end>', seed=seed)[2] for seed in range(20)]
    assert all(re.fullmatch(r'<error> v\d v\d', first[0]) and first[3] for first, _ in seen)
    assert len({first[0] for first, _ in seen}) > 10
    assert {second for _, second in seen} == {('ok', 0.0, False, False)}


@pytest.mark.parametrize('name', PROBES)
def test_guessing_fails_where_values_are_hidden(name):
    outcome, success, log = play(Probe(probe=name), 'say v3 v2 <end>', 'say v3 v1 <end>')
    assert not success and log[0][2] and outcome == (float(np.float32(0.7)) if name == 'tied' else 0.0)


@functools.cache
def readings(name, count=400):
    """Returns examples as (prompt, [(action, reply)], target), all text."""
    env = Probe(probe=name)
    batch = jax.jit(jax.vmap(env.example))(jax.random.split(jax.random.key(0), count))
    rows = []
    for tokens, target in zip(np.asarray(batch.tokens), np.asarray(batch.target_mask), strict=True):
        text = env.decode(tokens[: np.flatnonzero(target)[0]])
        prompt, past = re.fullmatch(r'(<user> \S+ \S+ <agent>)(.*)', text).groups()
        turns = re.findall(r' (\w+ <end>) <user> (.*?) <agent>', past)
        assert past == ''.join(f' {action} <user> {reply} <agent>' for action, reply in turns)
        rows.append((prompt, turns, env.decode(tokens[target])))
    return rows


@pytest.mark.parametrize('name', PROBES)
def test_example_has_the_layout_of_a_rollout(name):
    reply = {
        'no_info': [r'n\d n\d'] * 3,
        'error_surprise': ['ok'] * 3,
    }.get(name, [r'(v\d \?|\? v\d)', 'ok', 'ok'])
    for prompt, turns, target in readings(name):
        shown = name in ('no_info', 'error_surprise')
        assert re.fullmatch(r'<user> (v\d \?|\? v\d) <agent>' if shown else r'<user> \? \? <agent>', prompt)
        num_asked = 0
        for action, text in turns:
            wanted = r'<error> (v\d \?|\? v\d)' if action == 'say <end>' else reply[num_asked]
            assert text == '<no_information>' or re.fullmatch(wanted, text), (action, text)
            assert action == 'ask <end>' or name == 'error_surprise'
            num_asked += action == 'ask <end>'
        assert target == 'ask <end>' or re.fullmatch(r'say v\d v\d <end>', target)


@pytest.mark.parametrize('name', PROBES)
def test_example_says_what_the_user_named_last(name):
    says = 0
    for prompt, turns, target in readings(name):
        if target.startswith('ask'):
            continue
        says += 1
        said = target.split()[1:3]
        named = re.findall(r'(v\d \?|\? v\d)', ' '.join([prompt, *(reply for _, reply in turns)]))
        assert len({pair.index('?') for pair in named}) <= 1, 'one value is never told: no example is a solved episode'
        if named:
            assert all(word in ('?', value) for word, value in zip(named[-1].split(), said, strict=True))
        assert sum(int(word[1]) for word in said) % 8 != 0, 'a training goal'
    assert 140 < says < 260


def test_probe_refuses_an_unknown_name():
    with pytest.raises(ValueError, match=r"probe must be one of .*'tied'.*, got 'none'"):
        Probe(probe='none')
