"""The embedded shop's pages: how actions are read, and where clicks lead."""

import pytest

from infopo_jax.envs.webshop import pages


@pytest.mark.parametrize(
    ('text', 'wanted'),
    [
        ('search[Red Shirt]', ('search', 'red shirt')),
        ('I go for click[< Prev].', ('click', '< prev')),
        ('<think>click[red]</think>Click[1 pack]', ('click', '1 pack')),
        ('click[a]\nclick[b]', ('click', 'a')),
        ('click[a [b] c]', ('click', 'a [b] c')),
        ('ask[color]', ('ask', 'color')),
        ('search[]', ('search', '')),
        ('search red', None),
        ('research[red]', None),
        ('', None),
    ],
)
def test_parse_finds_the_action(text, wanted):
    assert pages.parse(text, can_ask=True) == wanted
    assert pages.parse(text) == (None if text.startswith('ask') else wanted)


def test_parse_passes_over_a_question_where_nobody_can_be_asked():
    text = 'ask[color]\nsearch[shirt]'
    assert pages.parse(text) == ('search', 'shirt') and pages.parse(text, can_ask=True) == ('ask', 'color')


def test_visit_walks_through_the_pages():
    visit = pages.Visit(page_size=4)
    assert visit.text() == 'Search' and visit.clickables == [] and not visit.click('Buy Now')
    visit.search('shirt')
    first = [product.asin for product in visit.shown]
    assert visit.text().startswith('Back to Search [SEP] Page 1 (Total results: 25) [SEP] Next > [SEP] ' + first[0])
    assert visit.clickables == ['Back to Search', 'Next >', *first]
    assert visit.click('next >') and visit.clickables[1:3] == ['< Prev', 'Next >'] and first[0] not in visit.clickables
    for _ in range(5):
        assert visit.click('Next >')
    assert len(visit.shown) == 1 and not visit.click('Next >')  # 25 results are six pages of four, and one more
    for _ in range(6):
        assert visit.click('< Prev')
    assert visit.click(first[1].lower()) and visit.product.asin == first[1]
    name, values = next(iter(visit.product.options.items()))
    assert visit.click(values[0]) and visit.click(values[1]) and visit.options == {name: values[1]}
    assert visit.text().startswith(f'You have clicked {values[1]}. [SEP] Back to Search [SEP] < Prev [SEP] {name}')
    assert visit.click('features') and visit.text().endswith(visit.product.features) and not visit.click(values[0])
    assert visit.click('< Prev') and visit.options == {name: values[1]} and 'You have' not in visit.text()
    assert visit.click('Description') and visit.click('< Prev') and visit.click('< Prev')
    assert [product.asin for product in visit.shown] == first and visit.options == {}
    assert visit.click(first[0]) and visit.click(next(iter(visit.product.options.values()))[0]) and visit.options
    visit.search('lamp')  # from the page of a product
    assert visit.options == {} and visit.product is None and visit.shown[0].kind == 'lamp'
    assert visit.click('Back to Search') and visit.text() == 'Search' and visit.shown == []
