"""What holds of every gym of our own: puzzles, replies, scores, reference players, and what is taught."""

import random

import pytest
from usergym_play import GYMS, LEVELS, deal, play, say, start

from infopo_jax.envs.tools import parse
from infopo_jax.envs.usergym import UserGym, teach
from infopo_jax.envs.usergym.base import puzzles
from infopo_jax.envs.usergym.moves import written

RANDOM = {  # mean outcome of random legal play at levels 1, 2, 3 over 500 episodes, as docs/environments.md states it
    'intention': (0.20, 0.26, 0.26),
    'travel': (0.24, 0.14, 0.11),
    'turtle': (0.44, 0.40, 0.32),
    'telepathy': (0.23, 0.17, 0.10),
    'function': (0.18, 0.04, 0.02),
    'persuade': (0.47, 0.36, 0.28),
    'search': (0.20, 0.01, 0.02),
}


@pytest.mark.parametrize('gym', GYMS)
@pytest.mark.parametrize('level', LEVELS)
class TestEveryGym:
    def test_tasks_are_disjoint_puzzles(self, gym, level):
        env = UserGym(gym, level=level)
        train, test = env.tasks('train'), env.tasks('test')
        assert (len(train), len(test)) == (400, 100)
        dealt = puzzles(type(env.gym), level)
        assert not {dealt[task] for task in train} & {dealt[task] for task in test}
        assert len({dealt[task] for task in train}) == 400

    def test_expert_solves_every_task(self, gym, level):
        env = UserGym(gym, level=level)
        for seed, task in enumerate([*env.tasks('test'), *env.tasks('train')[::4]]):
            env.reset(seed=seed, options={'task': task})
            info = play(env, env.expert)
            assert info['success'] and info['outcome'] == 1.0 and info['terminated'], task

    @pytest.mark.parametrize('text', ['', 'Hello?', '<tool_call>', written(('finish', '')), written(('action', '!'))])
    def test_doing_nothing_scores_zero(self, gym, level, text):
        env = UserGym(gym, level=level)
        for task in env.tasks('test')[::10]:
            env.reset(options={'task': task})
            info = play(env, lambda: text)
            assert info['outcome'] == 0.0 and not info['success']

    def test_random_play_scores_little(self, gym, level):
        env, rng = UserGym(gym, level=level), random.Random(0)
        total = 0.0
        for seed, task in enumerate(env.tasks('test') * 5):
            env.reset(seed=seed, options={'task': task})
            total += play(env, lambda: env.random_action(rng))['outcome'] / 500
        assert total == pytest.approx(RANDOM[gym][level - 1], abs=0.006)

    def test_notes_hold_no_more_than_was_shown(self, gym, level):
        env, rng = UserGym(gym, level=level), random.Random(1)
        for task in env.tasks('test')[::5]:
            messages, _ = env.reset(options={'task': task})
            shown = messages[1]['content']
            for _ in range(env.max_turns):
                action = env.random_action(rng)
                answer, _, terminated, truncated, _ = env.step(action)
                shown += f' {action} {answer[0]["content"]}'
                assert all(note in shown or note == 'any' for note in env.gym.notes.values())
                if terminated or truncated:
                    break

    def test_example_is_legal_copies_and_is_never_a_solved_episode(self, gym, level):
        player, rng, choices, notes = UserGym(gym, level=level).gym, random.Random(0), set(), []
        step = player.step
        player.step = lambda text: notes.append(dict(player.notes)) or step(text)  # before the target, what was shown
        for _ in range(150):
            history, target = teach.example(player, rng)
            shown = ' '.join(message['content'] for message in history)
            assert [message['role'] for message in history[:3:2]] in (['system'], ['system', 'assistant'])
            assert all(note in shown or note == 'any' for note in notes[-1].values())
            assert not player.knows(notes[-1])
            call = parse(target, [player.schema])
            assert call.error is None
            choices.add(call.arguments['choice'])
            if call.arguments['choice'] == 'answer':
                assert all(word in shown for word in call.arguments['content'].split())
        assert choices == set(player.choices)

    def test_corpus_and_special_tokens_cover_what_is_said(self, gym, level):
        env = UserGym(gym, level=level)
        messages, _ = env.reset(options={'task': env.tasks('train')[0]})
        corpus, tokens = ' '.join(env.corpus()), env.special_tokens()
        assert messages[0]['content'] in corpus and env.placeholder in corpus and 'Error: call the tool' in corpus
        assert len(tokens) == len(set(tokens)) < 70 and '' not in tokens
        head, tail = written((env.gym.choices[0], '|')).split('|')
        assert {head, tail} <= set(tokens)


def test_reward_sparse_pays_only_for_everything():
    puzzle = deal('turtle', scene='A.', candidates=(('widow', 'thief'), ('debt', 'fear')), story=('thief', 'debt'))
    for answer, outcome in (('thief fear', 0.0), ('thief debt', 1.0)):
        env, _ = start('turtle', puzzle, reward='sparse')
        assert say(env, 'answer', answer)[1]['outcome'] == outcome


def test_turn_cost_is_taken_off_for_every_move():
    env, _ = start('telepathy', turn_cost=0.1, turn_limit=3)
    assert env.outcome_range == pytest.approx(1.2) and env.max_turns == 3
    say(env, 'action', 'red?')
    assert say(env, 'finish')[1]['outcome'] == pytest.approx(-0.2)
    env, _ = start('telepathy', turn_limit=1)
    _, reward, terminated, truncated, info = env.step('')
    assert (reward, terminated, truncated, info['success']) == (0.0, False, True, False)


def test_reset_is_deterministic_and_seeds_change_only_wording():
    transcripts = set()
    for seed in range(8):
        pair = []
        for _ in range(2):
            env, messages = start('intention', seed=seed)
            pair.append((messages[1]['content'], *(say(env, 'action', f'{detail}?')[0] for detail in ('date', 'food'))))
        assert pair[0] == pair[1]
        transcripts.add(pair[0])
    assert len(transcripts) > 2 and len({transcript[0] for transcript in transcripts}) == 1


def test_example_leaves_a_running_episode_alone():
    env, _ = start('travel', level=3)
    env.step(env.expert())
    env.example(random.Random(0))
    env.corpus()
    assert play(env, env.expert)['success']


def test_info_holds_the_tool_and_the_task():
    info = UserGym('search').reset(seed=1)[1]
    tool = info['tools'][0]['function']
    assert tool['name'] == 'interact_with_env'
    assert tool['parameters']['properties']['choice']['enum'] == ['search', 'answer', 'finish']
    assert info['task'] in UserGym('search').tasks('train')


@pytest.mark.parametrize(
    ('knobs', 'words'),
    [
        ({'gym': 'intent'}, 'gym must be one of intention, travel'),
        ({'level': 4}, 'level must be one of'),
        ({'turn_limit': 0}, 'turn_limit must be at least 1'),
        ({'turn_cost': -1.0}, 'turn_cost must be at least 0'),
        ({'reward': 'dense'}, 'reward must be one of'),
        ({'data': 'here'}, "gym 'intention' has no knob 'data'; it has turn_limit, level"),
        ({'gym': 'TauGym', 'level': 1}, "gym 'TauGym' has no knob 'level'; it has turn_limit, data"),
    ],
)
def test_usergym_refuses_knobs_with_the_fix(knobs, words):
    with pytest.raises(ValueError, match=words):
        UserGym(**knobs)


@pytest.mark.parametrize(('reward', 'outcome'), [('share', 0.5 - 0.3), ('sparse', -0.3)])
def test_gym_that_is_cut_keeps_its_partial_score_and_counts_turns_that_it_did_not_hear(monkeypatch, reward, outcome):
    env, _ = start('persuade', turn_cost=0.1, reward=reward)
    monkeypatch.setattr(env.gym, 'partial', lambda: 0.5)
    env.step(written(env.gym.questions()[0]))
    assert env.score(3) == pytest.approx(outcome)


def test_usergym_refuses_misuse():
    env = UserGym('turtle')
    with pytest.raises(ValueError, match='call reset'):
        env.step('x')
    with pytest.raises(ValueError, match="'train' or 'test'"):
        env.tasks('valid')
    with pytest.raises(ValueError, match="unknown task 'turtle-x'"):
        env.reset(options={'task': 'turtle-x'})
