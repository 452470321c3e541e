"""Tasks: what a customer wants, what he can say about it, and the shop in which he wants it.

A task id is the hidden goal itself: the calls that reach it, such as ``cancel_order order_17 delay``; two calls are
joined by `` & ``. From level and id follow the shop, the customer's knowledge and the gold database.
"""

import dataclasses
import functools
import itertools
import random

from infopo_jax.envs.retail import database as data
from infopo_jax.envs.retail.tools import ARGUMENTS, STATUS, execute

LEVELS = (1, 2, 3)
GOALS_PER_TOOL = 160
TEST_SHARE = 5  # one goal in so many is held out
CACHED_TASKS = 1024  # a task made once is copied afterwards, which costs a tenth
_JOIN = ' & '
_ITEM_SLOTS = {'item': data.RETURNED, 'new_item': data.REPLACEMENT}
_VALUES = {'order': data.ORDERS, 'item': data.ITEMS, 'new_item': data.ITEMS, 'payment': data.PAYMENTS}
_VALUES['reason'] = data.REASONS


@dataclasses.dataclass(frozen=True)
class Request:
    """One thing that a customer wants.

    ``answers`` maps each fact that an agent may ask for to (kind, value) of the answer: asked for the order, a customer
    may only be able to say ('customer', 'cust_3').
    """

    tool: str
    arguments: dict[str, str]  # of the gold call
    answers: dict[str, tuple[str, str]]
    product: str | None = None  # named when the request is made
    refund: str | None = None  # the amount that has to be told


@dataclasses.dataclass(frozen=True)
class Task:
    """A task, ready to be played."""

    db: data.Database
    gold: data.Database
    requests: tuple[Request, ...]
    states_intent: bool  # the customer opens with the first request


@functools.cache
def goals(level: int) -> dict[str, tuple[str, ...]]:
    """Returns the task ids of a level: {'train': ..., 'test': ...}; no goal is in both.

    Level 1: cancel, change payment, return; level 2: also exchange; level 3: a pair of level 1's goals of one split, an
    order to cancel or to pay otherwise, then a return.
    """
    tools = ['cancel_order', 'change_payment', 'return_item'] + ['exchange_item'] * (level == 2)
    splits = {}
    for split in ('train', 'test'):
        part = {tool: _singles(tool, split) for tool in tools}
        splits[split] = tuple(_pairs(part) if level == 3 else itertools.chain(*zip(*part.values(), strict=True)))
    return splits


def _singles(tool: str, split: str) -> list[str]:
    """Draws goals of one tool, the same at every level."""
    rng = random.Random(tool)
    choices = itertools.product(*(_VALUES[key] for key in ARGUMENTS[tool]))
    unlike = [values for values in choices if len(set(values)) == len(values)]  # no item for itself
    drawn = [' '.join((tool, *values)) for values in rng.sample(unlike, GOALS_PER_TOOL)]
    return [goal for i, goal in enumerate(drawn) if (i % TEST_SHARE == 0) == (split == 'test')]


def _pairs(part: dict[str, list[str]]) -> list[str]:
    """Joins each goal on a pending order with a return from another order, one after the other."""
    returns = itertools.cycle(part['return_item'])
    pairs = []
    for first in itertools.chain(*zip(part['cancel_order'], part['change_payment'], strict=True)):
        second = next(goal for goal in returns if goal.split()[1] != first.split()[1])
        pairs.append(first + _JOIN + second)
    return pairs


@functools.lru_cache(maxsize=CACHED_TASKS)
def make(level: int, task: str) -> Task:
    """Makes the shop and the requests of a task; play in a copy of its database.

    Raises:
        ValueError: the id is no goal of this level, or one that no shop allows.
    """
    calls = [_read(goal) for goal in str(task).split(_JOIN)]
    if None in calls or len(calls) != 1 + (level == 3):
        raise ValueError(f'unknown task {task!r} at level {level}; take one of env.tasks("train") or env.tasks("test")')
    rng = random.Random(f'{level} {task}')  # a string seeds alike in every process
    layout = _place(rng, calls)
    db = data.build(rng, layout)
    gold = db.copy()
    for tool, arguments in calls:
        if execute(gold, tool, arguments).is_error:
            raise ValueError(
                f'task {task!r} cannot be carried out; take one of env.tasks("train") or env.tasks("test")'
            )
    requests = tuple(_request(rng, level, i, call, db, layout) for i, call in enumerate(calls))
    return Task(db, gold, requests, states_intent=level < 3)


def _read(goal: str) -> tuple[str, dict[str, str]] | None:
    """Reads one call of a task id; None if it is none."""
    tool, *values = goal.split() or ['']
    keys = ARGUMENTS.get(tool, ())
    if tool not in STATUS or len(values) != len(keys):
        return None
    if any(value not in _VALUES[key] for key, value in zip(keys, values, strict=True)):
        return None
    return tool, dict(zip(keys, values, strict=True))


def _place(rng: random.Random, calls: list[tuple[str, dict[str, str]]]) -> data.Layout:
    """Puts the goal's ids where the customer's belongings are, and all others anywhere."""
    orders, items, payments = {}, {}, {}
    for tool, arguments in calls:
        slot = data.PENDING if STATUS[tool] == 'pending' else data.DELIVERED
        orders[slot] = arguments['order']
        items |= {_ITEM_SLOTS[key]: value for key, value in arguments.items() if key in _ITEM_SLOTS}
        if 'payment' in arguments:
            payments[data.SPARE_PAYMENT] = arguments['payment']
    return data.Layout(
        customers=data.shuffle(rng, data.CUSTOMERS, {}),
        orders=data.shuffle(rng, data.ORDERS, orders),
        items=data.shuffle(rng, data.ITEMS, items),
        payments=data.shuffle(rng, data.PAYMENTS, payments),
    )


def _request(
    rng: random.Random, level: int, index: int, call: tuple[str, dict], db: data.Database, layout: data.Layout
) -> Request:
    """Decides what the customer can say.

    He has an answer to every question, also to those that his request does not need: to know what to ask is the
    agent's part. From level 2 on one fact is only in the database: he knows his customer id instead of a pending
    order's id, and the product instead of the item. The second request of level 3 is as on level 1, but the refund has
    to be told.
    """
    tool, arguments = call
    record = db.orders[arguments['order']]
    facts = {
        'customer': record['customer'],
        'order': arguments['order'],
        'item': arguments.get('item', rng.choice(record['items'])),
        'new_item': layout.items[data.REPLACEMENT],
        'payment': layout.payments[data.SPARE_PAYMENT],
        'reason': arguments.get('reason') or rng.choice(data.REASONS),
    }
    answers = {fact: (fact, value) for fact, value in facts.items()}
    product = db.items[facts['item']]['product']
    if level == 2 or (level == 3 and index == 0):
        if record['status'] == 'pending':
            answers['order'] = answers['customer']
        else:
            answers['item'] = ('product', product)
    named = product if tool == 'exchange_item' and level > 1 else None
    refund = db.items[facts['item']]['price'] if level == 3 and tool == 'return_item' else None
    return Request(tool, arguments, answers, named, refund)
