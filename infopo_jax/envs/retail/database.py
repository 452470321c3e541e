"""The shop's data: customers, orders, items, payment methods, all named by ids that are single tokens."""

import dataclasses
import random

CUSTOMERS = tuple(f'cust_{i}' for i in range(10))
ORDERS = tuple(f'order_{i}' for i in range(20))
ITEMS = tuple(f'item_{i}' for i in range(20))
PAYMENTS = tuple(f'pay_{i}' for i in range(20))
PRODUCTS = ('lamp', 'chair', 'desk', 'shelf', 'rug', 'clock', 'vase', 'sofa', 'mirror', 'stool')
PRICES = tuple(f'${price}' for price in range(15, 75, 5))
REASONS = ('delay', 'price', 'colour', 'size', 'mistake', 'damage', 'quality', 'wait')

# Slots that the customer of a task holds, whatever the ids: the rest of the shop is scenery to be told apart from it.
PENDING, DELIVERED = 0, 1  # orders
RETURNED, REPLACEMENT = 2, 4  # items: one of the delivered order, one of another order
SPARE_PAYMENT = 0  # not the one that the pending order is paid by


@dataclasses.dataclass
class Database:
    """The shop at one moment.

    Only orders change, and a change replaces the order's dict (never writes into it), so a copy shares the rest.
    """

    customers: dict[str, dict]  # id -> {'orders': (id, id), 'payments': (id, id)}
    orders: dict[str, dict]  # id -> {'customer', 'status', 'items': (id, ...), 'payment', and what was done to it}
    items: dict[str, dict]  # id -> {'product', 'price'}
    payments: dict[str, str]  # id -> customer

    def copy(self) -> 'Database':
        """Returns a database whose changes do not show in this one."""
        return dataclasses.replace(self, orders=dict(self.orders))


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which id stands in which slot of the shop; see ``build``."""

    customers: list[str]
    orders: list[str]
    items: list[str]
    payments: list[str]


def shuffle(rng: random.Random, names: tuple[str, ...], fixed: dict[int, str]) -> list[str]:
    """Shuffles names, but for those that have a slot: ``fixed`` maps slot to name."""
    slots = rng.sample(names, len(names))
    for slot, name in fixed.items():
        at = slots.index(name)
        slots[at], slots[slot] = slots[slot], name
    return slots


def build(rng: random.Random, layout: Layout) -> Database:
    """Builds a shop: each customer has a pending order, a delivered order and two payment methods.

    Customer slot c owns orders 2c (pending) and 2c + 1 (delivered) and payments 2c and 2c + 1. Order k holds the items
    2k and 2k + 1 (modulo their number), of different products, in either sequence. A pending order is paid by 2c + 1.
    """
    products = rng.sample(PRODUCTS, len(PRODUCTS))
    prices = rng.choices(PRICES, k=len(ITEMS))
    items = {
        item: {'product': products[slot % len(products)], 'price': prices[slot]}
        for slot, item in enumerate(layout.items)
    }
    customers, orders, payments = {}, {}, {}
    for c, customer in enumerate(layout.customers):
        pair = slice(2 * c, 2 * c + 2)
        customers[customer] = {'orders': tuple(layout.orders[pair]), 'payments': tuple(layout.payments[pair])}
        payments.update(dict.fromkeys(layout.payments[pair], customer))
    for k, order in enumerate(layout.orders):
        first = 2 * k % len(ITEMS)
        pair = layout.items[first : first + 2]
        pending = k % 2 == 0
        orders[order] = {
            'customer': layout.customers[k // 2],
            'status': 'pending' if pending else 'delivered',
            'items': tuple(pair if rng.random() < 0.5 else reversed(pair)),
            'payment': layout.payments[k + 1 if pending else k - int(rng.random() < 0.5)],
        }
    return Database(customers, orders, items, payments)
