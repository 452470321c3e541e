"""The embedded shop's products and their search index; the same ones in every process."""

import dataclasses
import functools
import itertools
import random
import re

import bm25s
import numpy as np

KINDS = {  # category -> what is sold there; the name of a kind is the noun of its titles
    'fashion': ('shirt', 'jacket', 'backpack'),
    'home': ('lamp', 'chair', 'rug'),
    'electronics': ('headphones', 'speaker', 'charger'),
    'beauty': ('shampoo', 'lotion', 'soap'),
}
ATTRIBUTES = {
    'fashion': ('cotton', 'waterproof', 'slim fit', 'machine washable', 'breathable', 'lightweight'),
    'home': ('wooden', 'foldable', 'handmade', 'non slip', 'stain resistant', 'space saving'),
    'electronics': ('wireless', 'fast charging', 'noise cancelling', 'portable', 'long lasting', 'shockproof'),
    'beauty': ('organic', 'fragrance free', 'cruelty free', 'sulfate free', 'travel size', 'gentle'),
}
_COLORS = ('black', 'white', 'red', 'blue', 'green', 'grey')
_SIZES = ('small', 'medium', 'large', 'x-large')
OPTIONS = {  # category -> option -> its values, of which a product has some
    'fashion': {'color': _COLORS, 'size': _SIZES},
    'home': {'color': _COLORS, 'size': _SIZES},
    'electronics': {'color': _COLORS, 'pack': ('1 pack', '2 pack', '4 pack')},
    'beauty': {'scent': ('rose', 'mint', 'lemon', 'vanilla'), 'size': _SIZES},
}
BRANDS = ('Norvik', 'Bellamo', 'Tansen', 'Quorra', 'Zelmo', 'Farrow')
SYLLABLES = tuple(''.join(pair) for pair in itertools.product('BDFGKLMNRT', 'AO'))  # two of them follow B0 in an id
PRICES = tuple(10 * tens - 0.01 for tens in range(1, 11))  # dollars
PER_KIND = 25
RESULTS = 50  # most products that a search finds


@dataclasses.dataclass(frozen=True)
class Product:
    """One product; ``asin`` is its id."""

    asin: str
    kind: str
    category: str
    brand: str
    attributes: tuple[str, ...]  # the first stands in the title, all stand among the features
    options: dict[str, tuple[str, ...]]  # option -> values on offer
    price: float

    @property
    def title(self) -> str:
        """The title, in which the kind is the only noun."""
        return f'{self.brand} {self.attributes[0]} {self.kind}'

    @property
    def description(self) -> str:
        """One sentence."""
        return f'A {self.kind} by {self.brand}, from {self.category}.'

    @property
    def features(self) -> str:
        """All attributes."""
        return ', '.join(self.attributes)

    @property
    def document(self) -> str:
        """What is indexed: title, description, features and options, as in WebShop."""
        values = itertools.chain.from_iterable(self.options.values())
        return ' '.join([self.title, self.description, self.features, *values])


@functools.cache
def products() -> dict[str, Product]:
    """Returns all products by id."""
    rng = random.Random('catalog')
    kinds = [(category, kind) for category in KINDS for kind in KINDS[category] for _ in range(PER_KIND)]
    ids = rng.sample([f'B0{a}{b}' for a, b in itertools.product(SYLLABLES, SYLLABLES)], len(kinds))
    made = []
    for asin, (category, kind) in zip(ids, kinds, strict=True):
        attributes = tuple(rng.sample(ATTRIBUTES[category], rng.randint(2, 3)))
        options = {
            name: tuple(sorted(rng.sample(values, rng.randint(2, 3)), key=values.index))
            for name, values in OPTIONS[category].items()
        }
        made.append(Product(asin, kind, category, rng.choice(BRANDS), attributes, options, rng.choice(PRICES)))
    return {product.asin: product for product in made}


def search(keywords: str) -> list[Product]:
    """Returns the products that share a word with ``keywords``, the best by BM25 first, RESULTS at most."""
    words = _words(keywords)
    if not words:
        return []
    scores = _index().get_scores(words)
    best = np.argsort(-scores, kind='stable')[:RESULTS]
    everything = list(products().values())
    return [everything[i] for i in best if scores[i] > 0]


@functools.cache
def _index() -> bm25s.BM25:
    index = bm25s.BM25()
    index.index([_words(product.document) for product in products().values()], show_progress=False)
    return index


def _words(text: str) -> list[str]:
    return re.findall(r'[\w-]+', text.lower())
