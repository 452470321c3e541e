"""What a process sets before it uses JAX: a compilation cache on disk, and quiet libraries."""

import logging
import os
import pathlib
import warnings

CACHE_VARIABLE = 'INFOPO_JAX_CACHE'


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
