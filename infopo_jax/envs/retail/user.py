"""The scripted customer: understands by keywords, answers one question at a time in varied wording, stops when done."""

import random
import re

from infopo_jax.envs.retail.tasks import Request
from infopo_jax.users.styles import Manner

OPENINGS = {
    'cancel_order': ('I want to cancel an order.', 'Please cancel my order.'),
    'change_payment': ('I want to pay an order another way.', 'Please change how I pay my order.'),
    'return_item': ('I want to return an item.', 'Please take back an item.'),
    'exchange_item': ('I want to exchange {}.', 'Please exchange {}.'),
}
VAGUE = ('Hello, I need help.', 'Hello, please help me.')
REFUND = ' What is my refund?'
ANSWERS = {
    'customer': ('I am {}.', 'I only know that I am {}.'),
    'order': ('It is {}.', 'My order is {}.', '{}, please.'),
    'item': ('The item is {}.', '{} of that order.'),
    'new_item': ('I want {} instead.', '{} instead, please.'),
    'product': ('The {}.', 'It is the {}.'),
    'payment': ('Use {}.', 'I want to pay with {}.'),
    'reason': ('Because of the {}.', 'The reason is the {}.'),
}
AGAIN = ('I already said {}.', 'As I said, {}.')
CONFUSED = ('I do not understand.', 'What do you mean?')
NEXT = 'Thank you. '
THANKS = ('Thank you, that is all.', 'Thank you, bye.')
WRONG = ('That is not what I want. Bye.',)

# Which fact a question is about. A question about a new item mentions the item, too.
_KEYWORDS = {
    'new_item': re.compile(r'\bnew\b|replace|instead|\bfor it\b'),
    'item': re.compile(r'\bitems?\b|product|article'),
    'order': re.compile(r'\border'),
    'reason': re.compile(r'reason|\bwhy\b'),
    'payment': re.compile(r'\bpay|\bcard\b|method'),
    'customer': re.compile(r'customer|account|\bwho\b|your (?:name|id)\b'),
    'intent': re.compile(r'help|anything else|what (?:do|would|can)\b|do for you'),
}
_AMOUNT = re.compile(r'\$\d+')


def asked(text: str) -> list[str]:
    """Returns the facts that a text asks for, in the order in which it mentions them."""
    text = text.lower()
    found = {fact: match.start() for fact, pattern in _KEYWORDS.items() if (match := pattern.search(text))}
    if 'new_item' in found:
        found.pop('item', None)
    return sorted(found, key=found.__getitem__)


class User:
    """One customer in one talk.

    He makes his requests one after the other, the next when the last is met, and ends the talk (``done``) when all are
    met, or when something else than he wants was done or told (``content`` is False then).

    Args:
        requests: what he wants.
        rng: drives his wording.
        states_intent: he opens with his first request.
        style: how he talks; see ``users.styles``.
    """

    def __init__(self, requests: tuple[Request, ...], rng: random.Random, *, states_intent: bool, style: str = 'plain'):
        self.done = False
        self.content = False
        self._requests = requests
        self._rng = rng
        self._manner = Manner(style, rng)
        self._states_intent = states_intent
        self._index = 0
        self._said: set[str] = set()
        self._served = False  # the current request's change is made

    def open(self) -> str:
        """Says the first thing."""
        return self._state_request() if self._states_intent else self._manner.say(self._rng.choice(VAGUE))

    def hear(self, text: str) -> str:
        """Answers what the agent says."""
        refund = self._request.refund
        amounts = set(_AMOUNT.findall(text))
        if refund and amounts:
            return self._leave() if amounts != {refund} or not self._served else self._advance()
        return self._answer(text)

    def _answer(self, text: str) -> str:
        """Answers a question; of several, the first that has no answer yet."""
        facts = asked(text)
        if not facts:
            return self._manner.say(self._rng.choice(CONFUSED))
        evasion = self._manner.evade()
        if evasion is not None:
            return evasion
        fact = next((fact for fact in facts if fact not in self._said), facts[0])
        if fact == 'intent':
            return self._state_request()
        kind, value = self._request.answers[fact]
        wording = AGAIN if fact in self._said else ANSWERS[kind]
        self._said.add(fact)
        said = self._rng.choice(wording).format(f'the {value}' if kind == 'product' and wording is AGAIN else value)
        return self._manner.say(said, value)

    def notice(self, tool: str, arguments: dict[str, str]) -> str | None:
        """Reacts to a change that the agent made, of which the shop sends word; None if he has nothing to say."""
        request = self._request
        if self._served or (tool, arguments) != (request.tool, request.arguments):
            return self._leave()
        self._served = True
        return None if request.refund else self._advance()

    @property
    def _request(self) -> Request:
        return self._requests[self._index]

    def _state_request(self) -> str:
        self._said.add('intent')
        return self._manner.say(self._opening())

    def _opening(self) -> str:
        """Returns the current request in words."""
        request = self._request
        wording = self._rng.choice(OPENINGS[request.tool])
        wording = wording.format(f'the {request.product}' if request.product else 'an item')
        return wording + (REFUND if request.refund else '')

    def _advance(self) -> str:
        """Goes on to the next request, or ends the talk content."""
        if self._index + 1 == len(self._requests):
            self.done = self.content = True
            return self._manner.say(self._rng.choice(THANKS))
        self._index += 1
        self._manner.next_request()
        self._said, self._served = set(), False
        return NEXT + self._state_request()

    def _leave(self) -> str:
        self.done = True
        return self._manner.say(self._rng.choice(WRONG))
