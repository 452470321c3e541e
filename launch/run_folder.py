"""The command line of launchers that work on what launch/train.py wrote: --workdir, options of their own, fields.

This file is also the config file that the shared command line reads: ``get_config`` returns the run's own config, so
that fields are overridden and checked as in training.
"""

import argparse
import functools
import json
import pathlib
import sys
from collections.abc import Callable, Mapping

import command_line

OTHER_USER = 'other-user:'  # in front of a folder: without the run's fields of config.user


def get_config(workdir: str):
    """Returns the config of the run in ``workdir``; ``command_line`` reads it as --config=run_folder.py:WORKDIR."""
    from infopo_jax import config

    path = pathlib.Path(workdir.removeprefix(OTHER_USER)) / 'config.json'
    values = json.loads(path.read_text(encoding='utf-8'))
    if workdir.startswith(OTHER_USER):
        del values['user']
    return config.from_dict(values)


def run(main: Callable[..., None], argv: list[str], *, usage: str, options: Mapping[str, dict]) -> int:
    """Reads --workdir and the options, and leaves the fields to the command line that all launchers share.

    Args:
        main: called as main(config, workdir, **options).
        argv: program name and arguments.
        usage: what --help prints.
        options: name -> keywords of argparse's ``add_argument``.

    Returns:
        The exit code; see ``command_line.run``.
    """
    if any(word.lstrip('-') in ('h', 'help', 'helpfull', 'helpshort') for word in argv[1:]):
        print(usage.strip())
        return 0
    parser = argparse.ArgumentParser(prog=argv[0], add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument('--workdir')
    for name, keywords in options.items():
        parser.add_argument(f'--{name}', **keywords)
    try:
        own, rest = parser.parse_known_args(argv[1:])
    except argparse.ArgumentError as error:
        return complain(str(error))
    if own.workdir is None:
        return complain('which run? Pass --workdir=FOLDER, a folder that launch/train.py wrote')
    if not (pathlib.Path(own.workdir) / 'config.json').is_file():
        return complain(f'--workdir={own.workdir} holds no config.json; pass a folder that launch/train.py wrote')
    rest = [command_line.full_name(word) for word in rest]
    named = any(word.partition('=')[0] == '--config.user.name' for word in rest)
    source = f'{__file__}:{OTHER_USER if named else ""}{own.workdir}'
    program = [argv[0], f'--config={source}', f'--workdir={own.workdir}', *rest]
    chosen = {name: getattr(own, name) for name in options}
    return command_line.run(functools.partial(main, **chosen), program, usage=usage, training=False)


def complain(message: str) -> int:
    """Prints an error of the user; returns its exit code."""
    print(f'error: {message}', file=sys.stderr)
    return command_line.USER_ERROR
