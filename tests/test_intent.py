"""The slot-filling user, played by hand."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infopo_jax.envs.intent import Intent, State, complete_goal, left_align, pick


def act(env, text):
    """Returns one action [action_len] and its mask from words."""
    ids = env.encode(text)
    action = np.zeros(env.action_len, np.int32)
    action[: len(ids)] = ids
    return jnp.asarray(action), jnp.arange(env.action_len) < len(ids)


def start(goal):
    """Returns the state of an episode with this goal, before its first turn."""
    goal = jnp.asarray(goal, jnp.int32)
    return State(goal=goal, booked=jnp.full_like(goal, -1), turns=jnp.int32(0), done=jnp.bool_(False))


def play(env, state, *actions):
    """Plays actions given as words; returns the last state and (feedback text, reward, done, is_error) by turn."""
    log = []
    for text in actions:
        state, feedback, mask, reward, done, is_error = env.step(jax.random.key(0), state, *act(env, text))
        log.append((env.decode(feedback[mask]), float(reward), bool(done), bool(is_error)))
    return state, log


def test_vocab_has_literal_ids():
    env = Intent(num_slots=2, num_values=3, num_hidden=1)
    words = '<pad> <user> <agent> <end> ask book ? <error> <no_information> s0 s1 v0 v1 v2'
    assert env.vocab == tuple(words.split())
    assert (env.stop_id, env.feedback_open, env.feedback_close, env.placeholder) == (3, (1,), (2,), (8,))
    assert (env.prompt_len, env.action_len, env.feedback_len, env.max_turns) == (7, 4, 2, 6)
    # In literal tokens: ask s1 <end> -> s1 v2 for the goal (v0, v2).
    _, feedback, mask, *_ = env.step(jax.random.key(0), start([0, 2]), jnp.array([4, 10, 3, 0]), jnp.arange(4) < 3)
    assert feedback.tolist() == [10, 13] and mask.tolist() == [True, True]


def test_step_plays_a_dialogue_to_success():
    env = Intent()
    actions = 'ask s2 <end>', 'book ask <end>', 'ask s1 <end>', 'ask s2 <end>', 'book v2 v7 v5 v7 <end>'
    state, log = play(env, start([2, 7, 5, 7]), *actions)
    assert log == [
        ('s2 v5', 0.0, False, False),
        ('<error>', 0.0, False, True),
        ('s1 v7', 0.0, False, False),  # known from the prompt or not: the same answer
        ('s2 v5', 0.0, False, False),  # asked before: the same answer, no error
        ('', 1.0, True, False),
    ]
    assert int(state.turns) == 5
    assert [float(x) for x in env.score(state)] == [1.0, 1.0]


def test_step_calls_malformed_what_is_malformed():
    env = Intent()
    malformed = [
        'ask <end>', 'ask s1', 'ask v1 <end>', 'ask s1 s2 <end>', 'ask s1 <end> <end>', 'book v1 v2 v3 <end>', '<end>',
        'book v1 v2 v3 v4 v5', 'book v1 v2 v3 s0 <end>', 'book v1 v2 v3 v4', 'v1 v2 v3 v4 <end>', '<pad> ask s1 <end>',
    ]  # fmt: skip
    state, log = play(env, start([1, 2, 3, 4]), *malformed)
    assert log == [('<error>', 0.0, False, True)] * len(malformed)
    assert int(state.turns) == len(malformed) and not state.done


def test_score_sparse_and_share():
    wrong_once = 'book v1 v2 v3 v0 <end>'
    for reward, outcome in (('sparse', 0.0), ('share', 0.75)):
        env = Intent(reward=reward)
        state, log = play(env, start([1, 2, 3, 4]), wrong_once)
        assert log == [('', outcome, True, False)]
        assert [float(x) for x in env.score(state)] == [outcome, 0.0]
        assert [float(x) for x in env.score(start([1, 2, 3, 4]))] == [0.0, 0.0]


def test_score_takes_off_the_cost_of_turns():
    env = Intent(turn_cost=0.1)
    state, log = play(env, start([1, 2, 3, 4]), 'ask s0 <end>', 'ask ask <end>', 'book v1 v2 v3 v4 <end>')
    np.testing.assert_allclose([reward for _, reward, _, _ in log], [-0.1, -0.1, 0.9], atol=1e-6)
    np.testing.assert_allclose(env.score(state)[0], 1.0 - 3 * 0.1, atol=1e-6)
    assert env.outcome_range == 1.5  # 0.9 at once down to -0.6 at the limit


def test_step_after_booking_is_frozen():
    env = Intent(turn_cost=0.1)
    booked, _ = play(env, start([1, 2, 3, 4]), 'book v0 v0 v0 v0 <end>')
    state, log = play(env, booked, 'book v1 v2 v3 v4 <end>', 'ask s1 <end>', 'ask <end>')
    jax.tree.map(np.testing.assert_array_equal, state, booked)
    assert log == [('', 0.0, True, False)] * 3


@pytest.mark.parametrize('num_values', [2, 5, 12, 16])
def test_complete_goal_splits_by_checksum(num_values):
    num_test = {2: 1, 5: 1, 12: 2, 16: 2}[num_values]  # 0.15 of the checksums, rounded, at least one
    draws, values = jnp.linspace(0, 1, 400, endpoint=False), jnp.arange(1200).reshape(400, 3) * 7 % num_values
    for split, sums in (('test', range(num_test)), ('train', range(num_test, num_values))):
        complete = jax.vmap(functools.partial(complete_goal, slot=jnp.int32(1), num_values=num_values, split=split))
        goals = np.asarray(complete(draws, values))
        np.testing.assert_array_equal(goals[:, ::2], values[:, ::2])
        assert set((goals.sum(1) % num_values).tolist()) == set(sums)
        assert np.all((goals >= 0) & (goals < num_values))


def test_pick_covers_its_range_evenly():
    assert pick(jnp.array([0.0, 0.24, 0.25, 0.5, 0.99]), 3, 7).tolist() == [3, 3, 4, 5, 6]
    largest = jnp.float32(1 - 2**-24)  # no uniform draw is nearer to 1
    assert [int(pick(largest, 0, n)) for n in (1, 2, 3, 12, 16, 100)] == [0, 1, 2, 11, 15, 99]


def test_left_align_closes_holes():
    tokens, mask = jnp.array([5, 9, 6, 9, 7]), jnp.array([True, False, True, False, True])
    out = left_align(tokens, mask, jnp.array([False, False, False, True, True]))
    assert out.tokens.tolist() == [5, 6, 7, 0, 0]
    assert out.token_mask.tolist() == [True, True, True, False, False]
    assert out.target_mask.tolist() == [False, False, True, False, False]


def test_reset_hides_slots_at_random():
    env = Intent(num_slots=4, num_hidden=3)
    state, prompt, _ = jax.vmap(lambda key: env.reset(key, 'train'))(jax.random.split(jax.random.key(0), 400))
    assert env.decode(prompt[0][:2]) == '<user> book' and env.decode(prompt[0][-1:]) == '<agent>'
    values = np.asarray(prompt)[:, 3:-1:2]
    hidden = values == env.vocab.index('?')
    assert np.all(hidden.sum(1) == 3) and np.all(np.abs(hidden.mean(0) - 0.75) < 0.1)
    np.testing.assert_array_equal(values[~hidden], (np.asarray(state.goal) + env.value_id)[~hidden])


def expert(env, prompt, replies):
    """Asks each hidden slot, then books: the best action [N, action_len] after ``replies``, a list of [N, 2]."""
    values = np.array(prompt)[:, 3:-1:2]
    hidden = values == env.vocab.index('?')
    for slots, answers in (reply.T for reply in replies):
        values[np.arange(len(values)), slots - env.slot_id] = answers
    actions = np.zeros((len(values), env.action_len), np.int32)
    if len(replies) < env.num_hidden:
        slot = np.array([np.flatnonzero(row)[len(replies)] for row in hidden])
        actions[:, 0], actions[:, 1], actions[:, 2] = env.encode('ask')[0], env.slot_id + slot, env.stop_id
    else:
        actions[:, 0], actions[:, 1:-1], actions[:, -1] = env.encode('book')[0], values, env.stop_id
    return jnp.asarray(actions)


@pytest.mark.parametrize('split', ['train', 'test'])
@pytest.mark.parametrize('knobs', [{}, {'num_slots': 3, 'num_values': 16, 'num_hidden': 2, 'turn_limit': 4}])
def test_expert_always_succeeds(split, knobs):
    env = Intent(**knobs)
    keys = jax.random.split(jax.random.key(0), 200)
    state, prompt, _ = jax.vmap(lambda key: env.reset(key, split))(keys)
    step, replies = jax.jit(jax.vmap(env.step)), []
    for _ in range(env.num_hidden + 1):
        actions = expert(env, prompt, replies)
        state, feedback, *_ = step(keys, state, actions, actions > 0)
        replies.append(np.asarray(feedback))
    outcome, success = jax.vmap(env.score)(state)
    assert outcome.mean() == 1.0 and success.all()
    assert np.all(state.turns == env.num_hidden + 1) and env.num_hidden + 1 <= env.max_turns


@pytest.mark.parametrize('copies', [False, True])
def test_booking_at_random_fails(copies):
    env = Intent()
    keys = jax.random.split(jax.random.key(0), 2000)
    state, prompt, _ = jax.vmap(lambda key: env.reset(key, 'test'))(keys)
    values = np.random.default_rng(0).integers(0, env.num_values, state.goal.shape) + env.value_id
    shown = np.asarray(prompt)[:, 3:-1:2]
    values = np.where(copies & (shown >= env.value_id), shown, values)
    actions = np.full((2000, env.action_len), env.stop_id, np.int32)
    actions[:, 0], actions[:, 1:-1] = env.encode('book')[0], values
    state, *_ = jax.vmap(env.step)(keys, state, jnp.asarray(actions), jnp.ones(actions.shape, bool))
    outcome, success = jax.vmap(env.score)(state)
    assert state.done.all() and outcome.mean() < 0.05 and success.mean() < 0.05


@functools.cache
def examples(**knobs):
    """Returns 1000 examples as (text of the history, text of the target)."""
    env = Intent(**knobs)
    batch = jax.jit(jax.vmap(env.example))(jax.random.split(jax.random.key(0), 1000))
    tokens, mask, target = (np.asarray(x) for x in (batch.tokens, batch.token_mask, batch.target_mask))
    return [(env.decode(t[m & ~a]), env.decode(t[a])) for t, m, a in zip(tokens, mask, target, strict=True)]


@pytest.mark.parametrize('num_hidden', [1, 3])
def test_example_has_the_layout_of_a_rollout(num_hidden):
    env = Intent(num_hidden=num_hidden)
    for history, target in examples(num_hidden=num_hidden)[:60]:
        shown = re.findall(r's(\d) v(\d+)', history)  # all values that the history tells, prompt and answers
        goal = np.zeros(env.num_slots, int)
        for slot, value in shown:
            goal[int(slot)] = int(value)
        # Replay: prompt, then for each action its feedback between markup, the placeholder where the example has it.
        prompt, *_ = history.partition(' <agent>')
        hidden = np.array([word == '?' for word in prompt.split()[3::2]])
        rebuilt = env.decode(env._prompt(jnp.asarray(goal), jnp.asarray(hidden)))
        state = start(goal)
        for action, reply in re.findall(r'(ask s\d <end>) <user> (.*?) <agent>', history):
            state, [(feedback, *_)] = play(env, state, action)
            feedback = env.decode(env.placeholder) if reply == env.decode(env.placeholder) else feedback
            rebuilt = ' '.join([rebuilt, action, '<user>', feedback, '<agent>'])
        assert rebuilt == history
        state, [(*_, is_error)] = play(env, state, target)
        assert not is_error and int(state.turns) <= env.max_turns


def test_example_copies_what_is_known_and_solves_nothing():
    env, books, lengths = Intent(), 0, set()
    for history, target in examples(num_hidden=3):
        known = {int(slot): int(value) for slot, value in re.findall(r's(\d) v(\d+)', history)}
        lengths.add(history.count('<end>'))
        assert len(known) < env.num_slots, 'one slot is never told: no example holds a solved episode'
        if target.startswith('book'):
            books += 1
            booked = [int(word[1:]) for word in target.split()[1:-1]]
            assert all(booked[slot] == value for slot, value in known.items())
            assert sum(booked) % env.num_values >= 2, 'a training goal'
    assert 430 < books < 570 and lengths == set(range(env.max_turns))


@pytest.mark.parametrize('ask_fraction', [0.1, 1.0])
def test_example_asks_with_the_given_share(ask_fraction):
    targets = [target for _, target in examples(ask_fraction=ask_fraction)]
    asks = [target.split()[1] for target in targets if target.startswith('ask')]
    assert abs(len(asks) / 1000 - ask_fraction) < 0.03
    if ask_fraction == 1.0:
        assert all(abs(asks.count(f's{k}') - 250) < 50 for k in range(4))


@pytest.mark.parametrize(
    'knobs, message',
    [
        ({'num_slots': 1}, 'num_slots must be at least 2'),
        ({'num_values': 1}, 'num_values must be at least 2'),
        ({'num_hidden': 5}, r'num_hidden must be from 1 to num_slots \(4\)'),
        ({'turn_limit': 3}, r'turn_limit must be more than num_hidden \(3\)'),
        ({'reward': 'dense'}, "reward must be 'sparse' or 'share', got 'dense'"),
        ({'turn_cost': -1.0}, 'turn_cost must be at least 0'),
        ({'ask_fraction': 1.5}, 'ask_fraction must be from 0 to 1'),
    ],
)
def test_intent_refuses_knobs_out_of_range(knobs, message):
    with pytest.raises(ValueError, match=message):
        Intent(**knobs)
