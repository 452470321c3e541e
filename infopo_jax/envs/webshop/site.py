"""A browser without a screen for the pages of a WebShop server: what is written there, what can be clicked, the reward.

It reads what ``web_agent_site`` serves (https://github.com/princeton-nlp/WebShop): buttons of class ``btn`` or
``purchase`` inside a form, links of class ``product-link``, radio buttons with a ``data-url``, the field
``search_input``, and the number under the element ``reward`` once something is bought.
"""

import dataclasses
import html.parser
import urllib.error
import urllib.parse
import urllib.request

SEP = ' [SEP] '
_UNSEEN = {'script', 'style', 'title'}
_START = 'start it in the WebShop folder with ./run_dev.sh, or name the one that runs by config.env.data'


@dataclasses.dataclass
class Page:
    """A page as an agent sees it."""

    texts: list[str] = dataclasses.field(default_factory=list)  # visible, in order
    clickables: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)  # small letters -> method, address
    search: tuple[str, str] | None = None  # address and field of the search form
    reward: float | None = None

    @property
    def text(self) -> str:
        """The visible text, joined as in WebShop's text mode."""
        return SEP.join(self.texts)


class _Reader(html.parser.HTMLParser):
    """Builds a ``Page``."""

    def __init__(self):
        super().__init__()
        self.page = Page()
        self._form = ''  # address of the open form
        self._pressed: tuple[str, str] | None = None  # where the open button or link leads
        self._label = ''
        self._unseen = 0
        self._reward = False  # the element 'reward' has begun
        self._number = False  # and its number

    def handle_starttag(self, tag, attrs):
        attributes = {name: value or '' for name, value in attrs}
        classes = attributes.get('class', '').split()
        if tag in _UNSEEN:
            self._unseen += 1
        elif tag == 'form':
            self._form = attributes.get('action', '')
        elif tag == 'button' and {'btn', 'purchase'} & set(classes):
            self._pressed, self._label = ('POST', self._form), ''
        elif tag == 'a' and 'product-link' in classes:
            self._pressed, self._label = ('GET', attributes.get('href', '')), ''
        elif tag == 'input' and attributes.get('id') == 'search_input':
            self.page.search = (self._form, attributes.get('name', 'search_query'))
        elif tag == 'input' and attributes.get('type') == 'radio':
            self.page.clickables[attributes.get('value', '').lower()] = ('GET', attributes.get('data-url', ''))
        self._reward |= attributes.get('id') == 'reward'
        self._number = self._reward and tag == 'pre' and self.page.reward is None

    def handle_endtag(self, tag):
        if tag in _UNSEEN:
            self._unseen -= 1
        elif tag in ('button', 'a') and self._pressed:
            self.page.clickables[self._label.strip().lower()] = self._pressed
            self._pressed = None

    def handle_data(self, data):
        if self._unseen or not data.strip():
            return
        self.page.texts.append(data.strip())
        self._label += data
        if self._number:
            self.page.reward, self._number = float(data), False


def read(source: str) -> Page:
    """Reads the HTML of a page; the button of the search form is not clickable, since searching needs words."""
    reader = _Reader()
    reader.feed(source)
    reader.close()
    if reader.page.search:
        reader.page.clickables.pop('search', None)
    return reader.page


class Site:
    """One session with a server.

    Args:
        address: such as 'http://127.0.0.1:3000'.
        timeout: seconds per page.
    """

    def __init__(self, address: str, *, timeout: float = 30.0):
        self._address, self._timeout = address.rstrip('/') + '/', timeout
        self.page = Page()

    def open(self, session: str) -> Page:
        """Opens the start page of a session; the server takes the goal from the number that ends its name."""
        return self._load('GET', session, None)

    def search(self, keywords: str) -> Page:
        """Searches.

        Raises:
            ValueError: the open page has no search field.
        """
        if self.page.search is None:
            raise ValueError('this page has no search field; go back to the search page first')
        to, field = self.page.search
        return self._load('POST', to, {field: keywords})

    def click(self, name: str) -> Page:
        """Clicks one of ``page.clickables``."""
        method, to = self.page.clickables[name]
        return self._load(method, to, {})

    def _load(self, method: str, to: str, form: dict[str, str] | None) -> Page:
        url = urllib.parse.urljoin(self._address, to)
        data = urllib.parse.urlencode(form or {}).encode() if method == 'POST' else None
        try:
            with urllib.request.urlopen(
                urllib.request.Request(url, data, method=method), timeout=self._timeout
            ) as reply:
                self.page = read(reply.read().decode('utf-8', 'replace'))
        except urllib.error.HTTPError as error:
            raise ConnectionError(
                f'the WebShop server answered {url} with {error.code}; if it has fewer goals than the task asks for, '
                'set config.env.num_goals to what it prints at its start'
            ) from error
        except OSError as error:  # refused, unknown host, timeout
            raise ConnectionError(f'no WebShop server answers at {self._address} ({error}): {_START}') from error
        return self.page
