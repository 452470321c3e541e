"""Conversations for tests of the chat markup, and how a template itself renders them."""

import copy

from chat_templates import tokenizer_of

TOOLS = [
    {
        'type': 'function',
        'function': {
            'name': 'get_order',
            'description': 'Shows an order.',
            'parameters': {'type': 'object', 'properties': {'order': {'type': 'string'}}, 'required': ['order']},
        },
    }
]
SYSTEM, HELLO = {'role': 'system', 'content': 'You are a shop.'}, {'role': 'user', 'content': 'hello, order_3'}
DATE = {'date_string': '26 Jul 2024'}


def user(content):
    return {'role': 'user', 'content': content}


def tool(content):
    return {'role': 'tool', 'content': content, 'tool_call_id': '000000000'}


CALL = '<tool_call>\n{"name": "get_order", "arguments": {"order": "order_3"}}\n</tool_call>'
TALKS = {  # (what the agent says, what answers it), ...
    'user': [('which order is it?', [user('order_3')]), ('thanks', [user('hello')]), ('on its way', [user('ok')])],
    'tools': [(CALL, [tool('on its way')]), ('thanks', [user('and order_4')]), (CALL, [tool('no order')])],
    'two answers': [(CALL, [tool('order_3 is'), tool('order_4 is not')]), ('thanks', [user('please')])],
    'tool and user': [('hello', [user('hm')]), (CALL, [tool('on its way'), user('so what?')]), ('ok', [user('ok')])],
    'unicode': [('你好 é', [user('Grüße 🙂 ящик')]), ('🙂', [tool('é 你好')]), ('ok', [user('ñ')])],
}


def own(chat, messages, tools=None, **switches):
    """The ids of the template's own rendering of a whole conversation, as transformers makes them."""
    return chat.tokenizer.apply_chat_template(
        messages, tools=tools, add_generation_prompt=True, tokenize=True, return_dict=False, **DATE, **switches
    )


def sampled(chat, text):
    return [*chat.encode_action(text), chat.stop_id]


def said(text):
    return {'role': 'assistant', 'content': text}


def variant(shape, **changes):
    tokenizer = copy.deepcopy(tokenizer_of(shape))
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return tokenizer


RENDERED = {  # shape: whether it shows system message and tools as they are given, and the talks that it accepts
    'tiny': (True, False, TALKS),
    'chatml': (True, True, TALKS),
    'qwen3': (True, True, TALKS),
    'llama3': (True, True, TALKS),
    'gemma': (False, False, ['user']),  # the rest is folded, see test_chat_rendering.py
    'mistral': (False, False, ['user']),  # system message and tools move to the user's last message: likewise
}
