"""Arguments against nested JSON schemas, and what is said of those that do not fit."""

import pytest
from hypothesis import given, strategies as st
from json_values import JSON

from infopo_jax.envs.schema import problem
from infopo_jax.envs.tools import check

ADDRESS = {  # as pydantic writes the schema of a nested model
    '$defs': {
        'Address': {
            'type': 'object',
            'properties': {'city': {'type': 'string'}, 'zip': {'anyOf': [{'type': 'integer'}, {'type': 'null'}]}},
            'required': ['city'],
            'additionalProperties': False,
        },
        'Tree': {'type': 'object', 'properties': {'left': {'$ref': '#/$defs/Tree'}, 'size': {'type': 'integer'}}},
        'Loop': {'$ref': '#/$defs/Loop'},
    },
    'type': 'object',
    'properties': {
        'to': {'$ref': '#/$defs/Address'},
        'stops': {'type': 'array', 'items': {'$ref': '#/$defs/Address'}},
        'pay': {'anyOf': [{'type': 'object', 'properties': {'card': {'type': 'string'}}, 'required': ['card']},
                          {'type': 'string', 'enum': ['cash']}, {'type': 'null'}]},
        'how': {'const': 'fast'},
        'level': {'enum': [1, 'two', None]},
        'note': {'type': 'string', 'nullable': True},
        'tree': {'$ref': '#/$defs/Tree'},
        'loop': {'$ref': '#/$defs/Loop'},
        'lost': {'$ref': '#/$defs/Nowhere'},
        'any': True,
        'maybe': {'anyOf': [{'type': 'null'}, {'$ref': '#/$defs/Address'}]},
        'both': {'allOf': [{'type': 'object', 'required': ['a']}, {'properties': {'b': {'type': 'boolean'}}}]},
        'prices': {'type': 'object', 'additionalProperties': {'type': 'number'}},
        'union': {'oneOf': [{'type': 'integer'}, {'type': 'array', 'items': {'type': 'integer'}}]},
    },
}  # fmt: skip
SEND = [{'type': 'function', 'function': {'name': 'send', 'parameters': ADDRESS}}]
PARIS = {'city': 'Paris'}


@pytest.mark.parametrize(
    'arguments',
    [
        {},
        {'to': PARIS},
        {'to': {'city': 'Paris', 'zip': None}, 'stops': [PARIS, {'city': 'Lyon', 'zip': 69}]},
        {'pay': None, 'note': None, 'level': None},
        {'pay': {'card': 'x'}, 'level': 1, 'how': 'fast'},
        {'pay': 'cash', 'level': 'two'},
        {'tree': {'left': {'left': {'size': 1}}}},
        {'lost': 3, 'any': {'x': [1]}, 'both': {'a': 1, 'b': True}, 'prices': {'x': 1.5}, 'union': [1, 2]},
    ],
)
def test_check_accepts_what_nested_schemas_allow(arguments):
    assert check('send', arguments, SEND) is None


@pytest.mark.parametrize(
    ('arguments', 'error'),
    [
        ({'to': 'Paris'}, 'argument "to" of send must be of type object'),
        ({'to': {}}, 'argument "to" of send needs "city"'),
        ({'to': {'city': 'Paris', 'cty': 1}}, 'argument "to" of send has no "cty"; did you mean "city"?'),
        ({'to': {'city': 3}}, 'argument "to.city" of send must be of type string'),
        ({'to': {'city': 'Paris', 'zip': '75'}}, 'argument "to.zip" of send must be of type integer or null'),
        ({'stops': [PARIS, {'city': None}]}, 'argument "stops[1].city" of send must be of type string'),
        ({'stops': PARIS}, 'argument "stops" of send must be of type array'),
        ({'maybe': {'city': 3}}, 'argument "maybe.city" of send must be of type string'),
        ({'pay': 'credit'}, 'argument "pay" of send must be one of cash'),
        ({'pay': {'card': 3}}, 'argument "pay.card" of send must be of type string'),
        ({'pay': {}}, 'argument "pay" of send needs "card"'),
        ({'pay': 3}, 'argument "pay" of send must be of type object or string or null'),
        ({'how': 'slow'}, 'argument "how" of send must be one of fast'),
        ({'level': True}, 'argument "level" of send must be one of 1, two, None'),
        ({'tree': {'left': {'size': 1.5}}}, 'argument "tree.left.size" of send must be of type integer'),
        ({'loop': 1}, 'argument "loop" of send is nested too deeply'),
        ({'both': {'b': True}}, 'argument "both" of send needs "a"'),
        ({'both': {'a': 1, 'b': 1}}, 'argument "both.b" of send must be of type boolean'),
        ({'prices': {'x': '1'}}, 'argument "prices.x" of send must be of type number'),
        ({'union': ['1']}, 'argument "union[0]" of send must be of type integer'),
        ({'union': '1'}, 'argument "union" of send must be of type integer or array'),
    ],
)
def test_check_says_where_a_nested_value_is_wrong(arguments, error):
    assert check('send', arguments, SEND) == error


def test_check_refuses_values_that_are_nested_too_deeply():
    tree = {}
    for _ in range(200):
        tree = {'left': tree}
    assert check('send', {'tree': tree}, SEND).endswith('of send is nested too deeply')


def test_check_shortens_a_long_list_of_choices():
    assert len(problem('x', {'enum': list(range(1000))})[1]) < 150


@given(st.dictionaries(st.sampled_from(list(ADDRESS['properties'])) | st.text(), JSON, max_size=4))
def test_check_never_raises_for_any_arguments(arguments):
    error = check('send', arguments, SEND)
    assert error is None or (error.isascii() and len(error) < 300)
