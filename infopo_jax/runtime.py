"""What a process sets before it uses JAX: memory that it keeps, a compilation cache on disk, and quiet libraries."""

import ctypes
import importlib.metadata
import importlib.util
import logging
import os
import pathlib
import warnings

CACHE_VARIABLE = 'INFOPO_JAX_CACHE'
# M_ARENA_MAX: one heap for all threads; M_MMAP_MAX: large buffers stand there too; M_TRIM_THRESHOLD: it does not shrink
MALLOC_OPTIONS = {-8: 1, -4: 0, -1: 2**31 - 1}


def cache_dir() -> pathlib.Path | None:
    """Returns the folder for compiled programs, or None where the cache is off.

    The environment variable INFOPO_JAX_CACHE names another folder; 'off' switches the cache off.
    """
    chosen = os.environ.get(CACHE_VARIABLE, '')
    if chosen.lower() in ('off', '0'):
        return None
    if chosen:
        return pathlib.Path(chosen).expanduser()
    home = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    return pathlib.Path(home).expanduser() / 'infopo_jax' / 'xla'


def enable_compilation_cache() -> None:
    """Lets JAX keep compiled programs on disk, so that a second run or test starts at once.

    A folder that the user gave to JAX itself (JAX_COMPILATION_CACHE_DIR) is left as it is.
    """
    import jax

    folder = cache_dir()
    if folder is not None and jax.config.jax_compilation_cache_dir is None:
        jax.config.update('jax_compilation_cache_dir', str(folder))
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def keep_memory() -> None:
    """Has malloc keep what it is handed back, on Linux; call it before JAX starts its threads.

    XLA's CPU backend takes its buffers from malloc and hands them back after every call. By default glibc hands large
    ones on to the kernel, and to map them again takes a fifth of a training step (BENCHMARKS.md). The process then has
    one heap, as large as it ever was. Does nothing where the user has settings of his own for malloc, or where JAX will
    compute elsewhere.
    """
    own = any(name.startswith('MALLOC_') or name == 'GLIBC_TUNABLES' for name in os.environ)
    if own or not _is_for_cpu():
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return
    for option, value in MALLOC_OPTIONS.items():
        mallopt(option, value)


def _is_for_cpu() -> bool:
    """Says whether JAX will compute on the CPU: it is told to, or no package for another device is there."""
    if 'JAX_PLATFORMS' in os.environ:
        return os.environ['JAX_PLATFORMS'] == 'cpu'
    return not importlib.metadata.entry_points(group='jax_plugins') and importlib.util.find_spec('libtpu') is None


def silence() -> None:
    """Silences what libraries print about themselves; call it before the first import of JAX. Errors still show.

    XLA's C++ side logs below the Python level (missing GPUs, CPU features), hence the environment variables; a value
    that the user has set stays.
    """
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    os.environ.setdefault('GRPC_VERBOSITY', 'ERROR')
    os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
    for name in ('absl', 'jax', 'jax._src.xla_bridge', 'orbax', 'transformers'):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings('ignore', module=r'(orbax|tensorboardX|transformers)\b')
