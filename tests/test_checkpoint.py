"""Checkpoints: bit-exact, atomic, the newest and the best, and errors that name leaves."""

import collections
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from infopo_jax.checkpoint import Checkpointer

Pair = collections.namedtuple('Pair', ['first', 'second'])


def make_state(seed=0):
    key = jax.random.key(seed)
    params = {
        'embed': jax.random.normal(key, (5, 3), jnp.bfloat16),
        'layers': [{'w': jax.random.normal(key, (3, 2))}, {'w': jnp.array([jnp.nan, jnp.inf, -0.0, 1e-42])}],
    }
    return {
        'params': params,
        'opt': optax.adamw(1e-3).init(params),
        'key': jax.random.fold_in(key, 7),
        'keys': jax.random.split(jax.random.key(seed, impl='rbg'), 3),
        'cursor': np.arange(4, dtype=np.int64) + 2**40,
        'flag': np.array(True),
        'pair': Pair(jnp.int32(seed), None),
        'empty': {},
    }


def words(tree):
    return [
        np.asarray(jax.random.key_data(x) if jnp.issubdtype(getattr(x, 'dtype', None), jax.dtypes.prng_key) else x)
        for x in jax.tree.leaves(tree)
    ]


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(words(a), words(b), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        assert x.tobytes() == y.tobytes()


def test_restore_gives_back_the_bits_keys_containers_and_config(tmp_path):
    state, config = make_state(3), {'optim': {'lr': 3e-4}, 'env': {'level': None}}
    Checkpointer(tmp_path).save(11, state, config_dict=config)
    restored, step, saved_config = Checkpointer(tmp_path).restore(make_state(0))
    assert (step, saved_config) == (11, config)
    assert_same_bits(state, restored)
    assert jax.random.key_impl(restored['keys']) == jax.random.key_impl(state['keys'])
    assert isinstance(restored['cursor'], np.ndarray) and isinstance(restored['params']['embed'], jax.Array)
    np.testing.assert_array_equal(jax.random.bits(restored['key'], (4,)), jax.random.bits(state['key'], (4,)))


def test_restore_takes_abstract_templates(tmp_path):
    state = {'w': jnp.arange(6.0).reshape(2, 3), 'key': jax.random.key(5)}
    Checkpointer(tmp_path).save(0, state, config_dict={})
    restored, _, _ = Checkpointer(tmp_path).restore(jax.eval_shape(lambda: state))
    assert_same_bits(state, restored)


def test_restore_returns_none_when_nothing_is_there(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    assert checkpointer.restore(make_state()) is None
    assert checkpointer.restore_best(make_state()) is None
    assert checkpointer.config() is None


def test_save_keeps_the_newest_and_the_best(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    metrics = [(0, 0.1), (10, 0.9), (20, float('nan')), (30, 0.9), (40, 0.3), (50, None)]
    for step, metric in metrics:
        checkpointer.save(step, {'x': jnp.int32(step)}, config_dict={}, metric=metric)
    assert checkpointer.steps() == [30, 50]
    again = Checkpointer(tmp_path)  # the ranks are on disk, not in memory
    template = {'x': jnp.int32(0)}
    assert again.restore(template)[:2] == ({'x': 50}, 50)
    assert again.restore_best(template)[:2] == ({'x': 30}, 30)
    again.save(60, {'x': jnp.int32(60)}, config_dict={}, metric=0.8)
    assert again.steps() == [30, 60]
    again.save(70, {'x': jnp.int32(70)}, config_dict={}, metric=0.95)
    assert again.steps() == [70]


def test_save_without_metrics_ranks_the_newest_best(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    for step in (1, 2):
        checkpointer.save(step, {'x': jnp.int32(step)}, config_dict={})
    assert checkpointer.restore_best({'x': jnp.int32(0)})[1] == 2


def test_save_leaves_a_saved_step_and_refuses_to_go_back(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(5, {'x': jnp.int32(1)}, config_dict={})
    checkpointer.save(5, {'x': jnp.int32(2)}, config_dict={})
    assert checkpointer.restore({'x': jnp.int32(0)})[0] == {'x': 1}
    with pytest.raises(ValueError, match='already holds step 5'):
        checkpointer.save(4, {'x': jnp.int32(2)}, config_dict={})


@pytest.mark.parametrize('lost', ['state/_METADATA', 'about/about.json'])
def test_restore_ignores_half_written_checkpoints(tmp_path, lost):
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(5, {'x': jnp.int32(5)}, config_dict={})
    folder = tmp_path / 'checkpoints'
    shutil.copytree(folder / '5', folder / '8')
    (folder / '8' / lost).unlink()
    shutil.copytree(folder / '5', folder / '9.orbax-checkpoint-tmp')
    again = Checkpointer(tmp_path)
    assert again.restore({'x': jnp.int32(0)})[:2] == ({'x': 5}, 5)
    again.save(8, {'x': jnp.int32(8)}, config_dict={})  # the debris is no obstacle
    again.save(9, {'x': jnp.int32(9)}, config_dict={})
    assert Checkpointer(tmp_path).restore({'x': jnp.int32(0)})[:2] == ({'x': 9}, 9)


def test_restore_names_the_leaves_that_differ(tmp_path):
    Checkpointer(tmp_path).save(5, {'a': {'w': jnp.ones((2, 3)), 'old': jnp.ones(1)}, 'k': jnp.ones(2)}, config_dict={})
    with pytest.raises(ValueError) as error:
        Checkpointer(tmp_path).restore(
            {'a': {'w': jnp.ones((2, 4)), 'new': jnp.ones(1)}, 'k': jnp.ones(2, jnp.bfloat16)}
        )
    message = str(error.value)
    assert 'a/w: float32[2, 3] in the checkpoint, float32[2, 4] now' in message
    assert 'a/old: float32[1] in the checkpoint, absent now' in message
    assert 'a/new: absent in the checkpoint, float32[1] now' in message
    assert 'k: float32[2] in the checkpoint, bfloat16[2] now' in message
    with pytest.raises(ValueError, match='key<rbg>'):
        Checkpointer(tmp_path / 'b').save(1, {'key': jax.random.key(0, impl='rbg')}, config_dict={})
        Checkpointer(tmp_path / 'b').restore({'key': jax.random.key(0)})


SAVES = """
import jax.numpy as jnp, sys
from infopo_jax.checkpoint import Checkpointer
checkpointer = Checkpointer(sys.argv[1])
for step in range(1, 10_000):
    checkpointer.save(step, {'x': jnp.full((256, 256), step), 'y': jnp.int32(step)}, config_dict={}, metric=-step)
    print(step, flush=True)
"""


@pytest.mark.parametrize('delay', [0.005, 0.02])
def test_save_survives_a_kill_at_any_moment(tmp_path, delay):
    root = pathlib.Path(__file__).resolve().parents[1]
    child = subprocess.Popen(
        [sys.executable, '-c', SAVES, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(root)},
    )
    for _ in range(3):
        child.stdout.readline()
    time.sleep(delay)
    child.send_signal(signal.SIGKILL)
    last = max([3, *map(int, child.stdout.read().split())])
    child.wait()
    state, step, _ = Checkpointer(tmp_path).restore({'x': jnp.zeros((256, 256), jnp.int32), 'y': jnp.int32(0)})
    assert step in (last, last + 1)  # whole on disk when save returned; the next may have just been renamed
    assert int(state['y']) == step and bool((state['x'] == step).all())
