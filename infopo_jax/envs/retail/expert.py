"""A scripted expert, which sees only the messages: every task can be solved from what an agent is shown."""

import itertools
import re

from infopo_jax.envs.retail.database import PRODUCTS, REASONS
from infopo_jax.envs.retail.tools import ARGUMENTS, STATUS
from infopo_jax.envs.text import Message
from infopo_jax.envs.tools import render

ASKS = {
    'intent': 'How can I help?',
    'order': 'Which order?',
    'reason': 'What is the reason?',
    'item': 'Which item?',
    'new_item': 'Which new item?',
    'payment': 'Which payment method?',
}
TELL = 'Your refund is {}.'

_INTENTS = {
    'cancel_order': re.compile(r'cancel', re.I),
    'change_payment': re.compile(r'\bpay .*\border|change how I pay', re.I),
    'return_item': re.compile(r'return an|take back', re.I),
    'exchange_item': re.compile(r'exchange', re.I),
}
_REFUND = re.compile(r'refund (\$\d+)')


def act(messages: list[Message]) -> str:
    """Returns the expert's next action: asks what is missing, looks up what the customer does not know, then acts."""
    tool, talk = _current(messages)
    if tool is None:
        return ASKS['intent']
    refunds = [
        match[1] for message in talk if message['role'] == 'tool' for match in _REFUND.finditer(message['content'])
    ]
    if refunds:
        return TELL.format(refunds[-1])
    arguments: dict[str, str] = {}
    for key in ARGUMENTS[tool]:
        value, instead = _find(key, tool, arguments.get('order'), talk)
        if value is None:
            return instead
        arguments[key] = value
    return render(tool, arguments)


def _current(messages: list[Message]) -> tuple[str | None, list[Message]]:
    """Returns the tool that the customer's last request calls for, and the talk since he made it."""
    for at in range(len(messages) - 1, -1, -1):
        if messages[at]['role'] == 'user':
            for tool, pattern in _INTENTS.items():
                if pattern.search(messages[at]['content']):
                    return tool, messages[at:]
    return None, []


def _find(key: str, tool: str, order: str | None, talk: list[Message]) -> tuple[str | None, str]:
    """Returns the value of an argument if the talk holds it, and else the action that finds it out."""
    said = _replies(talk, ASKS[key])
    if key == 'item' and not said:  # the request itself may name a product
        said = talk[0]['content']
    if key == 'order' and (customer := _first(r'cust_\d+', said)):
        call = render('get_customer', {'customer': customer})
        return _first(rf'order_\d+(?= {STATUS[tool]})', _replies(talk, call)), call
    if key == 'item' and not _first(r'item_\d+', said) and (product := _first('|'.join(PRODUCTS), said)):
        call = render('get_order', {'order': order})
        return _first(rf'(?<={product} )item_\d+', _replies(talk, call)), call
    return _first('|'.join(REASONS) if key == 'reason' else r'(?:order|item|pay)_\d+', said), ASKS[key]


def _replies(talk: list[Message], action: str) -> str:
    """Returns what was said in reply to an action, as often as it was taken."""
    pairs = itertools.pairwise(talk)
    taken = [reply for said, reply in pairs if said['role'] == 'assistant' and said['content'] == action]
    return ' '.join(reply['content'] for reply in taken)


def _first(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text)
    return match[0] if match else None
