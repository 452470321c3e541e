"""Parsing what an agent says into an action: plain text, or one tool call.

    hermes    <think>private</think>text to the user
              <tool_call>{"name": "get_order", "arguments": {"order": "order_3"}}</tool_call>
    llama3    {"name": "get_order", "parameters": {"order": "order_3"}}             perhaps after <|python_tag|>
    mistral   [TOOL_CALLS] [{"name": "get_order", "arguments": {"order": "order_3"}, "id": "abcdefghi"}]
    text      no calls

``canonical`` rewrites every layout into the first one, and ``native`` the first one into any. A rollout does the former
before an environment hears the text, so that an environment that calls ``parse(text, schemas)`` serves a model of any
layout; a warm start does the latter with the examples of an environment.

Whatever the input, ``parse`` returns an ``Action``; what is wrong with a call stands in ``Action.error``, in words that
an agent can act on. Sources: https://qwen.readthedocs.io/en/latest/framework/function_call.html,
https://www.llama.com/docs/model-cards-and-prompt-formats/llama3_1,
https://docs.mistral.ai/capabilities/function_calling
"""

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from infopo_jax.envs.schema import Schema, nearest, problem, quote

__all__ = ['FORMATS', 'Action', 'canonical', 'check', 'native', 'parse', 'quote', 'render']

_OPEN, _CLOSE = '<tool_call>', '</tool_call>'
_PYTHON, _CALLS = '<|python_tag|>', '[TOOL_CALLS]'
_THINK = re.compile(r'<think>(.*?)</think>', re.DOTALL)
_TAGS = (_OPEN, _CLOSE, '<think>', '</think>')
_CALL = re.compile(f'{_OPEN}(.*?){_CLOSE}', re.DOTALL)
_PATH = 64  # characters of a place inside an argument that an error repeats


@dataclasses.dataclass(frozen=True)
class Action:
    """What an agent did in one turn: said ``text``, or called ``name``, unless ``error`` says what was wrong.

    Text beside a call stays in ``text``; thoughts are in neither.
    """

    text: str = ''
    thought: str = ''
    name: str | None = None
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    error: str | None = None


def render(name: str, arguments: dict[str, Any]) -> str:
    """Writes a tool call in Hermes layout; ``parse`` reads back the same, whatever the arguments say."""
    return _OPEN + _dump({'name': name, 'arguments': arguments}) + _CLOSE


def canonical(text: str, format: str) -> str:
    """Rewrites an agent's turn from any layout of calls into Hermes layout; never raises for any text.

    Thoughts and text stay where they are; a turn without a call stays as it is. A call that cannot be read is set
    between the tags as it stands, for ``parse`` to say what is wrong.

    Raises:
        ValueError: an unknown layout.
    """
    _check_format(format)
    thought, closed, visible = text.rpartition('</think>')
    find = FORMATS[format]
    if find is None or '<think>' in visible:  # nothing to rewrite, or a thought that does not end
        return text
    said, bodies = find(visible)
    return thought + closed + said + ''.join(_OPEN + body + _CLOSE for body in bodies)


def native(text: str, format: str) -> str:
    """Rewrites an agent's turn from Hermes layout into another, as a model of that layout would say it.

    ``canonical`` reads the same calls out of it. A turn without a call that can be read stays as it is; so does every
    turn where the layout knows no calls.

    Raises:
        ValueError: an unknown layout.
    """
    _check_format(format)
    thought, closed, visible = text.rpartition('</think>')
    calls = [_read(body) for body in _CALL.findall(visible)]
    if format not in _WRITERS or not calls or not all(isinstance(call, dict) for call in calls):
        return text
    return thought + closed + _WRITERS[format](_CALL.sub('', visible), calls)


def parse(text: str, schemas: Sequence[Schema], format: str = 'hermes') -> Action:
    """Parses an agent's turn; never raises for any text.

    A thought is what ``<think>...</think>`` holds, or all before a lone ``</think>`` (some chat templates open the
    block in the prompt). Calls inside a thought are not calls.

    Args:
        text: what the agent said, without chat markup.
        schemas: JSON schemas of the tools, bare or wrapped as functions.
        format: layout of calls, one of ``FORMATS``. The others understand calls in Hermes layout too; 'text' none.

    Returns:
        The action. ``error`` is set for: a thought or a call that is not closed, more than one call, JSON that does not
        parse, an unknown tool (with the nearest name), a missing, an unknown or an ill-typed argument.

    Raises:
        ValueError: an unknown format.
    """
    text, thought, error = _split_thought(canonical(text, format))
    if error:
        return Action(text, thought, error=error)
    if format == 'text' or (_OPEN not in text and _CLOSE not in text):
        return Action(text.strip(), thought)
    before, _, rest = text.partition(_OPEN)
    body, closed, after = rest.partition(_CLOSE)
    said = (before + after).replace(_CLOSE, '').strip()
    if text.count(_OPEN) > 1:
        return Action(said, thought, error='more than one call in a turn; make one call')
    if _OPEN not in text or not closed or _CLOSE in after:
        return Action(said, thought, error=f'a call must stand between {_OPEN} and {_CLOSE}')
    name, arguments, error = _load(body)
    error = error or check(name, arguments, schemas)
    if error:
        return Action(said, thought, error=error)
    return Action(said, thought, name, arguments)


def check(name: str, arguments: dict[str, Any], schemas: Sequence[Schema]) -> str | None:
    """Checks a call against the tools; returns what is wrong, None if nothing is.

    An argument that the schema does not name is refused unless the schema allows others explicitly: what an agent
    makes up must not pass in silence.
    """
    tools = {tool['name']: tool for tool in (schema.get('function', schema) for schema in schemas)}
    if name not in tools:
        return f'no tool {quote(name)}{nearest(name, tools)}'
    parameters = tools[name].get('parameters') or {}
    properties, others = parameters.get('properties') or {}, parameters.get('additionalProperties', False)
    for key in arguments:
        if key not in properties and others is False:
            return f'{name} has no argument {quote(key)}{nearest(key, properties)}'
    for key in parameters.get('required', ()):
        if key not in arguments:
            return f'{name} needs the argument "{key}"'
    for key, value in arguments.items():
        found = problem(value, properties.get(key, others), root=parameters)
        if found:
            return f'argument {quote(key + found[0], _PATH)} of {name} {found[1]}'
    return None


def _check_format(format: str) -> None:
    if format not in FORMATS:
        raise ValueError(f'format must be one of {", ".join(FORMATS)}, got {format!r}')


def _split_thought(text: str) -> tuple[str, str, str | None]:
    """Returns text without thoughts, the thoughts, and an error for a block that is not closed."""
    thoughts = [part.strip() for part in _THINK.findall(text)]
    text = _THINK.sub('', text)
    if '</think>' in text:
        lone, _, text = text.rpartition('</think>')
        thoughts.append(lone.replace('</think>', '').strip())
    text, opened, rest = text.partition('<think>')
    if opened:
        thoughts.append(rest.strip())
        return text.strip(), '\n'.join(thoughts), 'a thought must stand between <think> and </think>'
    return text, '\n'.join(thoughts), None


def _load(body: str) -> tuple[str, dict, str | None]:
    """Reads the JSON of a call; returns name, arguments and an error."""
    call = _read(body)
    if call is _UNREADABLE:
        return '', {}, 'the call is not valid JSON'
    if not isinstance(call, dict) or not isinstance(call.get('name'), str):
        return '', {}, 'a call needs a "name", which is a string'
    if not isinstance(call.get('arguments'), dict):
        return '', {}, 'a call needs "arguments", which is an object'
    return call['name'], call['arguments'], None


_UNREADABLE = object()


def _read(body: str) -> Any:
    """Returns the value of a JSON text, ``_UNREADABLE`` if it has none that can be written again.

    Python reads two things that it cannot write: half a surrogate pair ("\\ud800"), which UTF-8 does not have, and
    numbers beyond its floats (1e999), which become infinite.
    """
    try:
        value = json.loads(body, parse_constant=_refuse_constant)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        return value
    except (ValueError, RecursionError):
        return _UNREADABLE


def _refuse_constant(name: str) -> None:
    """Refuses NaN and Infinity, which Python reads and JSON does not have."""
    raise ValueError(f'{name} is not JSON')


def _dump(value: Any) -> str:
    """Returns JSON in which no string spells a tag."""
    text = json.dumps(value)
    for tag in _TAGS:
        text = text.replace(tag, '\\u003c' + tag[1:])
    return text


def _rewritten(call: Any) -> str:
    """Returns the JSON of a call with "arguments" where Llama writes "parameters"."""
    if isinstance(call, dict) and 'parameters' in call and 'arguments' not in call:
        call = {('arguments' if key == 'parameters' else key): value for key, value in call.items()}
    try:
        return _dump(call)
    except RecursionError:  # nested so deeply that it was just read
        return ''


def _untagged(body: str) -> str:
    """Returns a body that is not JSON with its tags broken, so that it ends where it ends."""
    return body.replace('<', '< ')


def _find_llama3(text: str) -> tuple[str, list[str]]:
    """Returns the text beside calls, and the calls: what follows ``<|python_tag|>``, or a turn that starts with '{'."""
    if text.lstrip().startswith('{'):
        said, rest = '', text
    elif _PYTHON in text:
        said, _, rest = text.partition(_PYTHON)
    else:
        return text, []
    bodies, decoder, left = [], json.JSONDecoder(parse_constant=_refuse_constant), rest.strip()
    while left:
        try:
            call, end = decoder.raw_decode(left)
        except (ValueError, RecursionError):
            return said, [_untagged(rest)]
        bodies.append(_rewritten(call))
        left = left[end:].lstrip(' \n\t\r;').removeprefix(_PYTHON).lstrip()
    return said, bodies or ['']


def _find_mistral(text: str) -> tuple[str, list[str]]:
    """Returns the text beside calls, and the calls: a JSON list after ``[TOOL_CALLS]``."""
    said, tag, rest = text.partition(_CALLS)
    if not tag:
        return text, []
    calls = _read(rest)
    if calls is _UNREADABLE:
        return said, [_untagged(rest)]
    return said, [_rewritten(call) for call in (calls if isinstance(calls, list) else [calls])] or ['']


def _write_llama3(said: str, calls: list[dict]) -> str:
    """Undoes ``_find_llama3``."""
    renamed = [{('parameters' if key == 'arguments' else key): value for key, value in call.items()} for call in calls]
    text = '; '.join(map(_dump, renamed))
    return said + _PYTHON + text if said.strip() else text


def _write_mistral(said: str, calls: list[dict]) -> str:
    """Undoes ``_find_mistral``."""
    return f'{said}{_CALLS} {_dump(calls)}'


# How calls are found in a layout that is not Hermes's: text -> (text beside them, the JSON of each).
FORMATS: dict[str, Callable[[str], tuple[str, list[str]]] | None] = {
    'hermes': None,
    'llama3': _find_llama3,
    'mistral': _find_mistral,
    'text': None,
}

# How they are written there: (text beside them, calls) -> text.
_WRITERS: dict[str, Callable[[str, list[dict]], str]] = {'llama3': _write_llama3, 'mistral': _write_mistral}
