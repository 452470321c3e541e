"""The embedded shop's products, search, goals and reward."""

import pytest

from infopo_jax.envs.webshop import catalog, goals as goals_lib
from infopo_jax.envs.webshop.goals import Goal, reward, type_reward


def test_products_are_many_and_the_same_every_time():
    made = catalog.products()
    assert len(made) == 300 and all(asin == product.asin for asin, product in made.items())
    catalog.products.cache_clear()
    assert catalog.products() == made
    for product in made.values():
        assert product.kind in catalog.KINDS[product.category] and 2 <= len(product.attributes) <= 3
        assert len(product.options) == 2 and all(len(values) >= 2 for values in product.options.values())


def test_search_ranks_by_bm25():
    product = next(p for p in catalog.products().values() if len(p.attributes) == 3)
    found = catalog.search(f'{product.kind} {" ".join(product.attributes)} {product.brand}')
    assert product in found[:5] and len(found) <= catalog.RESULTS
    assert {p.kind for p in catalog.search(product.kind)} == {product.kind}
    assert catalog.search('') == catalog.search('!?') == catalog.search('zebra') == []


SHIRT = catalog.Product(
    'B0XXXX',
    'shirt',
    'fashion',
    'Norvik',
    ('cotton', 'slim fit'),
    {'color': ('red', 'blue'), 'size': ('small',)},
    29.99,
)
WISH = Goal(SHIRT, ('cotton', 'slim fit'), {'color': 'red', 'size': 'small'}, 40.0)


@pytest.mark.parametrize(
    ('changes', 'options', 'wanted'),
    [
        ({}, {'color': 'red', 'size': 'small'}, 5 / 5),
        ({}, {'color': 'blue', 'size': 'small'}, 4 / 5),
        ({}, {}, 3 / 5),
        ({'price': 40.01}, {'color': 'red', 'size': 'small'}, 4 / 5),
        ({'attributes': ('waterproof', 'cotton')}, {'color': 'red'}, 3 / 5),
        ({'attributes': ('waterproof', 'breathable'), 'price': 99.99}, {'color': 'blue'}, 0.0),
        ({'kind': 'jacket'}, {'color': 'red', 'size': 'small'}, 0.0),  # no noun of the title fits
    ],
)
def test_reward_is_the_published_formula(changes, options, wanted):
    bought = catalog.Product(**vars(SHIRT) | changes)
    assert reward(WISH, bought, options) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ('text_match', 'same_type', 'wanted'),
    [(0.0, True, 0.0), (0.05, True, 0.1), (0.1, False, 0.5), (0.2, False, 0.5), (0.2, True, 1.0), (0.3, False, 1.0)],
)
def test_type_reward_has_its_steps(text_match, same_type, wanted):
    assert type_reward(text_match, same_type=same_type) == wanted


@pytest.mark.parametrize('level', [1, 2])
def test_goals_hold_out_products_and_can_be_met(level):
    splits = goals_lib.goals(level)
    wanted = {split: {goal.product.asin for goal in part.values()} for split, part in splits.items()}
    assert not wanted['train'] & wanted['test'] and len(wanted['train']) == 240 and len(wanted['test']) == 60
    for goal in (goal for part in splits.values() for goal in part.values()):
        assert reward(goal, goal.product, goal.options) == 1.0
        assert (len(goal.attributes), len(goal.options)) == (level, level)
        assert 0 < goal.price_upper - goal.product.price < 50
        if level == 2 and set(goal.product.options) == set(goal.options):
            assert not set(goal.options.values()) & set(
                goal.instruction(('color', 'size', 'scent', 'pack')).split(', ')
            )


def test_instruction_is_in_the_published_wording():
    assert WISH.instruction() == (
        'i need a cotton and slim fit shirt, with color: red, and size: small, and price lower than 40.00 dollars'
    )
    assert (
        WISH.instruction(('feature', 'size')) == 'i need a shirt, with color: red, and price lower than 40.00 dollars'
    )
    assert WISH.instruction(('feature', 'size', 'color', 'price')) == 'i need a shirt'
