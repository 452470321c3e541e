"""Tests of the adapter to UserRL's gyms: with a stand-in for its packages, and with FunctionGym itself where it is."""

import json
import os
import random
import sys
import traceback
import types
from types import SimpleNamespace

import pytest

from infopo_jax.envs.tools import parse
from infopo_jax.envs.usergym import UserGym, tasks
from infopo_jax.envs.usergym.eight import EIGHT
from infopo_jax.envs.usergym.moves import written
from infopo_jax.envs.usergym.userrl import UserRL
from infopo_jax.users import UserFailed

INSTALL = 'git clone https://github.com/SalesforceAIResearch/UserRL && pip install -e ./UserRL/gyms/FunctionGym'


class Game:
    """Stands in for a gym: 'win' wins, 'fail' is a judge that failed; heard actions stay in ``heard``.

    It quotes its key: where 'leak' is said, and in an exception where 'crash' is, or from ``reset`` where ``broken``.
    """

    broken = False

    last = None

    def __init__(self, config):
        self.config, self.heard, self.guessed, self.answered_correctly = config, [], False, False
        Game.last = self

    def reset(self, seed=None):
        if self.broken:
            self.quote()
        return {'description': 'A game.', 'goal': '', 'feedback': 'Go.'}, {}

    def step(self, action):
        self.heard.append(action)
        won = 'win' in action
        self.guessed = self.answered_correctly = won
        limit = len(self.heard) >= self.config.max_steps
        if 'crash' in action:
            self.quote()
        said = f'{self.config.api_key}, {os.environ["OPENAI_API_KEY"]}?' if 'leak' in action else 'Hm.'
        feedback = {'feedback': 'Please provide four.' if 'bad' in action else said}
        return feedback, 0.5, won or limit or action == '[finish]', limit, {'judge_success': 'fail' not in action}

    def close(self):
        pass

    def quote(self):
        raise Refused(self.config.api_key, cause=ValueError(f'Bearer {self.config.api_key}'))


class Refused(Exception):
    """Cannot be made from a message alone, as those of OpenAI's client."""

    def __init__(self, key, *, cause):
        super().__init__(f'Incorrect API key: {key!r}')
        self.__cause__ = cause


@pytest.fixture
def gyms(tmp_path, monkeypatch):
    """Puts stand-ins for two packages on the path; returns the folder with their data."""
    UserRL.num_failures.clear()
    tasks.load.cache_clear()
    folder = tmp_path / 'stand_in' / 'data'
    folder.mkdir(parents=True)
    (folder / 'functions.json').write_text(json.dumps([{'id': f'f{i}', 'title': f't{i}'} for i in range(10)]))
    for name in ('FunctionGym', 'TelepathyGym'):
        module = types.ModuleType(EIGHT[name].module)
        module.__file__ = str(folder.parent / '__init__.py')
        setattr(module, EIGHT[name].env, Game)
        module.get_default_config = lambda: SimpleNamespace(model_name='theirs')
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setenv('OPENAI_API_KEY', 'sk-test')
    yield folder
    tasks.load.cache_clear()


def start(gym='FunctionGym', **knobs):
    env = UserGym(gym, **knobs)
    return env, *env.reset(options={'task': env.tasks('test')[0]})


def say(env, choice, content=''):
    messages, reward, terminated, truncated, info = env.step(written((choice, content)))
    return messages[0]['content'], reward, terminated, truncated, info


def test_step_writes_userrls_action_strings(gyms):
    env, _, info = start()
    assert info['tools'][0]['function']['parameters']['properties']['choice']['enum'][-1] == 'finish'
    for choice, content in (('action', '1 2'), ('search', 'test'), ('answer', '[answer] 3'), ('action', '[answer] 3')):
        say(env, choice, content)
    say(env, 'finish', 'ignored')
    heard = ['[action] 1 2', '[search] test', '[answer] 3', '[action] [answer] 3', '[finish]']
    assert Game.last.heard == heard


def test_step_answers_what_is_no_move_itself(gyms):
    env, _, _ = start()
    for text in ('hello', written(('shout', 'x')), '<tool_call>'):
        messages, *_, info = env.step(text)
        assert messages[0]['content'].startswith('Error: ') and info == {'is_error': True}
    assert Game.last.heard == []
    assert say(env, 'action', 'bad')[4] == {'is_error': True, 'malformed': False}


def test_outcome_is_the_sum_of_rewards_and_finishing_is_no_success(gyms):
    env, _, _ = start()
    say(env, 'action', 'x')
    assert say(env, 'answer', 'win') == ('Hm.', 0.5, True, False, {'is_error': False, 'success': True, 'outcome': 1.0})
    env, _, _ = start()
    assert say(env, 'finish')[2:] == (True, False, {'is_error': False, 'success': False, 'outcome': 0.5})


def test_limit_is_truncation_unless_the_last_move_has_won(gyms):
    for content, ended in (('x', (False, True)), ('win', (True, False))):
        env, _, _ = start(turn_limit=2)
        assert env.max_turns == 2
        say(env, 'action', 'x')
        *_, terminated, truncated, info = say(env, 'answer', content)  # the gym sets both flags
        assert (terminated, truncated) == ended and info['success'] == terminated


def test_reward_line_is_off_unless_asked_for(gyms):
    assert say(start()[0], 'action', 'x')[0] == 'Hm.'
    assert say(start(reward_line=True)[0], 'action', 'x')[0] == 'Hm.\nReward: 0.5'


def test_failed_judge_raises_and_is_counted(gyms):
    for count in (1, 2):
        env, _, _ = start('TelepathyGym')
        with pytest.raises(UserFailed, match=r'TelepathyGym.*Hm'):
            say(env, 'action', 'fail')
        assert UserRL.num_failures == {'TelepathyGym': count}
        with pytest.raises(ValueError, match='call reset'):
            say(env, 'action', 'x')


@pytest.mark.parametrize(
    ('gym', 'feedback', 'info', 'searches', 'failed'),
    [
        ('PersuadeGym', 'I see.', {'judge_success': False}, 0, True),
        ('PersuadeGym', 'I see.', {'judge_success': True}, 0, False),
        ('TurtleGym', 'no', {}, 0, False),
        ('IntentionGym', 'Monday.', {'reward_breakdown': {'method': 'fallback'}}, 0, True),
        ('IntentionGym', 'Monday.', {'reward_breakdown': {'method': 'llm_evaluation'}}, 0, False),
        ('IntentionGym', "That's definitely something I should specify.", {}, 0, True),
        (
            'TravelGym',
            'Currently the searching backend is experiencing some issues. Please',
            {},
            5,
            False,
        ),  # on purpose
        ('TravelGym', 'Currently the searching backend is experiencing some issues. Please', {}, 4, True),
        (
            'TravelGym',
            'A flat.',
            {'conversation_history': [{'note': 'Judging ... failed due to some issues.'}]},
            0,
            True,
        ),
        ('TravelGym', 'A flat.', {'conversation_history': [{'note': 'Fine.'}, {'content': 'A flat.'}]}, 0, False),
        ('SearchGym', 'Unable to evaluate your answer right now.', {}, 0, True),
        ('TauGym', 'Error communicating with user: timeout', {}, 0, True),
        ('TauGym', 'Error: order not found', {}, 0, False),
        ('FunctionGym', 'Error processing action', {}, 0, False),
    ],
)
def test_failed_knows_each_gyms_signs(gym, feedback, info, searches, failed):
    env = SimpleNamespace(state_list={'search_times': searches}, config=SimpleNamespace(search_failure_interval=5))
    assert bool(EIGHT[gym].failed(env, feedback, info)) == failed


def test_config_is_set_up_for_one_task_with_the_users_model(gyms, monkeypatch):
    monkeypatch.setenv('MY_KEY', 'sk-mine')
    endpoint = {'model': 'mine', 'base_url': 'http://localhost/v1', 'api_key_env': 'MY_KEY'}
    start('TelepathyGym', user=SimpleNamespace(endpoint=lambda: endpoint))
    config = vars(Game.last.config)
    assert config == {
        'model_name': 'mine', 'base_url': 'http://localhost/v1', 'api_key': 'sk-mine',
        'max_steps': 16, 'data_mode': 'single', 'data_source': 't0',
    }  # fmt: skip
    start('TelepathyGym')
    assert Game.last.config.model_name == 'theirs'


@pytest.mark.parametrize('act', ['reset', 'crash', 'fail leak'])
@pytest.mark.parametrize('key', ['sk-mine', 'sk-mine\n'])
def test_no_message_repeats_a_key(gyms, monkeypatch, act, key):
    monkeypatch.setenv('MY_KEY', key)
    endpoint = {'model': 'mine', 'base_url': 'http://localhost/v1', 'api_key_env': 'MY_KEY'}
    env, *_ = start('TelepathyGym', user=SimpleNamespace(endpoint=lambda: endpoint))
    monkeypatch.setattr(Game, 'broken', act == 'reset')
    with pytest.raises(UserFailed if 'fail' in act else RuntimeError) as failure:
        env.reset() if act == 'reset' else say(env, 'action', act)
    shown = ''.join(traceback.format_exception(failure.value))
    assert '***' in str(failure.value) and 'sk-' not in shown
    assert 'fail' in act or str(failure.value) == "TelepathyGym: Refused: Incorrect API key: '***'"
    assert 'fail' in act or 'in quote' in shown  # where it went wrong is still told


def test_a_gym_without_a_key_loses_no_word(gyms):
    endpoint = {'model': 'mine', 'base_url': 'http://localhost/v1', 'api_key_env': ''}
    env, *_ = start('TelepathyGym', user=SimpleNamespace(endpoint=lambda: endpoint))
    with pytest.raises(RuntimeError, match="Incorrect API key: 'none'"):
        say(env, 'action', 'crash')


def test_tasks_are_read_from_the_packages_own_json(gyms):
    env, messages, info = start()
    assert env.tasks('test') == ['f0', 'f5'] and len(env.tasks('train')) == 8
    assert info['task'] == Game.last.config.data_source == 'f0'
    assert 'search (content "test"' in messages[0]['content'] and messages[1] == {'role': 'user', 'content': 'Go.'}
    assert start('TelepathyGym')[1][1]['content'] == 'A game.'  # description and goal, which is empty
    with pytest.raises(ValueError, match="unknown task 'f99'"):
        env.reset(options={'task': 'f99'})


def test_tasks_are_read_from_json_files_that_name_their_split(gyms, tmp_path):
    for split, names in (('train', 'abc'), ('test', 'de')):
        (tmp_path / f'all_things_{split}.json').write_text(json.dumps([{'id': name} for name in names]))
    env = UserGym('FunctionGym', data=str(tmp_path))
    assert (env.tasks('train'), env.tasks('test')) == (['a', 'b', 'c'], ['d', 'e'])
    only = UserGym('FunctionGym', data=str(tmp_path / 'all_things_test.json'))
    with pytest.raises(ValueError, match='no train tasks'):
        only.tasks('train')


def parquet_row(name, gym='FunctionGym', split='train'):
    made_of = {'env_name': gym, 'id': name, 'title': None}
    return {
        'prompt': [{'role': 'system', 'content': 'Rules.'}, {'role': 'user', 'content': 'Begin!\n'}],
        'extra_info': {'split': split, 'tools_kwargs': {'interact_with_env': {'create_kwargs': made_of}}},
    }


@pytest.fixture(params=['pyarrow', 'stand-in'])
def write_parquet(request, monkeypatch):
    """Returns what writes rows to a file: the real package where it is, and one that reads and writes JSON."""
    if request.param == 'pyarrow':
        parquet = pytest.importorskip('pyarrow.parquet', reason="pip install 'pyarrow>=16'")
        return lambda rows, path: parquet.write_table(sys.modules['pyarrow'].Table.from_pylist(rows), path)
    table = lambda path: SimpleNamespace(to_pylist=lambda: json.loads(path.read_text()))  # noqa: E731
    package, parquet = types.ModuleType('pyarrow'), types.ModuleType('pyarrow.parquet')
    package.parquet, parquet.read_table = parquet, table
    monkeypatch.setitem(sys.modules, 'pyarrow', package)
    monkeypatch.setitem(sys.modules, 'pyarrow.parquet', parquet)
    return lambda rows, path: path.write_text(json.dumps(rows))


def test_tasks_are_read_from_parquet_with_their_prompts(gyms, tmp_path, write_parquet):
    for split in ('train', 'test'):
        rows = [parquet_row(f'{split}-{i}', split=split) for i in range(3)] + [parquet_row('other', 'TauGym', split)]
        write_parquet(rows, tmp_path / f'{split}.parquet')
    env, messages, _ = start(data=str(tmp_path))
    assert env.tasks('train') == ['train-0', 'train-1', 'train-2'] and len(env.tasks('test')) == 3
    assert messages == [{'role': 'system', 'content': 'Rules.'}, {'role': 'user', 'content': 'Begin!'}]
    assert UserGym('FunctionGym', data=str(tmp_path / 'test.parquet')).tasks('test') == env.tasks('test')


def test_parquet_without_the_package_names_the_command(gyms, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    monkeypatch.setitem(sys.modules, 'pyarrow.parquet', None)
    (tmp_path / 'test.parquet').write_bytes(b'')
    with pytest.raises(ValueError, match="pip install 'pyarrow"):
        UserGym('FunctionGym', data=str(tmp_path))


def test_userrl_says_what_is_missing(gyms, tmp_path, monkeypatch):
    (tmp_path / 'broken.json').write_text('version https://git-lfs')
    for data, words in ((tmp_path / 'nowhere', 'no tasks of FunctionGym'), (tmp_path / 'broken.json', 'Git LFS')):
        with pytest.raises(ValueError, match=words):
            UserGym('FunctionGym', data=str(data))
    monkeypatch.delenv('OPENAI_API_KEY')
    with pytest.raises(ValueError, match='OPENAI_API_KEY'):
        UserGym('TelepathyGym')
    monkeypatch.setitem(sys.modules, 'travelgym', None)
    with pytest.raises(ValueError, match=r'pip install -e \./UserRL/gyms/TravelGym'):
        UserGym('TravelGym')
    with pytest.raises(ValueError, match='no expert'):
        UserGym('FunctionGym').expert()


def test_example_is_an_opening_and_a_legal_move(gyms):
    env, _, info = start()
    rng, choices = random.Random(0), set()
    for _ in range(40):
        history, target = env.example(rng)
        call = parse(target, info['tools'])
        assert call.error is None and len(history) == 2
        choices.add(call.arguments['choice'])
    assert choices == {'action', 'search', 'answer'}
    assert all(any(token in text for text in env.corpus()) for token in env.special_tokens())


class TestFunctionGymItself:
    """Runs where UserRL's package is installed."""

    @pytest.fixture(autouse=True)
    def package(self):
        return pytest.importorskip('functiongym', reason=INSTALL)

    def test_gold_answers_score_one_and_doing_nothing_zero(self):
        from functiongym.data_loader import get_function_by_id

        env = UserGym('FunctionGym')
        assert not set(env.tasks('train')) & set(env.tasks('test'))
        for task in env.tasks('test'):
            gold = get_function_by_id(task)
            env.reset(options={'task': task})
            assert say(env, 'search', 'test')[0] == f'Test case: {gold["test_case"]}'
            assert 'the result is' in say(env, 'action', '1 2 3 4')[0] or gold['test_case'] == [1, 2, 3, 4]
            text, reward, terminated, _, info = say(env, 'answer', str(gold['expected_result']))
            assert (reward, terminated) == (1.0, True) and info['success'] and 'correct' in text
            env.reset(options={'task': task})
            for _ in range(env.max_turns):
                _, reward, terminated, truncated, info = say(env, 'action', '')
            assert (reward, terminated, truncated) == (0.0, False, True)
            assert info['outcome'] == 0.0 and not info['success']

    def test_gym_plays_by_its_registered_id(self):
        from infopo_jax.envs.gymnasium import Gymnasium

        with pytest.raises(ValueError, match='data_source must be provided'):  # its default config names no function
            Gymnasium('functiongym:FunctionGym-v0').reset()
