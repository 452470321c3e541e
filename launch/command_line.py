"""The command line that every launcher shares: a config file, overrides of its fields, a working directory.

The checks before absl parses anything exist for the person who mistypes: they name the field, the value, the constraint
and the nearest name, in a few lines and before JAX is imported.
"""

import linecache
import os
import pathlib
import re
import runpy
import sys
import time
import traceback
from collections.abc import Callable

from absl import flags
from ml_collections import config_dict, config_flags

import infopo_jax
from infopo_jax import config as config_lib, runtime

USER_ERROR = 2  # exit code
MAX_LINES = 12  # of an error message

NEVER_EMPTY = ('model.path', 'user.path')  # of the fields that hold text: the folder one stands in is not meant
_ABSL_WORDS = {int: 'an integer', float: 'a number', bool: 'true or false', str: 'text'}


class UsageError(Exception):
    """The command line or its config file is wrong; the message names the fix."""


def run(
    main: Callable[[config_dict.ConfigDict, str], None], argv: list[str], *, usage: str, training: bool = True
) -> int:
    """Parses, validates and calls ``main(config, workdir)``.

    Args:
        main: does the work; a UsageError, and a ValueError that this package raises, are shown without traceback.
        argv: program name and arguments.
        usage: what --help prints above the list of fields.
        training: see ``config.validate``.

    Returns:
        The exit code: 0, 2 for an error of the user, 130 for Ctrl-C. Other exceptions pass through.
    """
    if any(argument.split('=')[0] in ('-h', '--help', '-help', '--helpfull', '--helpshort') for argument in argv[1:]):
        return _print_help(help_text(usage))
    runtime.silence()
    try:
        config, workdir = parse(argv)
        config_lib.validate(config, training=training)
        pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
    except (UsageError, ValueError) as error:
        return _complain(error)
    except OSError as error:
        return _complain(UsageError(f'--workdir={workdir} cannot be written: {error.strerror}'))
    runtime.enable_compilation_cache()
    try:
        main(config, workdir)
    except KeyboardInterrupt:
        print(
            f'\ninterrupted; the same command with --workdir={workdir} goes on from the last checkpoint',
            file=sys.stderr,
        )
        return 130
    except UsageError as error:
        return _complain(error)
    except ValueError as error:
        if not is_for_user(error):
            raise
        return _complain(error)
    return 0


def help_text(usage: str) -> str:
    """Returns the usage and every field of the config with its default and meaning."""
    rows = [(f'--config.{field}={default}', comment) for field, default, comment in config_lib.describe()]
    width = max(len(flag) for flag, _ in rows)
    fields = '\n'.join(f'  {flag:<{width}}  {comment}'.rstrip() for flag, comment in rows)
    return f'{usage.strip()}\n\nFields, with the defaults that config files start from (None: not set):\n{fields}'


def parse(argv: list[str]) -> tuple[config_dict.ConfigDict, str]:
    """Returns the config with its overrides, and the working directory.

    Raises:
        UsageError: a missing or broken config file, an unknown flag or field, or a value of the wrong type.
    """
    path, arguments = _split_config(argv[1:])
    arguments = _joined([full_name(argument) for argument in arguments])
    module = _check_file(path)
    _check_names(arguments)
    path = _with_setting(path, module.get('setting_for'), arguments)
    unset = [argument for argument in arguments if _unsets(argument)]
    arguments = [argument for argument in arguments if argument not in unset]
    values = flags.FlagValues()
    program = [argv[0], f'--config={path}', *arguments]  # absl wants --config first; people need not
    holder = config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=program)
    flags.DEFINE_string('workdir', None, 'where the run writes; an existing one resumes', flag_values=values)
    try:
        rest = values(program)[1:]
    except flags.Error as error:
        raise UsageError(_explain(str(error))) from None
    if rest:
        raise UsageError(f'unexpected argument {rest[0]!r}; fields are set as --config.optim.lr=1e-4')
    holder.value.update_from_flattened_dict({_field(argument)[0]: None for argument in unset})
    return holder.value, values.workdir or default_workdir(path)


def default_workdir(config_path: str) -> str:
    """Returns runs/<config file>-<YYYYmmdd-HHMMSS>, with a number behind it should that exist."""
    stem = pathlib.Path(config_path.split(':')[0]).stem
    base = pathlib.Path('runs') / f'{stem}-{time.strftime("%Y%m%d-%H%M%S")}'
    number, chosen = 1, base
    while chosen.exists():
        number += 1
        chosen = base.with_name(f'{base.name}-{number}')
    return str(chosen)


def is_for_user(error: ValueError) -> bool:
    """Says whether this package raised the error on purpose: such messages name the fix and need no traceback.

    An error from a library, or one that an expression of ours provoked (``int('x')``), is a defect and keeps it.
    """
    frame = traceback.extract_tb(error.__traceback__)[-1]
    package = pathlib.Path(infopo_jax.__file__).resolve().parent
    ours = package in pathlib.Path(frame.filename).resolve().parents
    return ours and linecache.getline(frame.filename, frame.lineno).lstrip().startswith('raise ')


def _complain(error: Exception) -> int:
    lines = f'error: {error}\n(--help lists every field)'.splitlines()
    if len(lines) > MAX_LINES:
        lines = [*lines[: MAX_LINES - 2], '...', lines[-1]]
    print('\n'.join(line if len(line) <= 400 else line[:400] + ' ...' for line in lines), file=sys.stderr)
    return USER_ERROR


def _print_help(text: str) -> int:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # | head; what Python flushes at exit must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _split_config(arguments: list[str]) -> tuple[str, list[str]]:
    """Takes --config=FILE or --config FILE out of the arguments."""
    for position, argument in enumerate(arguments):
        match = re.fullmatch(r'--?config(?:=(.+))?', argument)
        if match and match[1]:
            return match[1], arguments[:position] + arguments[position + 1 :]
        if match and arguments[position + 1 :] and not arguments[position + 1].startswith('--'):
            return arguments[position + 1], arguments[:position] + arguments[position + 2 :]
    raise UsageError(f'which run? Pass --config=FILE, for example --config={_known_configs()[0]}')


def _field(argument: str) -> tuple[str, str]:
    """Returns field and value of --config.optim.lr=1e-4, or of --optim.lr=1e-4; ('', '') for what is no flag."""
    match = re.match(r'--?(?:config\.)?([a-z]\w*(?:\.\w+)*)(?:=(.*))?$', argument, re.DOTALL)
    return (match[1], match[2] or '') if match else ('', '')


def full_name(argument: str) -> str:
    """Returns --config.FIELD=... for --FIELD=..., --config.FIELD=false for --noFIELD, and anything else as it is."""
    if not argument.startswith('-'):
        return argument
    types = config_lib.field_types()
    refused = re.match(r'--?no(?:config\.)?([\w.]+)$', argument)
    if refused and types.get(refused[1]) is bool:
        return f'--config.{refused[1]}=false'
    short = argument.lstrip('-')
    return f'--config.{short}' if short.partition('=')[0] in types else argument


def _joined(arguments: list[str]) -> list[str]:
    """Returns --FLAG=VALUE for --FLAG VALUE, and of several values of a field the last.

    Raises:
        UsageError: a value is missing, or empty where that means nothing.
    """
    types, words, last = config_lib.field_types(), iter(arguments), {}
    for number, word in enumerate(words):
        name = _field(word)[0] if word.startswith('-') else ''
        is_workdir = word.partition('=')[0].lstrip('-') == 'workdir'
        if '=' not in word and (is_workdir or types.get(name, bool) is not bool):
            value = next(words, None)
            if value is None or value.startswith('--'):
                raise UsageError(f'{word}: a value is missing; write {word}=VALUE')
            word = f'{word}={value}'
        if word.endswith('=') and (is_workdir or name in NEVER_EMPTY or types.get(name, str) is not str):
            raise UsageError(f'{word[:-1]}: the value is empty; write {word}VALUE')
        key = name if name in types else number
        last.pop(key, None)
        last[key] = word
    return list(last.values())


def _unsets(argument: str) -> bool:
    """Says whether an argument takes back what a config file sets: --config.env.level=None."""
    field, value = _field(argument)
    return value == 'None' and config_lib.flatten(config_lib.base_config()).get(field, '') is None


def _with_setting(path: str, choose: Callable[[dict[str, str]], str | None] | None, arguments: list[str]) -> str:
    """Returns FILE:SETTING for FILE where its ``setting_for`` calls for one, given the fields that are set."""
    if choose is None or ':' in path:
        return path
    fields = dict(map(_field, arguments))
    setting = choose({field: value for field, value in fields.items() if value != 'None'})
    if setting is None:
        return path
    print(f'--config={path}:{setting}, for the fields that are set', file=sys.stderr)
    return f'{path}:{setting}'


def _known_configs() -> list[str]:
    root = pathlib.Path(__file__).resolve().parents[1]
    return sorted(f'configs/{file.name}' for file in (root / 'configs').glob('*.py')) or ['configs/quickstart.py']


def _check_file(path: str) -> dict:
    """Runs the config file once, so that what is wrong in it is told with its line; returns what it defines."""
    file = path.split(':')[0]
    if not pathlib.Path(file).is_file():
        known = _known_configs()
        raise UsageError(
            f'config file {file!r} does not exist (looked from {pathlib.Path.cwd()}); '
            f'did you mean {config_lib.nearest(file, known)}? There are: {", ".join(known)}'
        )
    try:
        module = runpy.run_path(file)
        config = module['get_config'](*path.split(':', 1)[1:])
    except Exception as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        line = getattr(error, 'lineno', None) or (frames[-1].lineno if frames else None)
        where = f'{file}, line {line}' if line else file
        text = linecache.getline(file, line).split('#')[0].strip() if line else ''
        if isinstance(error, KeyError) and error.args == ('get_config',):
            raise UsageError(f'{file}: defines no get_config(); see configs/quickstart.py') from None
        detail = f'\n    {text}' if text else ''
        raise UsageError(f'{where}: {type(error).__name__}{detail}\n{_config_error(error, text)}') from None
    if not isinstance(config, config_dict.ConfigDict):
        raise UsageError(f'{file}: get_config() must return what infopo_jax.config.base_config() returns, edited')
    return module


def _config_error(error: Exception, text: str) -> str:
    """Rewrites ml_collections' message about an unknown key with the full name of the nearest field."""
    match = re.search(r'Key "?(\w+)"? does not exist', str(error)) or re.match(r"'(\w+)'", str(error))
    if not (isinstance(error, AttributeError | KeyError) and match):
        return str(error)
    dotted = re.search(rf'((?:\w+\.)*){match[1]}\b', text)
    field = (dotted[0] if dotted else match[1]).removeprefix('config.')
    return f'no such field, did you mean config.{config_lib.nearest(field, config_lib.field_types())}?'


def _check_names(arguments: list[str]) -> None:
    """Raises UsageError at the first flag that is neither --workdir nor a field, with the nearest one."""
    types = config_lib.field_types()
    for argument in arguments:
        name, _, value = argument.lstrip('-').partition('=')
        if not re.match('--?[a-zA-Z]', argument) or name == 'workdir':
            continue  # a value that stands apart from its flag, or an argument that absl will refuse
        is_field = name.startswith(('config.', 'noconfig.'))
        field = name.partition('config.')[2] if is_field else name
        if name.startswith('noconfig.') and field in types:
            raise UsageError(f'--{name}: only true or false can be refused; write --{field}={value or "VALUE"}')
        if is_field and field in types:
            continue
        members = [known for known in types if known.startswith(f'{field}.')]
        if is_field and members:
            raise UsageError(f'--{name} is a group of fields; set one of --config.{", --config.".join(members)}')
        near = config_lib.nearest(field, ['workdir', *types])
        prefix = 'noconfig' if name.startswith('no') and types.get(near) is bool else 'config'
        guess = near if near == 'workdir' else f'{prefix}.{near}'
        shown = f'--{name}={value}' if value else f'--{name}'
        raise UsageError(f'{shown}: no such {"field" if is_field else "flag"}, did you mean --{guess}?')


def _explain(message: str) -> str:
    """Turns absl's words about a value into field, value and constraint."""
    match = re.match(r'flag --config\.(?P<field>[\w.]+)=(?P<value>.*?): ', message, re.DOTALL)
    types = config_lib.field_types()
    if match and match['field'] in types:
        words = _ABSL_WORDS[types[match['field']]]
        comment = next(comment for field, _, comment in config_lib.describe() if field == match['field'])
        return f'config.{match["field"]} = {match["value"]!r}: must be {words} ({comment})'
    return message
