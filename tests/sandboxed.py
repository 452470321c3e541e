"""Code that runs in the sandbox, for its tests."""

import shutil
import subprocess

import pytest

from infopo_jax.envs import sandbox
from infopo_jax.envs.sandbox import Limits, run

UNSHARE = shutil.which('unshare')
GRANTED = UNSHARE is not None and subprocess.run([UNSHARE, '-Urnmp', '--fork', 'true'], stderr=-3).returncode == 0
# Where namespaces are to be had, a refusal is a failure.
needs_walls = pytest.mark.skipif(sandbox.refusal() is not None and not GRANTED, reason=str(sandbox.refusal()))
DOUBLE = 'def double(x):\n    return x + x\n'
CALLS = ['double(3)', 'double(4)']


def values(code, calls=CALLS, **limits):
    return [call.value for call in run(code, calls, Limits(**limits)).calls]


def value(code, call='f()', **limits):
    (found,) = run(code, [call], Limits(**limits)).calls
    return found


def function(body, **limits):
    """Runs the body of a function without arguments."""
    lines = '\n'.join(f'    {line}' for line in body.splitlines())
    return value(f'def f():\n{lines}\n', **limits)
