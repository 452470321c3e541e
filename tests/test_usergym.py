"""Tests of our own gyms: puzzles, replies, scores, reference players, and what is taught."""

import pathlib
import random
import runpy

import pytest
from three_updates import three_updates

from infopo_jax import config as config_lib
from infopo_jax.envs.tools import parse
from infopo_jax.envs.usergym import UserGym, teach
from infopo_jax.envs.usergym.base import puzzles
from infopo_jax.envs.usergym.env import OWN
from infopo_jax.envs.usergym.function import rules, value
from infopo_jax.envs.usergym.moves import found, written
from infopo_jax.envs.usergym.search import NAMES, facts, search

ROOT = pathlib.Path(__file__).resolve().parents[1]
GYMS = list(OWN)
LEVELS = (1, 2, 3)
RANDOM = {  # mean outcome of random legal play at levels 1, 2, 3 over 500 episodes, as docs/environments.md states it
    'intention': (0.20, 0.26, 0.26),
    'travel': (0.24, 0.14, 0.11),
    'turtle': (0.44, 0.40, 0.32),
    'telepathy': (0.23, 0.17, 0.10),
    'function': (0.18, 0.04, 0.02),
    'persuade': (0.47, 0.36, 0.28),
    'search': (0.20, 0.01, 0.02),
}


def start(gym, puzzle=None, *, seed=0, **knobs):
    """Returns an environment in the first turn; a puzzle that is given takes the place of the task's own."""
    env = UserGym(gym, **knobs)
    messages, _ = env.reset(seed=seed, options={'task': env.tasks('test')[0]})
    if puzzle:
        env.gym.puzzle = puzzle
        messages = [messages[0], {'role': 'user', 'content': env.gym.open()}]
    return env, messages


def deal(gym, **fields):
    """Returns a puzzle of a gym with these fields."""
    return type(next(iter(puzzles(type(UserGym(gym).gym), 1).values())))(**fields)


def play(env, policy):
    """Plays to the end; returns the last step's info with the number of turns."""
    for turn in range(1, env.max_turns + 1):
        *_, terminated, truncated, info = env.step(policy())
        if terminated or truncated:
            return info | {'turns': turn, 'terminated': terminated}
    raise AssertionError('no end at the turn limit')


def say(env, choice, content=''):
    """Makes a move; returns the text of the reply, and the info."""
    messages, _, _, _, info = env.step(written((choice, content)))
    return messages[0]['content'], info


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


# One literal episode each


def test_intention_pays_by_importance():
    values = ('monday', '$200', 'garden', 'pasta', 'jazz', 'ten')
    puzzle = deal('intention', occasion='wedding', values=values)  # place, guests, music, date
    env, messages = start('intention', puzzle, level=2)
    assert messages[1]['content'] == 'Please plan a wedding.'
    text, info = say(env, 'action', 'Which GUESTS, and which date?')
    assert 'ten' in text and 'monday' not in text and not info['is_error']
    assert say(env, 'action', 'What else?')[1]['is_error']
    for answer, outcome in (('garden', 1.0), ('ten jazz', 1.1), ('garden ten jazz', 2.1), ('garden castle ten', 0.7)):
        env, _ = start('intention', puzzle, level=2)
        info = say(env, 'answer', answer)[1]
        assert info['outcome'] == pytest.approx(outcome / 2.1) and info['success'] == (outcome == 2.1)


def test_travel_pays_the_cheapest_that_matches():
    rows = (('inn_1', '$55', ('lake', 'loft', 'vegan')), ('inn_2', '$60', ('beach', 'loft', 'vegan')),
            ('inn_3', '$65', ('beach', 'loft', 'grill')), ('inn_4', '$70', ('beach', 'suite', 'grill')))  # fmt: skip
    puzzle = deal('travel', preferences=(('area', 'beach'), ('room', 'loft')), inns=rows)
    env, _ = start('travel', puzzle, level=2)
    assert say(env, 'action', 'Which meal?')[0] == 'Any will do.'
    assert 'beach' in say(env, 'action', 'area?')[0]
    assert say(env, 'search', 'loft')[0] == 'inn_1 $55, inn_2 $60.'
    assert say(env, 'search', 'a loft at the beach')[0] == 'inn_2 $60, inn_3 $65.'
    assert say(env, 'search', 'lake grill')[0] == 'No inn has all of that.'
    for answer, outcome in (('inn_2', 1.0), ('inn_3', 0.8), ('inn_1', 0.0), ('inn_2 inn_3', 0.0), ('', 0.0)):
        env, _ = start('travel', puzzle, level=2)
        info = say(env, 'answer', answer)[1]
        assert info['outcome'] == outcome and info['success'] == (outcome == 1.0)


def test_turtle_answers_yes_and_no_and_pays_by_facts():
    puzzle = deal(
        'turtle', scene='A scene.', candidates=(('widow', 'thief'), ('debt', 'fear')), story=('thief', 'debt')
    )
    env, messages = start('turtle', puzzle)
    assert messages[1]['content'] == 'A scene. who: widow thief. why: debt fear.'
    assert say(env, 'action', 'Was it the widow?')[0] == 'no.'
    assert say(env, 'action', 'A thief?')[0] == 'yes.'
    assert say(env, 'action', 'A sailor?')[1]['is_error']
    for answer, outcome in (('thief debt', 1.0), ('thief fear', 0.5), ('widow thief debt', 0.5), ('widow', 0.0)):
        env, _ = start('turtle', puzzle)
        assert say(env, 'answer', answer)[1]['outcome'] == outcome


def test_telepathy_answers_about_the_table():
    puzzle = deal('telepathy', table=(('ibex', 'small', 'red'), ('wren', 'large', 'red')), target='wren')
    env, messages = start('telepathy', puzzle)
    assert messages[1]['content'] == 'ibex small red. wren large red.'
    assert [say(env, 'action', text)[0] for text in ('Is it large?', 'red?', 'the ibex?')] == ['yes.', 'yes.', 'no.']
    for answer, outcome in (('wren', 1.0), ('ibex', 0.0), ('ibex wren', 0.0)):
        env, _ = start('telepathy', puzzle)
        assert say(env, 'answer', answer)[1]['outcome'] == outcome


def test_function_applies_rules_from_left_to_right():
    assert [len(rules(level)) for level in LEVELS] == [4, 4 * 3 * 3, 24 * 27]
    assert value(('b', '-', 'a', '*', 'c', '+', 'd'), (2, 7, 3, 1)) == 16
    env, _ = start('function', deal('function', rule=('b', '*', 'd'), test=(2, 7, 3, 9)), level=2)
    assert say(env, 'search', 'Test')[0] == '2 7 3 9.'
    assert say(env, 'action', 'f(1, 2, 3, 4)')[0] == '8.'
    for choice, content in (('action', '2 7 3 9'), ('action', '1 2 3'), ('search', 'me')):
        assert say(env, choice, content)[1]['is_error']
    assert say(env, 'answer', 'It is 63.')[1]['success']


def test_persuade_moves_on_only_for_the_right_argument_and_leaves_after_two_misses():
    puzzle = deal('persuade', claim='No.', concerns=(('cost', 'figures'), ('time', 'studies')))
    env, _ = start('persuade', puzzle)
    text = say(env, 'action', 'Why?')[0]
    assert 'cost' in text and 'figures' in text
    assert say(env, 'action', 'On cost: here are figures')[0] == 'Fair enough, but still.'
    assert say(env, 'action', 'cost time studies')[1]['is_error']
    assert say(env, 'action', 'time figures')[0] == 'That misses my point.'
    assert say(env, 'action', 'cost figures')[1]['outcome'] == 0.5  # the second miss
    env, _ = start('persuade', puzzle)
    say(env, 'action', 'cost figures')
    assert say(env, 'action', 'time studies')[1] == {'is_error': False, 'success': True, 'outcome': 1.0}


def test_search_follows_texts():
    known = facts(3)
    person = known['founder', 'Orix']
    env, messages = start('search', deal('search', world=3, start='Orix', path=('founder', 'home')), level=2)
    assert messages[1]['content'] == 'What is the home of the founder of Orix?'
    assert f'The founder of Orix is {person}.' in say(env, 'search', 'Who is the founder of Orix?')[0]
    assert say(env, 'search', 'xyzzy')[1]['is_error']
    assert say(env, 'answer', f'In {known["home", person]}.')[1]['success']


def test_search_finds_every_fact_of_a_library():
    for (relation, name), target in facts(0).items():
        assert f'The {relation} of {name} is {target}.' in search(0, f'{relation} {name}')
    assert not any(name == target for (_, name), target in facts(0).items())
    assert len(set(NAMES)) == len(NAMES)


def test_found_reads_whole_words_in_order():
    assert found('The Debt? No, $20 or fear-less.', ['fear', 'no', 'debt', '$20', 'deb', 'ebt']) == [
        'debt',
        'no',
        '$20',
        'fear',
    ]
    assert found('', ['a']) == []


# The shared contract


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


def test_usergym_refuses_misuse():
    env = UserGym('turtle')
    with pytest.raises(ValueError, match='call reset'):
        env.step('x')
    with pytest.raises(ValueError, match="'train' or 'test'"):
        env.tasks('valid')
    with pytest.raises(ValueError, match="unknown task 'turtle-x'"):
        env.reset(options={'task': 'turtle-x'})


# Training


def test_default_config_trains(tmp_path):
    three_updates('usergym', tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('level', LEVELS)
@pytest.mark.parametrize('gym', GYMS)
def test_every_gym_trains(tmp_path, gym, level):
    three_updates('usergym', tmp_path, env__gym=gym, env__level=level)


def test_functiongym_itself_trains(tmp_path):
    pytest.importorskip('functiongym', reason='pip install -e UserRL/gyms/FunctionGym')
    sizes = {'max_prompt_tokens': 320, 'max_action_tokens': 16, 'max_feedback_tokens': 48, 'max_tokens': 640}
    sizes = {f'rollout__{name}': size for name, size in sizes.items()}
    three_updates('usergym', tmp_path, env__gym='FunctionGym', env__level=None, env__turn_limit=4, **sizes)


def test_paper_setting_is_the_papers():
    config = runpy.run_path(str(ROOT / 'configs' / 'usergym.py'))['get_config']('paper')
    config_lib.validate(config)
    assert (config.batch.prompts, config.batch.group_size, config.optim.lr) == (64, 5, 3e-7)
    assert (config.env.turn_limit, config.info.weight, config.info.gate_temperature) == (16, 0.5, 0.5)
    with pytest.raises(ValueError, match="'small' or 'paper'"):
        runpy.run_path(str(ROOT / 'configs' / 'usergym.py'))['get_config']('large')
