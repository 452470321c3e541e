"""The tasks of collaborative programming."""

import random

import pytest
from colbench_play import GOAL, RIGHT, needs_sandbox, start

from infopo_jax.envs.colbench import ColBench
from infopo_jax.envs.colbench.functions import LEVELS, MARKER, POOLS, by_name
from infopo_jax.envs.colbench.tasks import NUM_CALLS, compiled, goals, make, read

pytestmark = needs_sandbox


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
