"""Episodes of collaborative programming."""

import random

import pytest
from colbench_play import GOAL, RIGHT, Parrot, needs_sandbox, play, start, texts

from infopo_jax.envs import sandbox
from infopo_jax.envs.colbench import ColBench, grade
from infopo_jax.envs.colbench.functions import LEVELS, MARKER, by_name, slots
from infopo_jax.users.styles import STYLES

pytestmark = needs_sandbox


@pytest.mark.parametrize('level', LEVELS)
def test_expert_hands_in_the_reference_of_every_task(level, monkeypatch):
    """Runs every distinct answer; what the sandbox makes of them, the next test sees on a sample."""
    monkeypatch.setattr(grade, 'share', lambda task, source: float(source == task.source))
    env = ColBench(level)
    for split in ('train', 'test'):
        for seed, task in enumerate(env.tasks(split)):
            env.reset(seed=seed, options={'task': task})
            _, reward, terminated, _, info = play(env, env.expert)
            assert reward == info['outcome'] == 1.0 and info['success'] and terminated, task


@pytest.mark.parametrize('level', LEVELS)
@pytest.mark.parametrize('style', STYLES)
def test_expert_earns_everything(level, style):
    env = ColBench(level, user_style=style)
    for seed, task in enumerate(random.Random(0).sample(env.tasks('test'), 12)):
        env.reset(seed=seed, options={'task': task})
        assert play(env, env.expert)[1] == 1.0, (task, texts(env._messages))


@pytest.mark.parametrize('text', ['', 'Which limit?', 'Hello.', 'pass', f'{MARKER}', f'{MARKER} pass'])
def test_doing_nothing_scores_zero(text):
    env = ColBench(turn_limit=3)
    for task in env.tasks('test')[:4]:
        env.reset(options={'task': task})
        _, reward, terminated, truncated, info = play(env, lambda: text)
        assert reward == info['outcome'] == 0.0 and not info['success']
        assert terminated == (MARKER in text) and truncated != terminated


def test_random_actions_are_legal_and_rarely_right():
    env, rng, kinds, total = ColBench(turn_limit=10), random.Random(0), set(), 0.0
    for seed in range(60):
        env.reset(seed=seed, options={'task': rng.choice(env.tasks('test'))})

        def act():
            action = env.random_action(rng)
            kinds.add(action[:40])
            return action

        total += play(env, act)[4]['success']
    assert total <= 2 and len(kinds) == len(slots(1)) + len(by_name(1))


def test_step_plays_the_literal_first_level():
    env, messages = start()
    assert [message['role'] for message in messages] == ['system', 'user'] and 'discount(total)' in texts(messages)[1]
    answer, reward, *ended, info = env.step('Which limit?')
    assert answer[0]['role'] == 'user' and '150' in answer[0]['content']
    assert (reward, ended, info) == (0.0, [False, False], {'is_error': False})
    assert '15' in env.step('<think>percent?</think>Which rate?')[0][0]['content']
    answer, reward, terminated, truncated, info = env.step(RIGHT)
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert info == {'is_error': False, 'success': True, 'outcome': 1.0, 'share': 1.0}


def test_step_pays_the_share_or_all_or_nothing():
    wrong = RIGHT.replace('150', '120')
    shares = {}
    for reward in ('share', 'sparse'):
        env, _ = start(reward=reward, turn_cost=0.01)
        env.step('Which limit?')
        shares[reward] = env.step(wrong)
        assert not shares[reward][4]['success'] and shares[reward][2]
    assert 0.5 <= shares['share'][4]['share'] < 1
    assert shares['share'][1] == pytest.approx(shares['share'][4]['share'] - 0.02)
    assert shares['sparse'][1] == pytest.approx(-0.02)
    env, _ = start(turn_cost=0.01)
    assert env.score(3) == pytest.approx(-0.03)
    assert ColBench(turn_cost=0.01).outcome_range == pytest.approx(1.09)


def test_step_takes_the_last_turn_for_an_answer():
    env, _ = start(turn_limit=1)
    _, reward, terminated, truncated, info = env.step(RIGHT.removeprefix(MARKER))
    assert (reward, terminated, truncated, info['success']) == (1.0, True, False, True)
    env.reset(options={'task': GOAL})
    _, reward, terminated, truncated, info = env.step('Which limit?')
    assert (reward, terminated, truncated, info['success']) == (0.0, False, True, False)


@pytest.mark.parametrize('text', ['', '   ', '<think>never ends', '<think>x</think>'])
def test_step_answers_an_empty_turn_with_an_error(text):
    env, _ = start()
    answer, reward, terminated, truncated, info = env.step(text)
    assert answer[0]['role'] == 'tool' and answer[0]['content'].startswith('Error: ')
    assert info == {'is_error': True} and (reward, terminated, truncated) == (0.0, False, False)
    assert play(env, env.expert)[1] == 1.0


def test_step_needs_a_running_episode():
    env = ColBench()
    for act in (lambda: env.step('hello'), env.expert):
        with pytest.raises(ValueError, match='call reset'):
            act()
    env.reset(options={'task': GOAL})
    env.step(RIGHT)
    with pytest.raises(ValueError, match='call reset'):
        env.step(RIGHT)


def test_reset_is_deterministic_and_seeds_change_only_wording():
    transcripts = []
    for seed in range(8):
        pair = []
        for _ in range(2):
            env, _ = start(seed=seed)
            assert play(env, env.expert)[1] == 1.0
            pair.append(texts(env._messages))
        assert pair[0] == pair[1] and RIGHT in pair[0]
        transcripts.append(tuple(pair[0]))
    assert len(set(transcripts)) > 3


def test_reset_draws_a_training_task_by_default():
    env = ColBench()
    drawn = {env.reset(seed=seed)[1]['task'] for seed in range(20)}
    assert len(drawn) > 5 and drawn <= set(env.tasks('train'))


def test_colbench_refuses_knobs_that_do_not_fit(monkeypatch):
    for knobs in ({'level': 4}, {'turn_limit': 0}, {'reward': 'all'}, {'turn_cost': -1.0}, {'user_style': 'loud'}):
        with pytest.raises(ValueError, match='must be'):
            ColBench(**knobs)
    with pytest.raises(ValueError, match='user_style'):
        ColBench(user=Parrot(), user_style='terse')
    monkeypatch.setattr(sandbox, 'refusal', lambda: 'no walls here')
    with pytest.raises(ValueError, match='no walls here'):
        ColBench()
