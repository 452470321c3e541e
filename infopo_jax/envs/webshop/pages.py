"""The shop's pages, and a visit to them: what is shown, what can be clicked, where a click leads.

Pages are written as the real shop's text mode writes them, pieces joined by `` [SEP] ``; the instruction, which it
repeats on every page, stands in the prompt only. There are no reviews.
"""

import re

from infopo_jax.envs.webshop.catalog import Product, products, search

SEP = ' [SEP] '
SEARCH, BACK, NEXT, PREV, BUY = 'Search', 'Back to Search', 'Next >', '< Prev', 'Buy Now'
DESCRIPTION, FEATURES = 'Description', 'Features'
CLICKED = 'You have clicked {}.'

_MOVE, _MOVE_OR_ASK = (
    re.compile(rf'\b({verbs})\[([^\n]*)\]', re.IGNORECASE) for verbs in ('search|click', 'search|click|ask')
)


def parse(text: str, *, can_ask: bool = False) -> tuple[str, str] | None:
    """Returns verb and argument, in small letters, of the action in a text, None if there is none.

    'search' and 'click' are actions, and 'ask' where somebody ``can_ask`` a customer.

    Thoughts (all before ``</think>``) are left out; of several lines with an action the first counts.
    """
    match = (_MOVE_OR_ASK if can_ask else _MOVE).search(text.rpartition('</think>')[2])
    return (match[1].lower(), match[2].strip().lower()) if match else None


class Visit:
    """One customer's way through the shop.

    Args:
        page_size: products on a page of results.
    """

    def __init__(self, page_size: int):
        self.product: Product | None = None  # whose page is open
        self.options: dict[str, str] = {}  # chosen so far
        self.bought = False
        self._page_size = page_size
        self._results: list[Product] = []
        self._number = 0  # of the page of results, from 0
        self._open = SEARCH
        self._clicked: str | None = None

    @property
    def shown(self) -> list[Product]:
        """The products on the open page of results."""
        start = self._number * self._page_size
        return self._results[start : start + self._page_size] if self._open == 'results' else []

    @property
    def clickables(self) -> list[str]:
        """What can be clicked, as it is written on the page."""
        if self._open == SEARCH:
            return []
        if self._open == 'results':
            later = (self._number + 1) * self._page_size < len(self._results)
            turns = [PREV] * (self._number > 0) + [NEXT] * later
            return [BACK, *turns, *(product.asin for product in self.shown)]
        if self._open == 'item':
            values = [value for values in self.product.options.values() for value in values]
            return [BACK, PREV, *values, DESCRIPTION, FEATURES, BUY]
        return [BACK, PREV]

    def search(self, keywords: str) -> None:
        """Searches, from any page; choices made before are forgotten."""
        self._results, self._number, self._open = search(keywords), 0, 'results'
        self.product, self.options, self._clicked = None, {}, None

    def click(self, name: str) -> bool:
        """Clicks what is called ``name`` in any case; returns whether there is such a thing."""
        found = next((thing for thing in self.clickables if thing.lower() == name.lower()), None)
        if found is None:
            return False
        self._clicked = None
        if found == BACK:
            self._open, self.product, self.options = SEARCH, None, {}
        elif found == PREV and self._open == 'item':
            self._open, self.product, self.options = 'results', None, {}
        elif found == PREV and self._open != 'results':
            self._open = 'item'
        elif found in (PREV, NEXT):
            self._number += 1 if found == NEXT else -1
        elif found in (DESCRIPTION, FEATURES):
            self._open = found
        elif found == BUY:
            self.bought = True
        elif self._open == 'results':
            self._open, self.product = 'item', products()[found]
        else:
            option = next(name for name, values in self.product.options.items() if found in values)
            self.options[option] = self._clicked = found
        return True

    def text(self) -> str:
        """Returns the open page."""
        if self._open == SEARCH:
            return SEARCH
        if self._open == 'results':
            pages = f'Page {self._number + 1} (Total results: {len(self._results)})'
            turns = [thing for thing in self.clickables if thing in (PREV, NEXT)]
            rows = [piece for product in self.shown for piece in (product.asin, product.title, price(product))]
            return SEP.join([BACK, pages, *turns, *rows])
        if self._open == 'item':
            options = [piece for name, values in self.product.options.items() for piece in (name, *values)]
            clicked = [CLICKED.format(self._clicked)] if self._clicked else []
            about = [self.product.title, f'Price: {price(self.product)}']
            return SEP.join([*clicked, BACK, PREV, *options, *about, DESCRIPTION, FEATURES, BUY])
        return SEP.join([BACK, PREV, self.product.description if self._open == DESCRIPTION else self.product.features])


def price(product: Product) -> str:
    """Returns a price as the shop writes it."""
    return f'${product.price:.2f}'
