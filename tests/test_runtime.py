"""What a process sets before it uses JAX."""

import pathlib
import platform
import subprocess
import sys

import pytest

from infopo_jax import runtime

ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_cache_dir_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv(runtime.CACHE_VARIABLE, raising=False)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert runtime.cache_dir() == tmp_path / 'infopo_jax' / 'xla'
    monkeypatch.setenv(runtime.CACHE_VARIABLE, 'off')
    assert runtime.cache_dir() is None
    monkeypatch.setenv(runtime.CACHE_VARIABLE, str(tmp_path / 'mine'))
    assert runtime.cache_dir() == tmp_path / 'mine'


def test_enable_compilation_cache_keeps_programs_on_disk(tmp_path):
    code = (
        'from infopo_jax import runtime\nruntime.silence()\nimport jax\nruntime.enable_compilation_cache()\n'
        'jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)\n'
        'print(jax.jit(lambda x: x + 1)(1))'
    )
    env = {'PATH': '/usr/bin:/bin', 'JAX_PLATFORMS': 'cpu', runtime.CACHE_VARIABLE: str(tmp_path / 'cache')}
    for _ in range(2):
        done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, env=env, capture_output=True, text=True)
        assert (done.stdout, done.stderr) == ('2\n', '')
    assert list((tmp_path / 'cache').iterdir())


KEEPS = """
import resource, sys
from infopo_jax import runtime
if 'keep' in sys.argv:
    runtime.keep_memory()
import numpy as np
for _ in range(20):
    np.ones(2**23)  # 64 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='mallopt is of glibc')
def test_keep_memory_maps_a_buffer_once():
    """Page faults of a process that asks for a buffer 20 times; pages of 4 KiB, or of 2 MiB where Linux gives them."""

    def faults(*arguments, **own):
        env = {'PATH': '/usr/bin:/bin', 'JAX_PLATFORMS': 'cpu', 'NUMPY_MADVISE_HUGEPAGE': '0', **own}
        command = [sys.executable, '-c', KEEPS, *arguments]
        return int(subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout)

    plain = faults()
    assert faults('keep') < 0.2 * plain
    for own in ({'MALLOC_ARENA_MAX': '4'}, {'JAX_PLATFORMS': 'cuda'}):
        assert faults('keep', **own) > 0.8 * plain
