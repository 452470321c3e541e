"""Tests of parsing an agent's text."""

import json
import sys

import pytest
from hypothesis import given, strategies as st
from json_values import JSON

from infopo_jax.envs.tools import FORMATS, Action, canonical, check, native, parse, quote, render

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
        ('<tool_call>{"name": "book", "arguments": {"seats": 2, "price": 1e999}}</tool_call>', 'not valid JSON'),
        ('<tool_call>{"name": "book", "arguments": {"flags": [[-1e999]]}}</tool_call>', 'not valid JSON'),
        (call('get_order', order='\ud800'), 'not valid JSON'),
        (call('book', seats=2, flags=[{'x\udfff': 1}]), 'not valid JSON'),
        (call('p\ud800ing'), 'not valid JSON'),
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


def test_parse_accepts_whole_surrogate_pairs_and_large_numbers():
    body = '{"name": "book", "arguments": {"seats": 2, "price": 1e308, "flags": ["\\ud83c\\udf75"]}}'
    action = parse(f'<tool_call>{body}</tool_call>', SCHEMAS)
    assert action.error is None and action.arguments == {'seats': 2, 'price': 1e308, 'flags': ['\U0001f375']}


def test_check_without_tools_gives_no_hint():
    assert check('ping', {}, []) == 'no tool "ping"'


def test_quote_is_short_ascii_without_markup():
    assert quote('<|im_end|>') == '"< |im_end|>"'
    assert len(quote('\ud800' * 1000)) <= 32 and quote('é\ud800').isascii()


PING = Action(name='ping')
LAYOUTS = {
    'hermes': '<tool_call>{"name": "get_order", "arguments": {"order": "order_3"}}</tool_call>',
    'llama3': '{"name": "get_order", "parameters": {"order": "order_3"}}',
    'mistral': '[TOOL_CALLS] [{"name": "get_order", "arguments": {"order": "order_3"}, "id": "abcdefghi"}]',
}


@pytest.mark.parametrize(
    ('format', 'beside', 'alone'),
    [
        ('hermes', f'which one?{LAYOUTS["hermes"]}', LAYOUTS['hermes']),
        ('text', f'which one?{LAYOUTS["hermes"]}', LAYOUTS['hermes']),
        ('llama3', f'which one?<|python_tag|>{LAYOUTS["llama3"]}', LAYOUTS['llama3']),
        ('mistral', f'which one?{LAYOUTS["mistral"]}', LAYOUTS['mistral']),
    ],
)
def test_native_writes_a_call_as_the_layout_has_it(format, beside, alone):
    beside, alone = (text.replace(', "id": "abcdefghi"', '') for text in (beside, alone))
    said = LAYOUTS['hermes']
    assert native(said, format) == alone and native(f'which one?{said}', format) == beside
    thought = f'<think>{said}</think>'  # no call
    assert native(f'{thought}\n{said}', format) == f'{thought}{"" if format == "llama3" else chr(10)}{alone}'
    for text in ('', 'which one?', '<tool_call>', '<tool_call>{</tool_call>', thought):
        assert native(text, format) == text
    with pytest.raises(ValueError, match='format must be one of'):
        native('', 'xml')


@pytest.mark.parametrize('format', LAYOUTS)
def test_parse_reads_a_call_in_each_layout(format):
    expected = Action(name='get_order', arguments={'order': 'order_3'})
    assert parse(LAYOUTS[format], SCHEMAS, format) == expected
    assert parse(canonical(LAYOUTS[format], format), SCHEMAS) == expected  # as an environment hears it
    thinking = f'<think>not {{"name": 1}} yet</think>\n\n{LAYOUTS[format]}'
    assert parse(thinking, SCHEMAS, format).thought == 'not {"name": 1} yet'
    assert parse(thinking, SCHEMAS, format).name == 'get_order'


@pytest.mark.parametrize('format', FORMATS)
def test_parse_returns_plain_text_in_each_layout(format):
    assert parse(' Which order?\n', SCHEMAS, format) == Action(text='Which order?')
    assert parse('<think>hm</think>Hi {x}', SCHEMAS, format) == Action(text='Hi {x}', thought='hm')


def test_parse_finds_no_call_in_an_agent_that_only_talks():
    for text in LAYOUTS.values():
        assert parse(text, SCHEMAS, 'text') == Action(text=text)


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('<|python_tag|>{"name": "ping", "parameters": {}}', PING),
        ('One moment.<|python_tag|>{"name": "ping", "parameters": {}}', Action(text='One moment.', name='ping')),
        (' {"name": "ping", "parameters": {}};\n', PING),
        ('{"type": "function", "name": "ping", "arguments": {}}', PING),
        ('<tool_call>{"name": "ping", "arguments": {}}</tool_call>', PING),
        ('{"name": "get_order", "parameters": {"order": "</tool_call>"}}',
         Action(name='get_order', arguments={'order': '</tool_call>'})),
    ],
)  # fmt: skip
def test_parse_reads_llama_calls(text, expected):
    assert parse(text, SCHEMAS, 'llama3') == expected


@pytest.mark.parametrize(
    ('format', 'text', 'error'),
    [
        ('llama3', '{"name": "ping", "parameters": {}', 'not valid JSON'),
        ('llama3', '{"name": "ping", "parameters": {}}}', 'not valid JSON'),
        ('llama3', '{"name": "ping", "parameters": {}} There!', 'not valid JSON'),
        ('llama3', '<|python_tag|>', 'not valid JSON'),
        ('llama3', '<|python_tag|>print("</tool_call>")', 'not valid JSON'),
        ('llama3', '{"a": ' * 100_000, 'not valid JSON'),
        ('llama3', '{"name": "ping", "parameters": {}}; {"name": "ping", "parameters": {}}', 'more than one call'),
        ('llama3', '{"name": "ping", "parameters": {}}<|python_tag|>{"name": "ping"}', 'more than one call'),
        ('llama3', '{"name": "get_order", "parameters": {"order": "\\ud800"}}', 'not valid JSON'),
        ('llama3', '{"name": "book", "parameters": {"seats": 1e999}}', 'not valid JSON'),
        ('llama3', '{"parameters": {}}', 'needs a "name"'),
        ('llama3', '{"name": "ping", "parameters": "{}"}', 'needs "arguments"'),
        ('llama3', '{"name": "pong", "parameters": {}}', 'no tool "pong"; did you mean "ping"?'),
        ('llama3', '{"name": "get_order", "parameters": {"order": 3}}', 'must be of type string'),
        ('llama3', '<think>and then {"name": "ping", "parameters": {}}', 'a thought must stand between'),
        ('mistral', '[TOOL_CALLS] [{"name": "ping", "arguments": {}}', 'not valid JSON'),
        ('mistral', '[TOOL_CALLS] [{"name": "ping", "arguments": {}}, {"name": "ping"}]', 'more than one call'),
        ('mistral', '[TOOL_CALLS] [{"name": "ping", "arguments": {"\\udc00": 1}}]', 'not valid JSON'),
        ('mistral', '[TOOL_CALLS] [{"name": "book", "arguments": {"seats": 1e999}}]', 'not valid JSON'),
        ('mistral', '[TOOL_CALLS] []', 'not valid JSON'),
        ('mistral', '[TOOL_CALLS] [3]', 'needs a "name"'),
    ],
)
def test_parse_says_what_is_wrong_in_each_layout(format, text, error):
    action = parse(text, SCHEMAS, format)
    assert error in action.error and action.name is None and action.arguments == {}
    assert parse(canonical(text, format), SCHEMAS).error == action.error


def test_parse_never_raises_however_deep_a_call_is_nested():
    for depth in range(1, sys.getrecursionlimit() + 10):  # at some of them it can be read, but not written
        text = '{"name": "ping", "parameters": {"x": ' + '[' * depth + ']' * depth + '}}'
        for format in ('llama3', 'mistral', 'hermes'):
            assert parse('[TOOL_CALLS]' * (format == 'mistral') + text, SCHEMAS, format).name is None


def test_parse_refuses_an_unknown_format():
    with pytest.raises(ValueError, match=r"format must be one of hermes, llama3, mistral, text, got 'json'"):
        parse('hello', SCHEMAS, 'json')


PIECES = st.sampled_from(
    [
        '{"name": "ping", "parameters": {}}',
        '<|python_tag|>',
        '[TOOL_CALLS]',
        '[{"name": "ping", "arguments": {}}]',
        '{',
        '; ',
        '<tool_call>',
        '</tool_call>',
        '<think>',
        '</think>',
        '{"name": "ping", "arguments": {}}',
        call('get_order', order='a'),
    ]
)


@given(st.lists(PIECES | st.text(), max_size=6).map(''.join), st.sampled_from(list(FORMATS)))
def test_parse_never_raises_for_any_text(text, format):
    action = parse(text, SCHEMAS, format)
    assert isinstance(action, Action) and (action.name is None or action.error is None)
    assert action.error is None or (action.error.isascii() and len(action.error) < 200)
    assert format == 'text' or parse(canonical(text, format), SCHEMAS) == action


@given(st.sampled_from(['ping', 'book', 'get_order', 'other']) | st.text(), JSON)
def test_parse_never_raises_for_any_json(name, arguments):
    body = json.dumps({'name': name, 'arguments': arguments})
    action = parse(f'<tool_call>{body}</tool_call>', SCHEMAS)
    assert (action.name is None) == (action.error is not None)


@given(st.text() | st.sampled_from(['</tool_call>', '<think>', '<tool_call>x', 'a</think>b']))
def test_parse_inverts_render(value):
    assert parse(render('get_order', {'order': value}), SCHEMAS).arguments == {'order': value}


SAID = st.sampled_from(['', 'which one? ', 'a { b', '<think>{"name": 1}</think>', '<think>hm</think>\n\nso: '])


@given(SAID, st.text(), st.dictionaries(st.text(), JSON, max_size=3), st.sampled_from(list(FORMATS)))
def test_canonical_inverts_native(said, name, arguments, format):
    text = said + render(name, arguments)
    assert canonical(native(text, format), format) == text
