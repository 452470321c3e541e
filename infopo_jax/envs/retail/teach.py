"""What a model that knows no English is taught before training: words, syntax and copying, never what to do when."""

import itertools
import random
import re
from collections.abc import Collection
from typing import TYPE_CHECKING

from infopo_jax.envs.retail import database as data
from infopo_jax.envs.retail.expert import ASKS, TELL
from infopo_jax.envs.retail.tasks import goals
from infopo_jax.envs.retail.tools import ARGUMENTS, STATUS
from infopo_jax.envs.text import Message
from infopo_jax.envs.tools import render

if TYPE_CHECKING:
    from infopo_jax.envs.retail.env import Retail

POOLS = {
    'customer': data.CUSTOMERS,
    'order': data.ORDERS,
    'item': data.ITEMS,
    'new_item': data.ITEMS,
    'payment': data.PAYMENTS,
    'reason': data.REASONS,
    'refund': data.PRICES,
}
KINDS = {  # level -> what an agent may do there: a question, 'tell', or a tool
    1: ('order', 'reason', 'item', 'payment', *ARGUMENTS),
    2: ('order', 'reason', 'item', 'payment', 'new_item', *ARGUMENTS),
    3: ('intent', 'order', 'reason', 'item', 'payment', 'tell', *ARGUMENTS),
}
_PREFIX = {'cust': 'customer', 'order': 'order', 'item': 'item', 'pay': 'payment', '$': 'refund'}
_VALUE = re.compile(r'(cust|order|item|pay)_\d+|(\$)\d+|\b(?:' + '|'.join(data.REASONS) + r')\b')
_HISTORY_ASK_SHARE = 0.9  # of a history's actions: there is to be something to copy
_TARGET_ASK_SHARE = 0.2
_HIDE = 0.15  # share of answers that show the placeholder
_REPEATS = 40  # of the texts that stand in every prompt, in the corpus


def special_tokens() -> list[str]:
    """Returns ids, values, names of tools and the fixed parts of calls.

    A call is then a head, its values and a tail, such as ``<tool_call>{"name": "get_order", "arguments": {"order": "``,
    ``order_3``, ``"}}</tool_call>``: what a large tokenizer's merges would do costs a small one a dozen entries.
    """
    ids = itertools.chain(data.CUSTOMERS, data.ORDERS, data.ITEMS, data.PAYMENTS)
    parts: dict[str, None] = {}
    for tool, arguments in ARGUMENTS.items():
        parts |= dict.fromkeys(render(tool, dict.fromkeys(arguments, '|')).split('|'))
    words = itertools.chain(data.PRODUCTS, data.PRICES, data.REASONS, sorted(set(STATUS.values())), ARGUMENTS)
    return [*ids, *words, *parts]


def values(message: Message, previous: str = '') -> list[tuple[str, str]]:
    """Returns the (argument, value) pairs that a message of the user or of a tool makes known.

    Args:
        message: the message.
        previous: the action that it answers; it tells a new item from an item.
    """
    found = []
    for match in _VALUE.finditer(message['content']):
        argument = _PREFIX.get(match[1] or match[2], 'reason')
        if argument == 'item' and previous == ASKS['new_item']:
            argument = 'new_item'
        found.append((argument, match[0]))
    return found


def known_values(messages: list[Message]) -> dict[str, list[str]]:
    """Returns the values that a talk makes known, by argument."""
    found: dict[str, list[str]] = {}
    action = ''
    for message in messages:
        if message['role'] == 'assistant':
            action = message['content']
        elif message['role'] != 'system':
            _note(found, values(message, action))
    return found


def _note(known: dict[str, list[str]], pairs: list[tuple[str, str]]) -> None:
    for argument, value in pairs:
        known.setdefault(argument, []).append(value)


def random_action(rng: random.Random, kind: str, known: dict[str, list[str]]) -> str:
    """Writes an action of a kind; its arguments are known values where there are any, else random ids."""
    if kind in ASKS:
        return ASKS[kind]
    arguments = {key: rng.choice(known.get(key) or POOLS[key]) for key in ARGUMENTS.get(kind, ('refund',))}
    return TELL.format(arguments['refund']) if kind == 'tell' else render(kind, arguments)


def _draw_kind(rng: random.Random, level: int, ask_share: float, asked: Collection[str] = ()) -> str:
    """Draws a question with probability ``ask_share``, else something else to do, each uniformly.

    Questions that were ``asked`` are not drawn while there are others.
    """
    asks = [kind for kind in KINDS[level] if kind in ASKS]
    if rng.random() < ask_share:
        return rng.choice([kind for kind in asks if kind not in asked] or asks)
    return rng.choice([kind for kind in KINDS[level] if kind not in ASKS])


def _draw_target(rng: random.Random, level: int, known: dict[str, list[str]]) -> str:
    """Draws what a target does: a call of a tool all of whose arguments are known, else a question.

    A call with a made-up argument would teach nothing but noise, and noise drowns the little that there is to copy.
    """
    calls = [kind for kind in KINDS[level] if kind not in ASKS]
    copying = [kind for kind in calls if all(key in known for key in ARGUMENTS.get(kind, ('refund',)))]
    if copying and rng.random() >= _TARGET_ASK_SHARE:
        return rng.choice(copying)
    return _draw_kind(rng, level, 1.0)


def example(env: 'Retail', rng: random.Random) -> tuple[list[Message], str]:
    """Draws one transition: random talk with the real environment, then one random action.

    The answer that would complete what the task needs shows the placeholder, so no example is a solved episode. To hide
    that answer, rather than to leave out the action that would use it, tilts no choice between actions. Users answer
    questions that their request does not need, so every tool is still seen with all its values known.

    Args:
        env: an environment of the example's own.
        rng: the source of all randomness.

    Returns:
        history: messages; some more answers show the placeholder, to make it familiar.
        target: an action whose arguments are copied from what the history shows, or random where it shows none.
    """
    while True:
        history, known = _history(env, rng)
        if not history:
            continue
        target = random_action(rng, _draw_target(rng, env.level, known), known)
        if not env.step(target)[4].get('success'):  # else a lucky guess, once in thousands
            return history, target


def _history(env: 'Retail', rng: random.Random) -> tuple[list[Message], dict[str, list[str]]]:
    """Plays random actions; returns the messages and the known values by argument, or nothing if the talk has ended."""
    task = rng.choice(goals(env.level)['train'])
    messages, _ = env.reset(seed=rng.getrandbits(32), options={'task': task})
    missing = {word for word in task.split() if _VALUE.fullmatch(word)}
    known: dict[str, list[str]] = {}
    done: set[str] = set()
    for _ in range(rng.randint(0, env.max_turns - 1)):
        kind = _draw_kind(rng, env.level, _HISTORY_ASK_SHARE, done)
        done.add(kind)
        action = random_action(rng, kind, known)
        answer, _, terminated, _, _ = env.step(action)
        if terminated:
            return [], {}
        pairs = [pair for message in answer for pair in values(message, action)]
        learnt = missing.intersection(value for _, value in pairs)
        if learnt == missing or rng.random() < _HIDE:
            answer = [message | {'content': env.placeholder} for message in answer]
        else:
            missing -= learnt
            _note(known, pairs)
        messages += [{'role': 'assistant', 'content': action}, *answer]
    return messages, known


def corpus(env: 'Retail', *, num_examples: int = 600) -> list[str]:
    """Returns what an agent meets or writes on training tasks: random talks, error messages, policy, placeholder."""
    rng = random.Random(0)
    texts: list[str] = []
    for _ in range(num_examples):
        history, target = example(env, rng)
        texts += [message['content'] for message in history[1:]] + [target]
    for wrong in ('<tool_call>', '<tool_call>{}</tool_call>', *(render(name, {}) for name in ARGUMENTS)):
        env.reset()
        texts += [message['content'] for message in env.step(wrong)[0]]
    return [*texts, *[history[0]['content'], env.placeholder] * _REPEATS]
