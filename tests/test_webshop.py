"""The embedded shop, its reward, and the adapter to the real one against stand-ins for its package and its server."""

import http.server
import random
import re
import sys
import threading
import types
import urllib.parse

import numpy as np
import pytest

from infopo_jax.envs.webshop import WebShop, WebShopServer, catalog, goals as goals_lib, pages
from infopo_jax.envs.webshop.goals import Goal, reward, type_reward
from infopo_jax.envs.webshop.site import read
from infopo_jax.lm.tokenizer import train_tokenizer

SETTINGS = [(1, 0), (1, 3), (2, 0), (2, 2)]  # level, num_hidden


def play(env, task, policy):
    """Plays to the end; returns the last step's info and the number of turns."""
    env.reset(options={'task': task})
    for turns in range(1, env.max_turns + 1):
        *_, terminated, truncated, info = env.step(policy())
        if terminated or truncated:
            return info, turns
    raise AssertionError('the episode did not end')


# Products, search, reward


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


# Pages


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
    assert pages.parse(text) == wanted


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


# Episodes


@pytest.mark.parametrize(('level', 'num_hidden'), SETTINGS)
def test_expert_meets_every_wish(level, num_hidden):
    env = WebShop(level=level, num_hidden=num_hidden)
    for task in [*env.tasks('test'), *env.tasks('train')[::5]]:
        info, turns = play(env, task, env.expert)
        assert info == {'is_error': False, 'success': True, 'outcome': 1.0}
        assert turns >= 3 + level + num_hidden


@pytest.mark.parametrize(('level', 'num_hidden'), SETTINGS)
def test_random_play_earns_little_and_doing_nothing_none(level, num_hidden):
    env, rng = WebShop(level=level, num_hidden=num_hidden), random.Random(0)
    infos = [play(env, task, lambda: env.random_action(rng))[0] for task in env.tasks('test')]
    assert 0.01 < np.mean([info['outcome'] for info in infos]) < 0.2
    assert np.mean([info['success'] for info in infos]) < 0.03
    for text in ('', 'hello', 'search[hello]', 'click[Buy Now]'):
        info, turns = play(env, env.tasks('test')[0], lambda text=text: text)
        assert not info['success'] and info['outcome'] == 0.0 and turns == 9


def test_random_action_is_legal():
    env, rng = WebShop(num_hidden=2), random.Random(1)
    for task in env.tasks('train')[:50]:
        env.reset(options={'task': task})
        terminated = truncated = False
        while not (terminated or truncated):
            *_, terminated, truncated, info = env.step(env.random_action(rng))
            assert not info['is_error']


def test_step_pays_at_the_purchase():
    env = WebShop(level=1)
    task = env.tasks('test')[0]
    messages, info = env.reset(options={'task': task})
    assert info['task'] == task and messages[1]['content'].startswith('Instruction: i need a')
    [message], earned, terminated, truncated, info = env.step(env.expert())
    assert (earned, terminated, truncated, info) == (0.0, False, False, {'is_error': False})
    env.step(f'click[{re.search(r"B0[A-Z]{4}", message["content"])[0]}]')
    _, earned, terminated, _, info = env.step('click[Buy Now]')
    assert terminated and 0 < earned < 1 and info == {'is_error': False, 'success': False, 'outcome': earned}
    with pytest.raises(ValueError, match='call reset'):
        env.step('click[Buy Now]')


@pytest.mark.parametrize('text', ['', 'buy', 'click[nothing]', 'search[]', 'search[ ]', 'ask[color]', 'click[Buy Now]'])
def test_step_answers_what_does_nothing_with_an_error(text):
    env = WebShop()
    env.reset()
    [message], earned, terminated, truncated, info = env.step(text)
    assert message['content'].startswith('Error: ') and info == {'is_error': True}
    assert (earned, terminated, truncated) == (0.0, False, False)


def test_customer_tells_what_is_hidden_when_asked():
    env = WebShop(level=2, num_hidden=4)
    for task in env.tasks('train')[:20]:
        opening = env.reset(options={'task': task})[0][1]['content']
        attributes, options = task.split(' | ')[1:3], task.split(' | ')[3:5]
        assert not any(f' {value}' in opening for value in (*attributes, *options)) and 'dollars' not in opening
        told = ' '.join(env.step(f'ask[{name}]')[0][0]['content'] for name in ('Feature', 'color', 'size', 'price'))
        assert all(value in told for value in attributes) and task.split(' | ')[-1] in told
        assert env.step('ask[weather]')[0][0]['content'] == 'i have no wish about that'
    assert env.reset(seed=1, options={'task': task}) == env.reset(seed=2, options={'task': task})


def test_reset_draws_a_training_task_and_refuses_unknown_ones():
    env = WebShop(level=1)
    assert {env.reset(seed=seed)[1]['task'] for seed in range(20)} <= set(env.tasks('train'))
    for task in ('nothing', 7, ['a'], WebShop(level=2).tasks('train')[0]):
        with pytest.raises(ValueError, match='unknown task'):
            env.reset(options={'task': task})
    with pytest.raises(ValueError, match="'train' or 'test'"):
        env.tasks('valid')


@pytest.mark.parametrize(
    ('knobs', 'message'),
    [
        ({'level': 3}, 'level must be one of'),
        ({'turn_limit': 0}, 'turn_limit must be at least 1'),
        ({'level': 1, 'num_hidden': 4}, 'num_hidden must be from 0 to 3'),
        ({'page_size': 0}, 'page_size'),
    ],
)
def test_webshop_refuses_knobs_out_of_range(knobs, message):
    with pytest.raises(ValueError, match=message):
        WebShop(**knobs)


# What is taught


@pytest.mark.parametrize(('level', 'num_hidden'), [(1, 0), (2, 2)])
def test_example_is_legal_copies_and_meets_no_wish(level, num_hidden):
    env, rng = WebShop(level=level, num_hidden=num_hidden), random.Random(0)
    train, hidden, verbs = set(env.tasks('train')), 0, set()
    openings = {env.reset(options={'task': task})[0][1]['content']: task for task in train}
    for _ in range(300):
        history, target = env.example(rng)
        replay = WebShop(level=level, num_hidden=num_hidden)
        shown = replay.reset(options={'task': openings[history[1]['content']]})[0][1]['content']
        for action, reply in zip(history[2::2], history[3::2], strict=True):
            [message] = replay.step(action['content'])[0]
            if num_hidden == 0:  # else two tasks may open alike
                assert reply['content'] in (message['content'], env.placeholder)
            hidden += reply['content'] == env.placeholder
            shown += message['content']
        verb, argument = pages.parse(target)
        verbs.add(verb)
        if num_hidden == 0:
            assert verb == 'search' or argument in shown.lower()
            assert all(word in shown for word in argument.split()) or verb == 'click'
            *_, info = replay.step(target)
            assert not info['is_error'] and not info.get('success')
    assert 50 < hidden < 250 and verbs == {'search', 'click'} | ({'ask'} if num_hidden else set())


def test_example_never_ends_with_the_right_purchase(monkeypatch):
    monkeypatch.setattr(WebShop, 'random_action', lambda self, rng: self.expert())  # lucky draws only
    targets = {WebShop(level=1).example(random.Random(seed))[1] for seed in range(100)}
    assert len(targets) > 20 and 'click[Buy Now]' not in targets


def test_example_leaves_a_running_episode_alone():
    env = WebShop(level=1)
    env.reset(options={'task': env.tasks('test')[0]})
    env.step(env.expert())
    before = env.expert()
    env.example(random.Random(0))
    env.corpus()
    assert env.expert() == before


def test_tokenizer_keeps_what_is_copied_whole():
    env = WebShop(level=1)
    tokenizer = train_tokenizer(env.corpus(), env.special_tokens(), vocab_size=640)
    for text, most in (('click[B0KATO]', 5), ('click[Buy Now]', 3), ('search[slim fit shirt]', 5)):
        ids = tokenizer.encode(text)
        assert len(ids) <= most and tokenizer.decode(ids) == text


# The real shop, by its package


class Store:
    """What stands in for WebShop's SimServer: goals, and sessions that two episodes must not share."""

    def __init__(self):
        self.goals = [f'goal {i}' for i in range(2000)]
        self.owners = {}


class TextEnv:
    """WebAgentTextEnv's interface, with a shop of three pages."""

    loads = 0

    def __init__(self, observation_mode='html', server=None, session_prefix=None, num_products=None, human_goals=0):
        assert (observation_mode, human_goals) == ('text', True)
        TextEnv.loads += server is None
        self.server, self.prefix, self.num_products = server or Store(), session_prefix or '', num_products
        self.reset()

    def reset(self, session=None, instruction_text=None):
        self.name = f'{self.prefix}{session}'
        assert self.server.owners.setdefault(self.name, self) is self, 'two episodes share a session'
        self.page = ['search', self.server.goals[session or 0]]
        return f'WebShop [SEP] Instruction: [SEP] {self.page[1]} [SEP] Search', None

    def get_available_actions(self):
        found = {'search': ['search'], 'results': ['back to search', 'b001'], 'item': ['red', 'buy now']}
        return {'has_search_bar': self.page[0] == 'search', 'clickables': found[self.page[0]]}

    def step(self, action):
        if action == 'click[buy now]':
            return 'Thank you', 0.75, True, None
        self.page[0] = {'click[b001]': 'item', 'click[red]': 'item', 'click[back to search]': 'search'}.get(
            action, 'results'
        )
        return f'page {self.page[0]}', 0.0, False, None


@pytest.fixture
def package(monkeypatch):
    """Puts a stand-in for WebShop's package in place."""
    from infopo_jax.envs.webshop import server

    module = types.ModuleType('web_agent_site.envs.web_agent_text_env')
    module.WebAgentTextEnv, TextEnv.loads = TextEnv, 0
    for name in ('web_agent_site', 'web_agent_site.envs'):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    server._package.cache_clear()
    yield
    server._package.cache_clear()


def test_package_is_played_and_loaded_once(package):
    envs = [WebShopServer(num_products=1000) for _ in range(2)]
    assert envs[0].tasks('test') == list(range(500)) and envs[0].tasks('train') == list(range(1500, 2000))
    for env in envs:  # both on one goal at a time
        messages, _ = env.reset(options={'task': 1501})
        assert 'goal 1501' in messages[1]['content']
        assert messages[1]['content'].endswith('\nAvailable actions: search[keywords]')
    for env in envs:
        [message], *_, info = env.step('search[shirt]')
        assert message['content'] == 'page results\nAvailable actions: click[back to search], click[b001]'
        [message], *_, info = env.step('click[buy now]')
        assert message['content'].startswith('Error: ') and info == {'is_error': True}
        env.step('<think>that one</think>click[B001]')
        _, earned, terminated, _, info = env.step('click[Buy Now]')
        assert (earned, terminated) == (0.75, True) and info == {'is_error': False, 'success': False, 'outcome': 0.75}
    assert TextEnv.loads == 1
    env.reset(options={'task': 1501})  # the same environment again
    with pytest.raises(ValueError, match='call reset'):
        envs[0].step('search[x]')


def test_package_truncates_at_the_turn_limit(package):
    env = WebShopServer(turn_limit=2)
    env.reset(seed=1)
    env.step('hello')
    _, _, terminated, truncated, info = env.step('search[x]')
    assert truncated and not terminated and info == {'is_error': False, 'success': False, 'outcome': 0.0}


def test_missing_package_names_the_ways_out(monkeypatch):
    monkeypatch.setitem(sys.modules, 'web_agent_site', None)
    with pytest.raises(ValueError, match=r'git clone .*--config\.env\.data=http.*--config\.env\.name=webshop'):
        WebShopServer().tasks('train')


@pytest.mark.parametrize('knobs', [{'data': 'localhost:3000'}, {'turn_limit': 0}, {'num_goals': 1}])
def test_webshop_server_refuses_knobs_out_of_range(knobs):
    with pytest.raises(ValueError, match='must be'):
        WebShopServer(**knobs)


# The real shop, by its server


def button(to, text, kind='btn btn-primary'):
    return f'<form method="post" action="{to}"><button type="submit" class="{kind}">{text}</button></form>'


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves pages as ``web_agent_site`` writes them: one product with a colour."""

    def do_GET(self):
        self.answer({})

    def do_POST(self):
        size = int(self.headers.get('Content-Length', 0))
        self.answer(urllib.parse.parse_qs(self.rfile.read(size).decode()))

    def answer(self, form):
        page, session, *rest = [*urllib.parse.unquote(self.path).strip('/').split('/'), '']
        if page.startswith('fixed_') and 'search_query' in form:
            self.send_response(302)
            self.send_header('Location', urllib.parse.quote(f'/search_results/{page}/{form["search_query"][0]}/1'))
            self.end_headers()
            return
        number = int((page if page.startswith('fixed_') else session).rpartition('_')[2])
        if number >= 600:
            self.send_error(500)
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.render(page, session, rest, number).encode())

    def render(self, page, session, rest, number):
        head = '<html><head><title>WebShop</title><script>let a = "<b>";</script></head><body>'
        instruction = f'<div id="instruction-text"><h4>Instruction: <br>goal {number} &amp; more</h4></div>'
        if page == 'search_results':
            link = urllib.parse.quote(f'/item_page/{session}/B001/{rest[0]}/1/{{}}')
            old = '<!-- <a class="product-link" href="/old">B000</a> -->'
            product = f'<h4><a class="product-link" href="{link}">B001</a></h4><h4>Red shirt</h4><h5>$10.0</h5>'
            return head + instruction + button(f'/{session}', 'Back to Search', 'btn') + old + product
        if page == 'item_page':
            url = urllib.parse.quote(f"/item_page/{session}/B001/x/1/{{'color': 'red'}}")
            radio = f'<input type="radio" name="color" value="Red" data-url="{url}"><label>Red</label>'
            buy = button(urllib.parse.quote(f'/done/{session}/B001/{rest[-2]}'), 'Buy Now', 'btn-lg purchase')
            return head + instruction + button(f'/{session}', '&lt; Prev') + radio + buy
        if page == 'done':
            score = 1.0 if 'red' in rest[1] else 0.5
            return head + f'<pre>code</pre><h3 id="reward">Your score<pre>{score}</pre></h3><pre>{{}}</pre>'
        field = '<input id="search_input" type="text" name="search_query">'
        form = f'<form method="post" action="/{page}">{field}<button class="btn">Search</button></form>'
        return head + '<h2>WebShop</h2>' + instruction + form

    def log_message(self, *_):
        pass


@pytest.fixture(scope='module')
def address():
    """Runs the server; returns its address."""
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(('choose', 'wanted'), [(True, 1.0), (False, 0.5)])
def test_server_is_played_by_its_pages(address, choose, wanted):
    env = WebShopServer(data=address, num_goals=600)
    assert env.tasks('test') == list(range(120)) and env.tasks('train') == list(range(120, 600))
    messages, _ = env.reset(options={'task': 130})
    assert messages[1]['content'] == (
        'WebShop [SEP] Instruction: [SEP] goal 130 & more [SEP] Search\nAvailable actions: search[keywords]'
    )
    [message], *_ = env.step('search[red shirt]')
    assert message['content'] == (
        'Instruction: [SEP] goal 130 & more [SEP] Back to Search [SEP] B001 [SEP] Red shirt [SEP] $10.0\n'
        'Available actions: click[back to search], click[b001]'
    )
    [message], *_, info = env.step('search[again]')
    assert info == {'is_error': True}
    [message], *_ = env.step('click[B001]')
    assert message['content'].endswith('Available actions: click[< prev], click[red], click[buy now]')
    if choose:
        assert not env.step('click[Red]')[4]['is_error']
    _, earned, terminated, _, info = env.step('click[Buy Now]')
    assert terminated and earned == wanted
    assert info == {'is_error': False, 'success': wanted == 1.0, 'outcome': wanted}


def test_server_errors_name_the_fix(address):
    with pytest.raises(ConnectionError, match=r'500; .*num_goals'):
        WebShopServer(data=address).reset(options={'task': 700})
    with pytest.raises(ConnectionError, match=r'no WebShop server answers .*run_dev\.sh'):
        WebShopServer(data='http://127.0.0.1:9').reset(options={'task': 0})


def test_read_takes_only_what_is_seen():
    page = read('<title>no</title><style>no</style><!-- no --><p>yes</p><pre>7</pre><button class="x">b</button>')
    assert page.texts == ['yes', '7', 'b'] and page.clickables == {} and page.search is None and page.reward is None
