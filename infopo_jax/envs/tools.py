"""Parsing what an agent says into an action: plain text, or one tool call in Hermes/Qwen format.

    <think>private</think>text to the user
    <tool_call>{"name": "get_order", "arguments": {"order": "order_3"}}</tool_call>

Whatever the input, ``parse`` returns an ``Action``; what is wrong with a call stands in ``Action.error``, in words that
an agent can act on. Format: https://qwen.readthedocs.io/en/latest/framework/function_call.html
"""

import dataclasses
import difflib
import json
import re
from collections.abc import Sequence
from typing import Any

Schema = dict[str, Any]  # JSON schema of a tool, bare or as {'type': 'function', 'function': ...}

_OPEN, _CLOSE = '<tool_call>', '</tool_call>'
_THINK = re.compile(r'<think>(.*?)</think>', re.DOTALL)
_TYPES = {
    'string': (str,),
    'integer': (int,),
    'number': (int, float),
    'boolean': (bool,),
    'array': (list,),
    'object': (dict,),
    'null': (type(None),),
}
_MAX_QUOTE = 32  # characters of the agent's own words that an error repeats


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


def quote(value: Any) -> str:
    """Returns a value from an agent as short ASCII that no chat template mistakes for markup."""
    text = json.dumps(value, default=str).replace('<|', '< |')
    return text if len(text) <= _MAX_QUOTE else text[: _MAX_QUOTE - 3] + '...'


def render(name: str, arguments: dict[str, Any]) -> str:
    """Writes a tool call as ``parse`` reads it."""
    return _OPEN + json.dumps({'name': name, 'arguments': arguments}) + _CLOSE


def parse(text: str, schemas: Sequence[Schema]) -> Action:
    """Parses an agent's turn; never raises for any text.

    A thought is what ``<think>...</think>`` holds, or all before a lone ``</think>`` (some chat templates open the
    block in the prompt). Calls inside a thought are not calls.

    Args:
        text: what the agent said, without chat markup.
        schemas: JSON schemas of the tools, bare or wrapped as functions.

    Returns:
        The action. ``error`` is set for: a thought or a call that is not closed, more than one call, JSON that does not
        parse, an unknown tool (with the nearest name), a missing, an unknown or an ill-typed argument.
    """
    text, thought, error = _split_thought(text)
    if error:
        return Action(text, thought, error=error)
    if _OPEN not in text and _CLOSE not in text:
        return Action(text.strip(), thought)
    before, _, rest = text.partition(_OPEN)
    body, closed, after = rest.partition(_CLOSE)
    said = (before + after).replace(_CLOSE, '').strip()
    if text.count(_OPEN) > 1:
        return Action(said, thought, error='more than one call in a turn; make one call')
    if _OPEN not in text or not closed or _CLOSE in after:
        return Action(said, thought, error=f'a call must stand between {_OPEN} and {_CLOSE}')
    call, error = _load(body)
    if error:
        return Action(said, thought, error=error)
    error = check(call['name'], call['arguments'], schemas)
    if error:
        return Action(said, thought, error=error)
    return Action(said, thought, call['name'], call['arguments'])


def check(name: str, arguments: dict[str, Any], schemas: Sequence[Schema]) -> str | None:
    """Checks a call against the tools; returns what is wrong, None if nothing is."""
    tools = {tool['name']: tool for tool in (schema.get('function', schema) for schema in schemas)}
    if name not in tools:
        return f'no tool {quote(name)}{_nearest(name, tools)}'
    parameters = tools[name].get('parameters', {})
    properties = parameters.get('properties', {})
    for key in arguments:
        if key not in properties and parameters.get('additionalProperties', False) is False:
            return f'{name} has no argument {quote(key)}{_nearest(key, properties)}'
    for key in parameters.get('required', ()):
        if key not in arguments:
            return f'{name} needs the argument "{key}"'
    for key, value in arguments.items():
        error = _check_value(value, properties.get(key, {}))
        if error:
            return f'argument "{key}" of {name} {error}'
    return None


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


def _load(body: str) -> tuple[dict, str | None]:
    """Reads the JSON of a call; returns it with its name and arguments, or an error."""
    try:
        call = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return {}, 'the call is not valid JSON'
    if not isinstance(call, dict) or not isinstance(call.get('name'), str):
        return {}, 'a call needs a "name", which is a string'
    if not isinstance(call.get('arguments'), dict):
        return {}, 'a call needs "arguments", which is an object'
    return call, None


def _refuse_constant(name: str) -> None:
    """Refuses NaN and Infinity, which Python reads and JSON does not have."""
    raise ValueError(f'{name} is not JSON')


def _check_value(value: Any, schema: Schema) -> str | None:
    """Returns what is wrong with an argument's value, None if nothing is."""
    kinds = schema.get('type', ())
    kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    accepted = tuple(t for kind in kinds for t in _TYPES.get(kind, (object,)))
    is_stray_bool = isinstance(value, bool) and not {bool, object} & set(accepted)  # Python's bool is an int
    if accepted and (is_stray_bool or not isinstance(value, accepted)):
        return f'must be of type {" or ".join(kinds)}'
    if 'enum' in schema and value not in schema['enum']:
        return f'must be one of {", ".join(map(str, schema["enum"]))}'
    return None


def _nearest(name: str, names: Sequence[str] | dict) -> str:
    """Returns the hint that ends an error about an unknown name; '' if nothing can be meant."""
    if not names:
        return ''
    matches = difflib.get_close_matches(name[:_MAX_QUOTE], names, n=1, cutoff=0.0)
    return f'; did you mean "{matches[0]}"?'
