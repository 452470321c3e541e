"""The retail world's database, and the tools that change it."""

import random

import pytest

from infopo_jax.envs.retail import database as data
from infopo_jax.envs.retail.tools import SCHEMAS, execute


def shop():
    """A shop whose ids stand in their own sequence: customer c owns orders 2c (pending) and 2c + 1 (delivered)."""
    layout = data.Layout(list(data.CUSTOMERS), list(data.ORDERS), list(data.ITEMS), list(data.PAYMENTS))
    return data.build(random.Random(0), layout)


def test_build_gives_each_customer_a_pending_and_a_delivered_order():
    db = shop()
    assert db.customers['cust_1'] == {'orders': ('order_2', 'order_3'), 'payments': ('pay_2', 'pay_3')}
    assert db.orders['order_2'] | {'items': sorted(db.orders['order_2']['items'])} == {
        'customer': 'cust_1',
        'status': 'pending',
        'items': ['item_4', 'item_5'],
        'payment': 'pay_3',
    }
    assert db.orders['order_3']['status'] == 'delivered' and db.orders['order_3']['payment'] in ('pay_2', 'pay_3')
    for record in db.orders.values():
        assert len({db.items[item]['product'] for item in record['items']}) == 2
        assert db.payments[record['payment']] == record['customer']


def test_shuffle_puts_fixed_names_in_their_slots():
    for seed in range(50):
        slots = data.shuffle(random.Random(seed), data.ORDERS, {0: 'order_5', 1: 'order_0', 4: 'order_1'})
        assert (slots[0], slots[1], slots[4]) == ('order_5', 'order_0', 'order_1')
        assert sorted(slots) == sorted(data.ORDERS)


@pytest.mark.parametrize(
    ('name', 'values', 'changes'),
    [
        ('cancel_order', 'order_2 delay', {'status': 'cancelled', 'reason': 'delay'}),
        ('change_payment', 'order_2 pay_2', {'payment': 'pay_2'}),
        ('return_item', 'order_3 item_6', {'items': ('item_7',), 'returned': 'item_6'}),
    ],
)
def test_execute_changes_only_the_order(name, values, changes):
    db, before = shop(), shop()
    keys = next(s['function']['parameters']['required'] for s in SCHEMAS if s['function']['name'] == name)
    arguments = dict(zip(keys, values.split(), strict=True))
    snapshot = db.copy()
    result = execute(db, name, arguments)
    assert result.changed and not result.is_error
    expected = before.orders | {arguments['order']: before.orders[arguments['order']] | changes}
    assert db.orders == expected
    assert snapshot == before  # the copy does not see the change


def test_execute_exchanges_in_place():
    db = shop()
    before = db.orders['order_3']['items']
    assert execute(db, 'exchange_item', {'order': 'order_3', 'item': 'item_6', 'new_item': 'item_0'}).changed
    assert db.orders['order_3']['items'] == tuple('item_0' if item == 'item_6' else item for item in before)


@pytest.mark.parametrize(
    ('name', 'arguments', 'error'),
    [
        ('get_customer', {'customer': 'cust_99'}, 'no such customer'),
        ('get_order', {'order': 'x'}, 'no such order'),
        ('cancel_order', {'order': 'order_3', 'reason': 'delay'}, 'the order is not pending'),
        ('change_payment', {'order': 'order_2', 'payment': 'pay_4'}, 'not a payment of this customer'),
        ('change_payment', {'order': 'order_2', 'payment': 'pay_3'}, 'already paid that way'),
        ('return_item', {'order': 'order_2', 'item': 'item_4'}, 'the order is not delivered'),
        ('return_item', {'order': 'order_3', 'item': 'item_0'}, 'no such item in the order'),
        ('exchange_item', {'order': 'order_3', 'item': 'item_6', 'new_item': 'item_7'}, 'not a new item'),
    ],
)
def test_execute_refuses_without_a_change(name, arguments, error):
    db = shop()
    result = execute(db, name, arguments)
    assert result.is_error and error in result.text
    assert db == shop()
