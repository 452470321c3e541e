"""ColBench's published data, and episodes of it."""

import json
import random

import pytest
from colbench_play import GOAL, Parrot, needs_sandbox, texts

from infopo_jax import build_user, config as config_lib
from infopo_jax.envs.colbench import ColBench, published
from infopo_jax.envs.colbench.functions import MARKER
from infopo_jax.envs.colbench.user import MAX_REPLY

pytestmark = needs_sandbox


def write(path, rows):
    path.write_text('\n'.join(json.dumps(row) for row in rows) + '\n', encoding='utf-8')


def row(n):
    cases = {'test1': f'area{n}(2)', 'test2': f'area{n}(3)', 'pad': None}
    return {
        'problem_description': f'Write area{n}.',
        'ground_truth': f'def area{n}(x):\n    return {{"a": x * {n}}}',
        'test_cases': cases,
    }


@pytest.fixture
def data(tmp_path):
    write(tmp_path / 'train.jsonl', [row(n) for n in range(8)])
    write(tmp_path / 'test.jsonl', [row(n) for n in range(6, 10)])
    return str(tmp_path)


def test_load_reads_the_published_layout(data):
    splits = published.load(data)
    assert list(splits['test']) == ['test/1', 'test/2', 'test/3', 'test/4']
    assert list(splits['train']) == [f'train/{n}' for n in range(1, 7)]  # two problems are in the test split, too
    task = splits['test']['test/1']
    assert task.openings == ('Write area6.',) and task.calls == ('area6(2)', 'area6(3)')


def test_load_splits_a_single_file(tmp_path):
    write(tmp_path / 'all.jsonl', [row(n % 40) for n in range(80)])
    splits = published.load(str(tmp_path / 'all.jsonl'))
    problems = [{task.openings for task in split.values()} for split in splits.values()]
    assert not problems[0] & problems[1] and len(problems[0]) + len(problems[1]) == 40
    assert 2 <= len(problems[1]) <= 15


@pytest.mark.parametrize(
    ('line', 'error'),
    [
        ('{', 'is no JSON'),
        ('[]', "has no 'problem_description'"),
        (json.dumps(row(1) | {'ground_truth': ''}), "has no 'ground_truth'"),
        (json.dumps(row(1) | {'test_cases': {'a': None}}), 'test_cases must'),
        (json.dumps(row(1) | {'test_cases': {'a': 1}}), 'test_cases must'),
    ],
)
def test_load_names_the_line_that_is_wrong(tmp_path, line, error):
    (tmp_path / 'x.jsonl').write_text(json.dumps(row(0)) + '\n' + line + '\n', encoding='utf-8')
    with pytest.raises(ValueError, match=rf'x\.jsonl:2.*{error}'):
        published.load(str(tmp_path / 'x.jsonl'))


def test_load_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match='does not exist'):
        published.load(str(tmp_path / 'nothing'))
    with pytest.raises(ValueError, match=r'train\.jsonl does not exist'):
        published.load(str(tmp_path))
    write(tmp_path / 'one.jsonl', [row(1)])
    with pytest.raises(ValueError, match='leaves no'):
        published.load(str(tmp_path / 'one.jsonl'))


@pytest.mark.parametrize(('style', 'begin'), [('plain', 'I do not know.'), ('verbose', 'I do not know. ')])
def test_published_tasks_without_a_user_are_played_with_one_who_does_not_know(data, style, begin):
    with pytest.warns(UserWarning, match=r'nothing can be learnt by asking.*config\.user\.model') as told:
        env = ColBench(data=data, user_style=style)
    assert len(told) == 1
    messages, _ = env.reset(options={'task': 'test/1'})
    assert texts(messages)[1] == 'Write area6.'
    for question in ('Which limit?', 'Bananas?', 'What does it return, and how is it rounded?'):
        answer, *_, info = env.step(question)
        assert answer[0]['role'] == 'user' and texts(answer)[0].startswith(begin) and not info['is_error']
    assert env.step(f'{MARKER}\ndef area6(x):\n    return dict(a=6 * x)')[4]['success']
    env.reset(options={'task': 'test/1'})
    assert env.step(f'{MARKER}\ndef area6(x):\n    return dict(a=12)')[4]['share'] == 0.5


def test_published_tasks_with_a_user_and_generated_ones_warn_of_nothing(data, recwarn):
    ColBench(data=data, user=Parrot())
    ColBench()
    assert not recwarn.list


def test_a_run_on_published_tasks_needs_a_user(data):
    config = config_lib.base_config()
    config.env.name, config.env.kind, config.env.data = 'colbench', 'hosted', data
    with pytest.raises(ValueError, match=r'needs a language model as its user.*config\.user\.model'):
        build_user.make_user(config)
    config.env.data = None
    assert build_user.make_user(config) == {}
    config.env.data, config.user.name = data, 'policy'
    assert build_user.make_user(config)['user'] is not None


def test_published_tasks_are_played_with_the_user(data):
    user = Parrot()
    env = ColBench(data=data, user=user)
    messages, _ = env.reset(seed=3, options={'task': 'test/1', 'member': 2})
    assert texts(messages)[1] == 'Write area6.' and MARKER in texts(messages)[0]
    assert texts(env.step('Round?' * 100)[0]) == [('Round?' * 100)[:MAX_REPLY]]
    env.step('Why?')
    heard, nonce = user.heard[-1]
    assert [message['role'] for message in heard] == ['system', 'user', 'assistant', 'user'] and nonce == '3/2'
    assert 'def area6(x)' in heard[0]['content'] and 'Write area6.' in heard[0]['content']
    assert env.step(f'{MARKER}\ndef area6(x):\n    return dict(a=6 * x)')[4]['success']
    env.reset(options={'task': 'train/1'})
    assert env.step(f'{MARKER} area0 = lambda x: {{"a": 0 if x == 2 else 1}}')[1] == 0.5
    assert env.tasks('train')[0] == 'train/1' and 'Write area0.' in env.corpus() and env.special_tokens() == [MARKER]
    env.reset(options={'task': 'train/1'})
    for call in (env.expert, lambda: env.random_action(random.Random(0)), lambda: env.example(random.Random(0))):
        with pytest.raises(ValueError, match='leave data away'):
            call()
    with pytest.raises(ValueError, match='unknown task'):
        env.reset(options={'task': GOAL})
