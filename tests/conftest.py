"""What every test needs: CPU, and quick compilation (tests check values, not speed), once per program."""

import gc
import importlib.metadata
import os
import tempfile

import pytest

from infopo_jax import runtime

QUICK = [
    '--xla_backend_optimization_level=0',
    '--xla_llvm_disable_expensive_passes=true',
    '--xla_cpu_parallel_codegen_split_count=1',  # the other core has a process of its own
]
if importlib.metadata.version('jaxlib').startswith('0.10.'):  # later ones do not know it, and end the process over it
    QUICK.append('--xla_cpu_use_fusion_emitters=false')  # a training step compiles in a third of the time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_TRACEBACK_IN_LOCATIONS_LIMIT', '0')  # lowering and compiling carry no stack traces
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:  # one folder for pytest-xdist's processes and those that tests start
    folder = tempfile.TemporaryDirectory(prefix='infopo_jax-')
    os.environ['JAX_COMPILATION_CACHE_DIR'] = folder.name
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.2'
os.environ['XLA_FLAGS'] = ' '.join([os.environ.get('XLA_FLAGS', ''), *QUICK]).strip()

runtime.keep_memory()

# Files that take longest stand in front: at the end they would keep one process busy while the other idles.
LONGEST = (
    'test_sharding', 'test_shipped_configs', 'test_train', 'test_train_failures', 'test_real_environments',
    'test_loops', 'test_policy_user_runs', 'test_failing_endpoint', 'test_launch_evaluate', 'test_readme',
    'test_notebooks', 'test_usergym_runs', 'test_score', 'test_evaluate', 'test_generate', 'test_slots', 'test_hosted',
)  # fmt: skip


@pytest.fixture(scope='session', autouse=True)
def no_pictures():
    """Spares the second that the PNGs of a run take; ``pictures`` has them drawn."""
    from infopo_jax import report

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, 'write_png', lambda figure, path: None)
        yield


@pytest.fixture
def pictures(monkeypatch):
    """Has the PNGs of runs drawn."""
    from infopo_jax import report, report_draw

    monkeypatch.setattr(report, 'write_png', report_draw.write_png)


gc.disable()  # it would walk, over and over, what tracing leaves behind


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    """Collects garbage after each file, but for what stays behind: programs that JAX keeps, gigabytes of objects."""
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()


def pytest_collection_modifyitems(items):
    """Brings the longest files to the front; pytest-xdist hands files out in this order (--no-loadscope-reorder)."""
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONGEST)))
