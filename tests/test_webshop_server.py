"""The adapter to the real WebShop, against stand-ins for its package and its server."""

import http.server
import sys
import threading
import types
import urllib.parse

import pytest

from infopo_jax.envs.webshop import WebShopServer
from infopo_jax.envs.webshop.site import read

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
        assert message['content'].startswith('Error: ') and info == {'is_error': True, 'malformed': False}
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
    with pytest.raises(ValueError, match=r'(?s)git clone .*--config\.env\.data=http.*--config\.env\.name=webshop'):
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
    assert info == {'is_error': True, 'malformed': False}
    assert env.step('again')[4] == env.step('ask[color]')[4] == {'is_error': True}  # nobody to be asked
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
