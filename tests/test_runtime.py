"""What a process sets before it uses JAX."""

import os
import pathlib
import subprocess
import sys

import pytest

from infopo_jax import runtime

ROOT = pathlib.Path(__file__).resolve().parents[1]


# --- Compiled programs on disk.


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


# --- Huge pages.

SCRIPT = """
import os, sys
from infopo_jax import runtime
runtime._can_use_huge_pages = lambda: True
first = runtime.STARTED_ANEW not in os.environ
print(os.getpid(), first, os.environ.get('GLIBC_TUNABLES'), flush=True)
%s
runtime.use_huge_pages()
print(sys.argv[1:], os.environ.get('GLIBC_TUNABLES'), os.environ.get(runtime.STARTED_ANEW))
"""
ON = 'glibc.malloc.hugetlb=1'


def run(tmp_path, tunables, *, before=''):
    """Runs SCRIPT; returns its process and the lines that it prints, those of the process started anew too."""
    path = tmp_path / 'script.py'
    path.write_text(SCRIPT % before)
    env = {name: value for name, value in os.environ.items() if name not in ('GLIBC_TUNABLES', runtime.STARTED_ANEW)}
    env |= {'PYTHONPATH': str(ROOT)} | ({} if tunables is None else {'GLIBC_TUNABLES': tunables})
    command = [sys.executable, str(path), 'a b', '--c=1']
    process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return process.pid, out.splitlines()


@pytest.mark.parametrize(
    ('own', 'then'), [(None, ON), ('glibc.malloc.check=0', f'glibc.malloc.check=0:{ON}')], ids=['none', 'another']
)
def test_use_huge_pages_starts_a_script_anew_and_hands_its_children_what_the_user_set(tmp_path, own, then):
    pid, lines = run(tmp_path, own)
    assert lines == [f'{pid} True {own}', f'{pid} False {then}', f"['a b', '--c=1'] {own} None"]


def test_use_huge_pages_goes_on_where_the_setting_does_not_arrive(tmp_path):
    """As where glibc drops it for a program with capabilities."""
    pid, lines = run(tmp_path, None, before="os.environ.pop('GLIBC_TUNABLES', None)")
    assert lines == [f'{pid} True None', f'{pid} False {ON}', "['a b', '--c=1'] None None"]


@pytest.mark.parametrize(
    ('tunables', 'before'),
    [
        ('glibc.malloc.hugetlb=0', ''),
        (ON, ''),
        (None, 'runtime._can_use_huge_pages = lambda: False'),
        (None, 'sys.settrace(lambda *_: None)'),  # a debugger
        (None, "sys.executable = ''"),
        (None, "sys.executable = '/nowhere/python'"),
        (None, "sys.argv[0] = 'train.py'"),  # %run in IPython, runpy
    ],
)
def test_use_huge_pages_leaves_a_process_alone(tmp_path, tunables, before):
    pid, lines = run(tmp_path, tunables, before=before)
    assert lines[0] == f'{pid} True {tunables}' and len(lines) == 2
    assert lines[1].startswith('[') and lines[1].endswith(f'{tunables} None')


@pytest.mark.parametrize(
    ('libc', 'pages', 'can'),
    [
        ('glibc 2.36', 'always [madvise] never', True),
        ('glibc 2.35', 'always [madvise] never', True),
        ('glibc 2.34', 'always [madvise] never', False),
        ('glibc 2.4', 'always [madvise] never', False),
        ('glibc next', 'always [madvise] never', False),
        (None, 'always [madvise] never', False),
        ('glibc 2.36', '[always] madvise never', False),  # all have them
        ('glibc 2.36', 'always madvise [never]', False),
        ('glibc 2.36', None, False),  # none to be seen, or not to be read
    ],
)
def test_huge_pages_are_asked_for_where_linux_gives_them_on_demand(libc, pages, can, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'platform', 'linux')
    monkeypatch.setattr(os, 'confstr_names', {'CS_GNU_LIBC_VERSION': 2}, raising=False)
    monkeypatch.setattr(os, 'confstr', lambda name: libc, raising=False)
    monkeypatch.setattr(runtime, 'THP', tmp_path / 'enabled')
    if pages is not None:
        runtime.THP.write_text(pages)
    assert runtime._can_use_huge_pages() == can
