"""Checking a value from an agent against a JSON schema; what is wrong is said in words that the agent can act on.

Covered is what tool schemas are made of (those that pydantic writes included): type, enum, const, properties, required,
additionalProperties, items, anyOf, oneOf, allOf, $ref into $defs, nullable. Bounds, patterns and formats are left to
the tool itself, whose own answer says more. https://json-schema.org/understanding-json-schema
"""

import difflib
import json
from collections.abc import Iterable
from typing import Any

Schema = dict[str, Any]

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
_MAX_CHOICES = 120  # characters of an enum's values that an error lists
_MAX_DEPTH = 32  # levels of a value, and steps through $ref and anyOf, that are looked at

Problem = tuple[str, str]  # where inside the value ('.items[1].id', '' for all of it), and what is wrong


def problem(value: Any, schema: Any, *, root: Schema | None = None, depth: int = 0) -> Problem | None:
    """Returns what is wrong with a value, None if nothing is; never raises for any JSON value.

    Args:
        value: what ``json.loads`` returned.
        schema: JSON schema; anything but an object accepts every value.
        root: the schema in which ``$ref`` is looked up; ``schema`` itself by default.
        depth: levels above this value.

    Returns:
        A path inside the value and a phrase that follows "argument x of f", such as 'must be of type string'.
    """
    if not isinstance(schema, dict):
        return None
    if depth > _MAX_DEPTH:
        return '', 'is nested too deeply'
    root = schema if root is None else root
    inner = {'root': root, 'depth': depth + 1}
    if value is None and schema.get('nullable'):
        return None
    parts = list(schema.get('allOf', ()))
    if '$ref' in schema:
        parts.append(_resolve(schema['$ref'], root))
    found = next((p for p in (problem(value, part, **inner) for part in parts) if p), None)
    return (
        found
        or _choice_problem(value, schema, inner)
        or _type_problem(value, schema)
        or _enum_problem(value, schema)
        or _inside_problem(value, schema, inner)
    )


def quote(value: Any, limit: int = _MAX_QUOTE) -> str:
    """Returns a value from an agent as short ASCII that no chat template mistakes for markup."""
    text = json.dumps(value, default=str).replace('<|', '< |')
    return text if len(text) <= limit else text[: limit - 3] + '...'


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns the hint that ends an error about an unknown name; '' if nothing can be meant."""
    matches = difflib.get_close_matches(name[:_MAX_QUOTE], list(names), n=1, cutoff=0.0)
    return f'; did you mean "{matches[0]}"?' if matches else ''


def _resolve(reference: Any, root: Schema) -> Any:
    """Follows '#/$defs/Name'; what leads nowhere accepts every value."""
    node: Any = root
    for step in str(reference).removeprefix('#').strip('/').split('/'):
        node = node.get(step) if isinstance(node, dict) and step else node
    return node


def _choice_problem(value: Any, schema: Schema, inner: dict) -> Problem | None:
    """Checks anyOf and oneOf (of which one is enough here: alternatives of tools do not overlap on purpose)."""
    for key in ('anyOf', 'oneOf'):
        options = schema.get(key)
        if not options:
            continue
        problems = [problem(value, option, **inner) for option in options]
        if None in problems:
            continue
        deep = [p for p in problems if p[0]]  # an option of the right type, wrong further inside, says the most
        types = [_kinds(option) for option in options]
        if deep or not all(types):
            return (deep or problems)[0]
        if any(_type_problem(value, option) is None for option in options):
            return next(p for p, option in zip(problems, options, strict=True) if _type_problem(value, option) is None)
        return '', f'must be of type {" or ".join(dict.fromkeys(kind for kinds in types for kind in kinds))}'
    return None


def _kinds(schema: Any) -> tuple[str, ...]:
    """Returns the type names of a schema; none where it names none."""
    kinds = schema.get('type', ()) if isinstance(schema, dict) else ()
    return (kinds,) if isinstance(kinds, str) else tuple(kinds)


def _type_problem(value: Any, schema: Any) -> Problem | None:
    kinds = _kinds(schema)
    accepted = tuple(t for kind in kinds for t in _TYPES.get(kind, (object,)))
    is_stray_bool = isinstance(value, bool) and not {bool, object} & set(accepted)  # Python's bool is an int
    if accepted and (is_stray_bool or not isinstance(value, accepted)):
        return '', f'must be of type {" or ".join(kinds)}'
    return None


def _enum_problem(value: Any, schema: Schema) -> Problem | None:
    choices = [schema['const']] if 'const' in schema else schema.get('enum')
    if choices is None or any(value == c and isinstance(value, bool) == isinstance(c, bool) for c in choices):
        return None
    listed = ', '.join(map(str, choices))
    return '', f'must be one of {listed if len(listed) <= _MAX_CHOICES else listed[: _MAX_CHOICES - 3] + "..."}'


def _inside_problem(value: Any, schema: Schema, inner: dict) -> Problem | None:
    """Checks the items of an array and the properties of an object."""
    if isinstance(value, list):
        for i, item in enumerate(value):
            found = problem(item, schema.get('items'), **inner)
            if found:
                return f'[{i}]{found[0]}', found[1]
    if not isinstance(value, dict):
        return None
    properties, others = schema.get('properties') or {}, schema.get('additionalProperties', True)
    for key in value:
        if key not in properties and others is False:
            return '', f'has no {quote(key)}{nearest(key, properties)}'
    for key in schema.get('required', ()):
        if key not in value:
            return '', f'needs "{key}"'
    for key, item in value.items():
        found = problem(item, properties.get(key, others), **inner)
        if found:
            return f'.{key}{found[0]}', found[1]
    return None
