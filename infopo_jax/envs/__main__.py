"""Plays an environment in the terminal: python -m infopo_jax.envs NAME [--knob=value ...]

Type what an agent would say. In a text environment a tool is called as

    /get_order order=order_3                    or by the start of its name: /get
    /interact choice=action content="date?"

and :tools lists the tools, :expert lets the environment's scripted expert move, :quit (or Ctrl-D) ends the game. In an
array environment an action is words of its vocabulary, which :words lists.
"""

import argparse
import ast
import inspect
import json
import random
import shlex
import sys
import typing
from collections.abc import Callable, Sequence
from typing import Any

from infopo_jax import envs, users
from infopo_jax.envs.remote import RemoteError
from infopo_jax.envs.text import Message
from infopo_jax.envs.tools import render

_USER = 'user'  # the knob that is not a plain value: --user=NAME makes one
_TYPES = {int: 'an integer', float: 'a number', bool: 'True or False', str: 'text'}  # that a value is checked against


class _Quit(Exception):
    """The player has had enough."""


def main(argv: Sequence[str], ask: Callable[[str], str] = input) -> int:
    """Plays one episode.

    Args:
        argv: the command line, without the program.
        ask: reads a line after a prompt.

    Returns:
        The exit status: 0, or 2 for a command line that makes no sense and for a user, a server or another interpreter
        that fails; what is wrong goes to stderr.
    """
    if not argv or argv[0].startswith('-'):
        print(f'{__doc__}\nNAME is one of {", ".join(envs.ENVIRONMENTS)}; NAME --help lists its knobs.')
        return 0 if argv in (['--help'], ['-h']) else 2
    try:
        options, knobs = _options(argv[0], argv[1:])
        env = envs.make(argv[0], **knobs)
        (_play_text if hasattr(env, 'tasks') else _play_array)(env, options, ask)
    except (ValueError, users.UserFailed, ConnectionError, RemoteError) as error:
        print(error, file=sys.stderr)
        return 2
    except (_Quit, EOFError, KeyboardInterrupt):
        print('\nleft before the end')
    return 0


def _options(name: str, argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Returns what to play, and the knobs that are set."""
    knobs, parameters = envs.knobs(name), inspect.signature(envs.constructor(name)).parameters
    parser = argparse.ArgumentParser(
        prog=f'python -m infopo_jax.envs {name}',
        description=envs.constructor(name).__doc__,
        epilog=__doc__.partition('\n\n')[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument('--split', choices=('train', 'test'), default='train', help='which tasks (default: train)')
    parser.add_argument('--task', default=None, help='a task id of a text environment (default: drawn by the seed)')
    parser.add_argument('--seed', type=int, default=0, help='of the task and of how the user words things (default: 0)')
    group = parser.add_argument_group('knobs')
    for knob, default in knobs.items():
        group.add_argument(f'--{knob}', metavar='VALUE', help=f'default: {default!r}')
    if _USER in knobs:
        group.add_argument('--user_model', metavar='NAME', help='model of --user=openai')
    options = parser.parse_args(argv, argparse.Namespace(argv=[name, *argv]))
    said = {knob: getattr(options, knob) for knob in knobs if hasattr(options, knob)}
    chosen = {knob: _knob(knob, text, parameters[knob].annotation) for knob, text in said.items() if knob != _USER}
    if _USER in said:
        chosen[_USER] = _user(said[_USER], getattr(options, 'user_model', None))
    return options, chosen


def _user(name: str, model: str | None) -> users.User | None:
    """Returns who answers.

    Raises:
        ValueError: there is nobody of that name, or not here, or he needs a model.
    """
    if name == 'policy':
        raise ValueError('--user=policy is the model of a run, and here is none: take --user=openai, or no --user')
    if name == 'openai' and model is None:
        raise ValueError('--user=openai needs a model: pass --user_model=NAME, as its endpoint calls it')
    return users.make(name, model=model)


def _knob(knob: str, text: str, annotation: Any) -> Any:
    """Reads the value of a knob.

    Raises:
        ValueError: it is not of the knob's type; only plain types are checked.
    """
    value, kinds = _value(text), set(typing.get_args(annotation) or [annotation]) - {type(None)}
    fits = type(value) in kinds or (type(value) is int and float in kinds)
    if value is None or fits or not kinds <= set(_TYPES):
        return value
    if str in kinds:
        return text
    raise ValueError(f'--{knob}={text} must be {" or ".join(_TYPES[kind] for kind in kinds)}')


def _value(text: str) -> Any:
    """Reads a number, True, None or the like; anything else is a string."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


# Text environments


def _play_text(env: Any, options: argparse.Namespace, ask: Callable[[str], str]) -> None:
    task = _task(env, options)
    observation, info = env.reset(seed=options.seed, options={'task': task})
    tools = [tool.get('function', tool) for tool in info.get('tools') or ()]
    if options.task is not None:
        print(f'task {task}')
    _show([{'role': 'user', 'content': observation}] if isinstance(observation, str) else observation)
    if tools:
        print(f'[tools] {", ".join(map(_signature, tools))}')
    total, ended, num_turns = 0.0, False, 0
    while not ended:
        text = _text(ask(f'\n[you, {num_turns + 1} of {env.max_turns}] '), tools, env)
        if text is None:
            continue
        observation, reward, terminated, truncated, info = env.step(text)
        total, num_turns = total + reward, num_turns + 1
        ended = terminated or truncated or num_turns == env.max_turns
        _show([{'role': 'user', 'content': observation}] if isinstance(observation, str) else observation)
        if reward:
            print(f'[reward] {reward:g}')
    success = bool(terminated and info.get('success', False))
    _show_end(float(info.get('outcome', total)), success, num_turns, 'over' if terminated else 'turn limit')
    if options.task is None:  # not shown before the end: it may give the goal away
        print(f'task {task}; again: python -m infopo_jax.envs {shlex.join([*options.argv, f"--task={task}"])}')


def _task(env: Any, options: argparse.Namespace) -> Any:
    """Returns the task that was asked for, which may be of either split, or one drawn by the seed."""
    if options.task is None:
        return random.Random(options.seed).choice(env.tasks(options.split))
    known = [task for split in ('train', 'test') for task in env.tasks(split)]
    for task in known:
        if str(task) == options.task:
            return task
    raise ValueError(f'no task {options.task!r}; there are {len(known)}, such as {known[0]!r}')


def _text(line: str, tools: list[dict], env: Any) -> str | None:
    """Returns what the agent says for a line of the player; None if the line was for us."""
    word = line.strip()
    if word == ':quit':
        raise _Quit
    if word == ':tools':
        print(json.dumps(tools, indent=2))
        return None
    if word != ':expert' and not word.startswith('/'):
        return line
    try:
        text = _expert(env) if word == ':expert' else _call(shlex.split(word[1:]), tools)
    except ValueError as error:
        print(error)
        return None
    print(text)
    return text


def _expert(env: Any) -> str:
    if not hasattr(env, 'expert'):
        raise ValueError('this environment has no expert')
    return env.expert()


def _call(words: list[str], tools: list[dict]) -> str:
    """Writes the tool call for a name (or its start) and key=value words.

    Raises:
        ValueError: no tool or several have that name, or a word has no '='.
    """
    start = words[0] if words else ''
    found = [tool for tool in tools if tool['name'] == start] or [t for t in tools if t['name'].startswith(start)]
    if len(found) != 1:
        raise ValueError(f'/{start} is not one tool; the tools: {", ".join(map(_signature, tools)) or "none"}')
    properties = found[0].get('parameters', {}).get('properties', {})
    arguments = {}
    for word in words[1:]:
        key, equals, value = word.partition('=')
        if not equals:
            raise ValueError(f'{word!r} must be key=value; quote values with blanks: content="two words"')
        arguments[key] = value if properties.get(key, {}).get('type') == 'string' else _value(value)
    return render(found[0]['name'], arguments)


def _signature(tool: dict) -> str:
    return ' '.join([f'/{tool["name"]}', *(f'{key}=...' for key in tool.get('parameters', {}).get('properties', {}))])


def _show(messages: Sequence[Message]) -> None:
    for message in messages:
        print(f'[{message["role"]}] {message["content"]}')


def _show_end(outcome: float, success: bool, num_turns: int, how: str) -> None:
    print(f'\n[end: {how}] outcome {outcome:g}, {"success" if success else "no success"}, {num_turns} turns')


# Array environments


def _play_array(env: Any, options: argparse.Namespace, ask: Callable[[str], str]) -> None:
    import jax

    if options.task is not None:
        raise ValueError('an array environment draws its tasks: choose one by --seed and --split')
    key = jax.random.key(options.seed)
    state, prompt, mask = env.reset(key, options.split)
    print(_words(env, prompt, mask))
    done, num_turns = False, 0
    while not done and num_turns < env.max_turns:
        action = _action(env, ask(f'\n[you, {num_turns + 1} of {env.max_turns}] '))
        if action is None:
            continue
        num_turns += 1
        state, feedback, mask, reward, done, _ = env.step(jax.random.fold_in(key, num_turns), state, *action)
        print(_words(env, feedback, mask))
        if float(reward):
            print(f'[reward] {float(reward):g}')
    outcome, success = env.score(state)
    _show_end(float(outcome), bool(success), num_turns, 'over' if done else 'turn limit')


def _words(env: Any, tokens: Any, mask: Any) -> str:
    return ' '.join(env.vocab[int(token)] for token, real in zip(tokens, mask, strict=True) if real)


def _action(env: Any, line: str) -> tuple[Any, Any] | None:
    """Returns the ids of an action and their mask, both [action_len]; None if the line was for us or makes no sense."""
    import numpy as np

    words = line.split()
    if words == [':quit']:
        raise _Quit
    unknown = [word for word in words if word not in env.vocab]
    if unknown:
        hint = '' if words == [':words'] else f'{unknown[0]!r} is no word here; '
        print(f'{hint}words: {" ".join(env.vocab)}')
        return None
    ids = [env.vocab.index(word) for word in words][: env.action_len]
    ids = ids if len(ids) == env.action_len else [*ids, env.stop_id]
    tokens, mask = np.zeros(env.action_len, np.int32), np.arange(env.action_len) < len(ids)
    tokens[: len(ids)] = ids
    return tokens, mask


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
