"""What is taught of collaborative programming."""

import random

import pytest
from colbench_play import needs_sandbox, play, start, texts

from infopo_jax.envs.colbench import ColBench, grade, teach
from infopo_jax.envs.colbench.functions import ASKS, LEVELS, POOLS, by_name, slots
from infopo_jax.envs.colbench.tasks import goals, read

pytestmark = needs_sandbox


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
