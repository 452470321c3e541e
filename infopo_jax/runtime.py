"""What a process sets before it uses JAX: huge pages, a compilation cache on disk, and quiet libraries."""

import logging
import os
import pathlib
import sys
import warnings

CACHE_VARIABLE = 'INFOPO_JAX_CACHE'
HUGE_PAGES = 'glibc.malloc.hugetlb'  # a tunable of glibc, from 2.35 on
THP = pathlib.Path('/sys/kernel/mm/transparent_hugepage/enabled')
STARTED_ANEW = 'INFOPO_JAX_STARTED_ANEW'  # '<process> <GLIBC_TUNABLES of the user>'


def use_huge_pages() -> None:
    """Starts a script anew, with a malloc that asks the kernel for huge pages, where Linux gives them on demand only.

    XLA's CPU backend takes its buffers from malloc and hands them back after every call: to map them again in pages of
    4 KiB takes up to a quarter of a backward pass (BENCHMARKS.md). glibc reads the setting as a process starts, so call
    this before JAX does anything. It stays as it is where the user has set the tunable (``glibc.malloc.hugetlb=0`` in
    GLIBC_TUNABLES declines), under a debugger, where a session of its own has started the script, and wherever
    something is in the way; the processes that the script starts get the user's own setting.
    """
    number, _, own = os.environ.pop(STARTED_ANEW, '').partition(' ')
    if number == str(os.getpid()):
        _set_tunables(own)
        return
    before = os.environ.get('GLIBC_TUNABLES', '')
    is_script = sys.argv[0] in sys.orig_argv and bool(sys.executable) and sys.gettrace() is None
    if HUGE_PAGES in before or not is_script or not _can_use_huge_pages():
        return
    os.environ[STARTED_ANEW] = f'{os.getpid()} {before}'  # not seen by glibc, which may drop its own variable
    _set_tunables(':'.join(filter(None, [before, f'{HUGE_PAGES}=1'])))
    try:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    except OSError:  # then without
        del os.environ[STARTED_ANEW]
        _set_tunables(before)


def _set_tunables(value: str) -> None:
    if value:
        os.environ['GLIBC_TUNABLES'] = value
    else:
        os.environ.pop('GLIBC_TUNABLES', None)


def _can_use_huge_pages() -> bool:
    """Says whether this is glibc 2.35 or later on a Linux whose huge pages are there for those who ask."""
    if sys.platform != 'linux' or 'CS_GNU_LIBC_VERSION' not in os.confstr_names:
        return False
    name, _, version = (os.confstr('CS_GNU_LIBC_VERSION') or '').partition(' ')
    try:
        is_new = name == 'glibc' and [int(part) for part in version.split('.')[:2]] >= [2, 35]
        return is_new and '[madvise]' in THP.read_text()
    except (OSError, ValueError):
        return False


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
