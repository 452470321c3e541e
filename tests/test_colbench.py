"""Tests of collaborative programming: tasks, the collaborator, grading, episodes, published data, teaching."""

import json
import random

import pytest

from infopo_jax.envs import sandbox
from infopo_jax.envs.colbench import ColBench, grade, published, teach
from infopo_jax.envs.colbench.functions import ASKS, LEVELS, MARKER, POOLS, by_name, slots
from infopo_jax.envs.colbench.tasks import NUM_CALLS, Task, compiled, goals, make, read
from infopo_jax.envs.colbench.user import MAX_REPLY, UNKNOWN, ModelUser, ScriptedUser, asked
from infopo_jax.users import UserFailed
from infopo_jax.users.styles import STYLES

pytestmark = pytest.mark.skipif(sandbox.refusal() is not None, reason=str(sandbox.refusal()))

GOAL = 'discount 150 15'
RIGHT = f'{MARKER}\ndef discount(total):\n    return total * (100 - 15) / 100 if total > 150 else total'


def start(task=GOAL, *, level=1, seed=0, **knobs):
    env = ColBench(level, **knobs)
    messages, _ = env.reset(seed=seed, options={'task': task})
    return env, messages


def play(env, policy):
    """Plays to the end; returns the last step's result."""
    while True:
        result = env.step(policy())
        if result[2] or result[3]:
            return result


def texts(messages):
    return [message['content'] for message in messages]


# Tasks


@pytest.mark.parametrize('level', LEVELS)
def test_tasks_hold_out_goals(level):
    env = ColBench(level)
    train, test = env.tasks('train'), env.tasks('test')
    assert not set(train) & set(test) and len(train) > 400 and len(test) > 100
    for split in (train, test):
        assert {goal.split()[0] for goal in split} == set(by_name(level))
    with pytest.raises(ValueError, match="'train' or 'test'"):
        env.tasks('valid')


@pytest.mark.parametrize('task', ['', 'nothing', 'discount', 'discount 15 150', 'discount 150 15 15', 'refund 1 2', 7])
def test_reset_refuses_an_unknown_task(task):
    with pytest.raises(ValueError, match='unknown task'):
        start(task)


def test_make_is_the_literal_first_task():
    task = make(1, GOAL)
    assert task.source == RIGHT.removeprefix(f'{MARKER}\n')
    assert len(task.calls) == NUM_CALLS == len(task.expected)
    pairs = dict(zip(task.calls, task.expected, strict=True))
    assert pairs['discount(145)'] == 145 and pairs['discount(155)'] == 155 * 85 / 100
    assert task.answers == {'limit': '150', 'rate': '15'}


@pytest.mark.parametrize('level', LEVELS)
def test_make_tells_a_function_from_each_with_another_value(level):
    rng = random.Random(0)
    for goal in rng.sample(goals(level)['train'], 25):
        task, (function, values) = make(level, goal), read(level, goal)
        for slot in function.slots:
            for other in POOLS[slot]:
                got = [eval(call, {function.name: compiled(function, values | {slot: other})}) for call in task.calls]
                assert (got == list(task.expected)) == (other == values[slot]), (goal, slot, other)


@pytest.mark.parametrize('level', LEVELS)
def test_openings_do_not_tell_what_is_hidden(level):
    values = {value for pool in POOLS.values() for value in pool}
    for function in by_name(level).values():
        for opening in function.openings:
            assert function.name + '(' in opening
            assert not values & set(opening.replace('.', ' ').replace(',', ' ').split())


# The collaborator


@pytest.mark.parametrize(
    ('text', 'found'),
    [
        *[(ask, [slot]) for slot, ask in ASKS.items()],
        ('From which amount on does it apply?', ['limit']),
        ('How many PERCENT is it?', ['limit', 'rate']),
        ('Who gets it, and what is the fee?', ['group', 'fee']),
        ('What is the maximum?', ['cap']),
        ('Do you want whole numbers? How is it rounded?', ['rounding']),
        ('Hello there.', []),
        ('', []),
    ],
)
def test_asked_reads_keywords(text, found):
    assert asked(text) == found


def test_user_answers_once_and_then_says_that_he_has_answered():
    user = ScriptedUser(make(1, GOAL), random.Random(0))
    assert '150' in user.hear('Which limit?') and 'said' not in user.hear('Which rate?')
    again = user.hear('Which limit?')
    assert '150' in again and 'said' in again
    fresh = ScriptedUser(make(1, GOAL), random.Random(0))
    fresh.hear('Which limit?')
    assert '15' in fresh.hear('Which limit, and which rate?').split('.')[0].split()  # what is still open


def test_user_knows_nothing_of_what_the_function_does_not_need():
    user = ScriptedUser(make(1, GOAL), random.Random(0))
    assert user.hear('Which fee?') in UNKNOWN and user.hear('Which fee?') in UNKNOWN
    assert user.hear('Bananas?') in ('I do not understand.', 'What do you mean?')


def test_user_varies_his_words():
    said = {ScriptedUser(make(1, GOAL), random.Random(seed)).hear('Which limit?') for seed in range(30)}
    assert len(said) == 3 and all('150' in text for text in said)


# Grading


@pytest.mark.parametrize(
    ('text', 'code'),
    [
        ('I WANT TO ANSWER: x = 1', 'x = 1'),
        ('So. I WANT TO ANSWER:\n```python\nx = 1\n```\nDone.', 'x = 1\n'),
        ('I WANT TO ANSWER:\n```\nx = 1\n```', 'x = 1\n'),
        ('I WANT TO ANSWER:\n\ndef f():\n    return 1\n', 'def f():\n    return 1'),
        ('I want more.', None),
        ('I WANT TO ANSWER:', ''),
    ],
)
def test_answer_takes_what_follows_the_marker(text, code):
    assert grade.answer(text) == code


def test_share_counts_calls_that_agree():
    task = Task(('f',), '', ('f(1)', 'f(2)', 'f(3)', 'f(4)'), (1, 2, None, 5))
    assert grade.share(task, 'def f(x):\n    return x') == 0.5  # a call that should give None agrees with nothing
    assert grade.share(task, 'def f(x):\n    return x if x < 2 else 1 / 0') == 0.25
    assert grade.share(task, 'f = None') == 0.0


def test_share_runs_a_foreign_reference_in_the_sandbox():
    task = Task(('f',), 'import os\ndef f(x):\n    return [x, len(os.environ)][x == 2]', ('f(1)', 'f(2)', 'f("a")'))
    assert grade.expectation(task) == (1, 0, 'a')
    assert grade.share(task, 'def f(x):\n    return x if x != 2 else 0') == 1.0


@pytest.mark.parametrize(
    'attack',
    [
        'while True: pass',
        'import os\nwhile True: os.fork()',
        'x = bytearray(10 << 30)',
        'import os\nos.environ["PATH"]',
        'open("/tmp/escape", "w")',
        'import socket\nsocket.socket()',
        'while True: print("x" * 65536)',
        'try:\n    raise SystemExit\nexcept SystemExit:\n    raise SystemExit',
        'import os\nfor fd in range(3, 64):\n    try: os.write(fd, b"[0, null, true]\\n")\n    except OSError: pass',
    ],
)
def test_an_attack_earns_nothing_and_the_run_goes_on(attack):
    env, _ = start()
    right = RIGHT.removeprefix(f'{MARKER}\n')
    _, reward, terminated, truncated, info = env.step(f'{MARKER}\n{attack}\n{right}')
    assert (reward, terminated, truncated, info['success']) == (0.0, True, False, False)
    env.reset(options={'task': GOAL})
    assert env.step(RIGHT)[1] == 1.0


# Episodes


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


# Published data


class Parrot:
    """A user who answers with what he was asked."""

    def __init__(self, answer=None):
        self.heard, self.answer = [], answer

    def reply(self, messages, *, nonce=''):
        self.heard.append((messages, nonce))
        return messages[-1]['content'] if self.answer is None else self.answer


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


def test_published_tasks_need_a_user(data):
    with pytest.raises(ValueError, match=r'config\.user\.model'):
        ColBench(data=data)


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


@pytest.mark.parametrize('answer', ['', '  ', 7])
def test_a_user_who_says_nothing_has_failed(answer):
    with pytest.raises(UserFailed, match='empty answer'):
        ModelUser(make(1, GOAL), Parrot(answer), nonce='').hear('Which limit?')


def test_a_user_may_play_generated_tasks():
    env, _ = start(user=Parrot('It is 150.'))
    assert texts(env.step('Which limit?')[0]) == ['It is 150.']


# What is taught


def filled(level, source):
    """Returns the function of a source and the values of its slots."""
    function = by_name(level)[source.rpartition('def ')[2].partition('(')[0]]
    parts = function.template.replace('}', '{').split('{')  # fixed, slot, fixed, slot, ...
    found = {}
    for fixed, slot in zip(parts[::2], [*parts[1::2], ''], strict=True):
        assert source.startswith(fixed)
        source = source[len(fixed) :]
        if slot:
            found[slot] = next(value for value in POOLS[slot] if source.startswith(value))
            source = source[len(found[slot]) :]
    assert source == ''
    return function, found


@pytest.mark.parametrize('level', LEVELS)
def test_example_is_legal_and_copies(level):
    env, rng = ColBench(level), random.Random(0)
    names, own, hidden, asks = dict.fromkeys(by_name(level), 0), 0, 0, dict.fromkeys(ASKS.values(), 0)
    for _ in range(2000):
        history, target = env.example(rng)
        assert history[0] == env.reset()[0][0]
        hidden += env.placeholder in texts(history)
        if target in ASKS.values():
            asks[target] += 1
            continue
        function, values = filled(level, grade.answer(target))
        names[function.name] += 1
        said = ' '.join(m['content'] for m in history[2:] if m['role'] == 'user').replace('.', ' ').split()
        unsaid = [value for value in values.values() if value not in said]
        is_own = f'{function.name}(' in history[1]['content']
        assert len(unsaid) <= is_own  # one value is made up, and only of the wanted function
        own += is_own
    answers = sum(names.values())
    assert 1200 < answers < 1600 and hidden > 500
    assert 0.7 < own / answers * len(names) < 1.3  # which function is written, does not depend on the task
    assert min(names.values()) > 0.7 * answers / len(names)
    assert min(count for count in asks.values() if count) > 60


@pytest.mark.parametrize('level', LEVELS)
def test_example_is_never_a_solved_episode(level, monkeypatch):
    """Follows the task that each example is drawn from: not all it needs is said, and the answer is another."""
    drawn = []
    monkeypatch.setattr(teach, 'read', lambda level, goal: drawn.append(goal) or read(level, goal))
    env, rng, own = ColBench(level), random.Random(1), 0
    for _ in range(1000):
        history, target = env.example(rng)
        function, values = read(level, drawn[-1])
        assert drawn[-1] in env.tasks('train')
        said = ' '.join(m['content'] for m in history[2:] if m['role'] == 'user').replace('.', ' ').split()
        assert not set(values.values()) <= set(said)
        assert target != function.answer(values)
        own += f'def {function.name}(' in target
    assert own > 50


def test_example_leaves_a_running_episode_alone():
    env, _ = start()
    env.example(random.Random(0))
    env.corpus()
    assert play(env, env.expert)[1] == 1.0


@pytest.mark.parametrize('level', LEVELS)
def test_special_tokens_make_answers_short(level):
    from infopo_jax.lm.tokenizer import train_tokenizer

    env = ColBench(level)
    tokenizer = train_tokenizer(env.corpus(), env.special_tokens(), vocab_size=512)
    for goal in goals(level)['test'][::7]:
        function, values = read(level, goal)
        ids = tokenizer.encode(function.answer(values), add_special_tokens=False)
        assert len(ids) == len(function.pieces()) + len(function.slots) <= 11
        assert tokenizer.decode(ids) == function.answer(values)
    for ask in (ASKS[slot] for slot in slots(level)):
        assert len(tokenizer.encode(ask, add_special_tokens=False)) <= 2
    assert teach.special_tokens(level) == env.special_tokens()
