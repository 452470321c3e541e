"""What a customer wants, and the published reward for what was bought.

Reward, WebShop (arXiv 2207.01206), section 3 and appendix, where U is wanted and Y bought::

    r = r_type * (|U_att & Y_att| + |U_opt & Y_opt| + [y_price <= u_price]) / (|U_att| + |U_opt| + 1)

The released code finds nouns by a tagger and attributes by fuzzy matching; here both are known, and matching is exact.
"""

import dataclasses
import functools
import random
from collections.abc import Mapping

from infopo_jax.envs.webshop.catalog import Product, products

LEVELS = {1: (1, 1), 2: (2, 2)}  # level -> attributes and options wanted
GOALS_PER_PRODUCT = 4
TEST_SHARE = 5  # one product in so many is wanted in held-out goals only
FEATURE, PRICE = 'feature', 'price'  # what one may ask for, beside the names of options


@dataclasses.dataclass(frozen=True)
class Goal:
    """A wish, made so that ``product`` fulfils it."""

    product: Product
    attributes: tuple[str, ...]
    options: dict[str, str]
    price_upper: float  # dollars

    @property
    def task(self) -> str:
        """The task id: product, attributes, options and price limit."""
        return ' | '.join([self.product.asin, *self.attributes, *self.options.values(), f'{self.price_upper:.2f}'])

    def facts(self) -> dict[str, str]:
        """Returns what the customer can say about his wish, in the words of the instruction."""
        facts = {FEATURE: ' and '.join(self.attributes)}
        facts |= {name: f'{name}: {value}' for name, value in self.options.items()}
        return facts | {PRICE: f'price lower than {self.price_upper:.2f} dollars'}

    def instruction(self, hidden: tuple[str, ...] = ()) -> str:
        """Returns the instruction in WebShop's wording, without the facts that are ``hidden``."""
        facts = {name: fact for name, fact in self.facts().items() if name not in hidden}
        wish = ' '.join(filter(None, ['i need a', facts.pop(FEATURE, ''), self.product.kind]))
        options = ', and '.join(fact for name, fact in facts.items() if name != PRICE)
        parts = [wish, f'with {options}' if options else '', f'and {facts[PRICE]}' if PRICE in facts else '']
        return ', '.join(filter(None, parts))


def reward(goal: Goal, bought: Product, options: Mapping[str, str]) -> float:
    """Returns the reward in [0, 1] for a product bought with chosen options; see the module's formula."""
    attributes = len(set(goal.attributes) & set(bought.attributes))
    chosen = len(goal.options.items() & options.items())
    in_budget = bought.price <= goal.price_upper
    share = (attributes + chosen + in_budget) / (len(goal.attributes) + len(goal.options) + 1)
    wanted = goal.product
    text_match = float(bought.kind == wanted.kind)  # the share of the wanted title's nouns; a kind is its only noun
    same = bought.kind == wanted.kind or bought.category == wanted.category
    return type_reward(text_match, same_type=same) * share


def type_reward(text_match: float, *, same_type: bool) -> float:
    """Returns r_type.

    Args:
        text_match: share of the nouns of the wanted title that stand in the bought one.
        same_type: the two are of one category or were made for one query.
    """
    if text_match == 0:
        return 0.0
    if text_match < 0.1:
        return 0.1
    return 1.0 if same_type or text_match > 0.2 else 0.5


@functools.cache
def goals(level: int) -> dict[str, dict[str, Goal]]:
    """Returns the goals of a level by split and task id; no product is wanted in both splits."""
    num_attributes, num_options = LEVELS[level]
    rng, splits = random.Random(f'goals {level}'), {'train': {}, 'test': {}}
    for number, product in enumerate(products().values()):
        split = splits['train' if number % TEST_SHARE else 'test']
        for _ in range(GOALS_PER_PRODUCT):
            attributes = tuple(rng.sample(product.attributes, num_attributes))
            names = rng.sample(list(product.options), num_options)
            options = {name: rng.choice(values) for name, values in product.options.items() if name in names}
            # As in WebShop: the larger of two of the four multiples of ten above the price.
            tens = int(product.price // 10) + 1
            goal = Goal(product, attributes, options, 10.0 * max(rng.sample(range(tens, tens + 4), 2)))
            split[goal.task] = goal
    return splits
