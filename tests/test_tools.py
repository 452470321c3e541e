"""Tests of parsing an agent's text."""

import json

import pytest
from hypothesis import given, strategies as st

from infopo_jax.envs.tools import Action, check, parse, quote, render

SCHEMAS = [
    {
        'type': 'function',
        'function': {
            'name': 'get_order',
            'parameters': {'type': 'object', 'properties': {'order': {'type': 'string'}}, 'required': ['order']},
        },
    },
    {  # bare, without the wrapping
        'name': 'book',
        'parameters': {
            'type': 'object',
            'properties': {
                'seats': {'type': 'integer'},
                'price': {'type': ['number', 'null']},
                'color': {'type': 'string', 'enum': ['red', 'blue']},
                'flags': {'type': 'array'},
            },
            'required': ['seats'],
        },
    },
    {'name': 'ping'},
]


def call(name, **arguments):
    return render(name, arguments)


def test_parse_returns_plain_text_without_a_call():
    assert parse(' Which order?\n', SCHEMAS) == Action(text='Which order?')
    assert parse('', SCHEMAS) == Action()


def test_parse_reads_a_call_in_hermes_layout():
    text = '<tool_call>\n{"name": "get_order", "arguments": {"order": "order_3"}}\n</tool_call>'
    assert parse(text, SCHEMAS) == Action(name='get_order', arguments={'order': 'order_3'})


def test_render_writes_the_literal_layout():
    expected = '<tool_call>{"name": "get_order", "arguments": {"order": "order_3"}}</tool_call>'
    assert call('get_order', order='order_3') == expected


def test_parse_keeps_text_beside_a_call():
    action = parse(f'One moment. {call("ping")} ', SCHEMAS)
    assert (action.text, action.name, action.error) == ('One moment.', 'ping', None)


@pytest.mark.parametrize(
    ('text', 'said', 'thought'),
    [
        ('<think>Ask first.</think>Which order?', 'Which order?', 'Ask first.'),
        ('Ask first.</think>\n\nWhich order?', 'Which order?', 'Ask first.'),
        ('<think>a</think>x<think>b</think>', 'x', 'a\nb'),
        (f'<think>not {call("ping")}</think>hello', 'hello', f'not {call("ping")}'),
    ],
)
def test_parse_sets_thoughts_apart(text, said, thought):
    assert parse(text, SCHEMAS) == Action(text=said, thought=thought)


@pytest.mark.parametrize(
    ('text', 'error'),
    [
        ('<think>and then', 'a thought must stand between'),
        ('<tool_call>{"name": "ping", "arguments": {}}', 'a call must stand between'),
        ('{"name": "ping", "arguments": {}}</tool_call>', 'a call must stand between'),
        (call('ping') + '</tool_call>', 'a call must stand between'),
        (call('ping') * 2, 'more than one call'),
        ('<tool_call>{"name": ping}</tool_call>', 'not valid JSON'),
        ('<tool_call>' + '[' * 100_000 + '</tool_call>', 'not valid JSON'),
        ('<tool_call>{"name": "book", "arguments": {"price": NaN}}</tool_call>', 'not valid JSON'),
        ('<tool_call>["ping"]</tool_call>', 'needs a "name"'),
        ('<tool_call>{"name": 3, "arguments": {}}</tool_call>', 'needs a "name"'),
        ('<tool_call>{"name": "ping"}</tool_call>', 'needs "arguments"'),
        ('<tool_call>{"name": "ping", "arguments": "{}"}</tool_call>', 'needs "arguments"'),
        (call('get_ordr', order='x'), 'no tool "get_ordr"; did you mean "get_order"?'),
        (call('ping', x=1), 'ping has no argument "x"'),
        (call('get_order'), 'get_order needs the argument "order"'),
        (call('get_order', ordr='x'), 'get_order has no argument "ordr"; did you mean "order"?'),
        (call('get_order', order=3), 'argument "order" of get_order must be of type string'),
        (call('book', seats=True), 'argument "seats" of book must be of type integer'),
        (call('book', seats=2.5), 'argument "seats" of book must be of type integer'),
        (call('book', seats=2, price='1'), 'must be of type number or null'),
        (call('book', seats=2, color='green'), 'argument "color" of book must be one of red, blue'),
        (call('book', seats=2, flags={}), 'must be of type array'),
    ],
)
def test_parse_says_what_is_wrong(text, error):
    action = parse(text, SCHEMAS)
    assert error in action.error
    assert action.name is None and action.arguments == {}


def test_parse_accepts_every_declared_type():
    action = parse(call('book', seats=2, price=None, color='red', flags=[1]), SCHEMAS)
    assert action.error is None
    assert action.arguments == {'seats': 2, 'price': None, 'color': 'red', 'flags': [1]}


def test_check_without_tools_gives_no_hint():
    assert check('ping', {}, []) == 'no tool "ping"'


def test_quote_is_short_ascii_without_markup():
    assert quote('<|im_end|>') == '"< |im_end|>"'
    assert len(quote('\ud800' * 1000)) <= 32 and quote('é\ud800').isascii()


PIECES = st.sampled_from(
    [
        '<tool_call>',
        '</tool_call>',
        '<think>',
        '</think>',
        '{"name": "ping", "arguments": {}}',
        call('get_order', order='a'),
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(PIECES | st.text(), max_size=6).map(''.join))
def test_parse_never_raises_for_any_text(text):
    action = parse(text, SCHEMAS)
    assert isinstance(action, Action)
    assert action.error is None or (action.error.isascii() and len(action.error) < 200)


@given(st.sampled_from(['ping', 'book', 'get_order', 'other']) | st.text(), JSON)
def test_parse_never_raises_for_any_json(name, arguments):
    body = json.dumps({'name': name, 'arguments': arguments})
    action = parse(f'<tool_call>{body}</tool_call>', SCHEMAS)
    assert (action.name is None) == (action.error is not None or '<tool_call>' not in f'<tool_call>{body}')


@given(st.text(st.characters(exclude_characters='<')))
def test_parse_inverts_render(value):
    assert parse(render('get_order', {'order': value}), SCHEMAS).arguments == {'order': value}
