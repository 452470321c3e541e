"""The six tools of the shop: their JSON schemas and what they do to the database."""

import dataclasses
from typing import Any

from infopo_jax.envs.retail.database import REASONS, Database

_ARGUMENTS = {
    'customer': 'Customer id, such as "cust_3".',
    'order': 'Order id, such as "order_7".',
    'item': 'Id of an item in the order, such as "item_2".',
    'new_item': 'Id of the item that the customer wants instead.',
    'payment': 'Id of one of the customer\'s payment methods, such as "pay_5".',
    'reason': 'Why the customer cancels.',
}


@dataclasses.dataclass(frozen=True)
class Result:
    """What a tool answers."""

    text: str
    is_error: bool = False
    changed: bool = False  # the database is another one now


def get_customer(db: Database, customer: str) -> Result:
    """Shows a customer's orders, with their status, and payment methods."""
    if customer not in db.customers:
        return _refuse('no such customer')
    record = db.customers[customer]
    orders = [f'{order} {db.orders[order]["status"]}' for order in record['orders']]
    return Result(', '.join([*orders, *record['payments']]))


def get_order(db: Database, order: str) -> Result:
    """Shows an order's status, items and payment method."""
    if order not in db.orders:
        return _refuse('no such order')
    record = db.orders[order]
    items = [f'{db.items[item]["product"]} {item}' for item in record['items']]
    return Result(', '.join([record['status'], *items, record['payment']]))


def cancel_order(db: Database, order: str, reason: str) -> Result:
    """Cancels a pending order."""
    error = _check_order(db, order, 'pending')
    if error:
        return error
    return _write(db, order, f'Cancelled {order}.', status='cancelled', reason=reason)


def change_payment(db: Database, order: str, payment: str) -> Result:
    """Moves a pending order to another payment method of its customer."""
    error = _check_order(db, order, 'pending')
    if error:
        return error
    record = db.orders[order]
    if db.payments.get(payment) != record['customer']:
        return _refuse('not a payment of this customer')
    if payment == record['payment']:
        return _refuse('already paid that way')
    return _write(db, order, f'Changed to {payment}.', payment=payment)


def return_item(db: Database, order: str, item: str) -> Result:
    """Takes back an item of a delivered order and refunds its price."""
    error = _check_order(db, order, 'delivered', item)
    if error:
        return error
    left = tuple(other for other in db.orders[order]['items'] if other != item)
    return _write(db, order, f'Returned {item}, refund {db.items[item]["price"]}.', items=left, returned=item)


def exchange_item(db: Database, order: str, item: str, new_item: str) -> Result:
    """Replaces an item of a delivered order by another item."""
    error = _check_order(db, order, 'delivered', item)
    if error:
        return error
    items = db.orders[order]['items']
    if new_item not in db.items or new_item in items:
        return _refuse('not a new item')
    after = tuple(new_item if other == item else other for other in items)
    return _write(db, order, f'Exchanged {item} for {new_item}.', items=after, exchanged=item)


_TOOLS = {
    tool.__name__: (tool, arguments)
    for tool, arguments in (
        (get_customer, ('customer',)),
        (get_order, ('order',)),
        (cancel_order, ('order', 'reason')),
        (change_payment, ('order', 'payment')),
        (return_item, ('order', 'item')),
        (exchange_item, ('order', 'item', 'new_item')),
    )
}
ARGUMENTS: dict[str, tuple[str, ...]] = {name: arguments for name, (_, arguments) in _TOOLS.items()}
STATUS = {  # which orders a tool that writes applies to
    'cancel_order': 'pending',
    'change_payment': 'pending',
    'return_item': 'delivered',
    'exchange_item': 'delivered',
}


def execute(db: Database, name: str, arguments: dict[str, Any]) -> Result:
    """Runs a call that ``envs.tools.parse`` has checked against ``SCHEMAS``."""
    return _TOOLS[name][0](db, **arguments)


def _schema(name: str) -> dict:
    tool, arguments = _TOOLS[name]
    properties = {key: {'type': 'string', 'description': _ARGUMENTS[key]} for key in arguments}
    if 'reason' in properties:
        properties['reason']['enum'] = list(REASONS)
    parameters = {'type': 'object', 'properties': properties, 'required': list(arguments)}
    return {'type': 'function', 'function': {'name': name, 'description': tool.__doc__, 'parameters': parameters}}


SCHEMAS = [_schema(name) for name in _TOOLS]


def _refuse(why: str) -> Result:
    return Result(f'Error: {why}.', is_error=True)


def _check_order(db: Database, order: str, status: str, item: str | None = None) -> Result | None:
    """Returns the refusal of a change to an order, None if the change may be made."""
    if order not in db.orders:
        return _refuse('no such order')
    if db.orders[order]['status'] != status:
        return _refuse(f'the order is not {status}')
    if item is not None and item not in db.orders[order]['items']:
        return _refuse('no such item in the order')
    return None


def _write(db: Database, order: str, text: str, **changes: Any) -> Result:
    db.orders[order] = db.orders[order] | changes
    return Result(text, changed=True)
