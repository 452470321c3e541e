"""Users behind an endpoint, for their tests; needs httpx."""

from infopo_jax.users import limits
from infopo_jax.users.openai import OpenAIUser

KEY = 'sk-test-0123456789abcdef'
TALK = [{'role': 'system', 'content': 'You want tea.'}, {'role': 'user', 'content': 'What can I do for you?'}]


def hurry(monkeypatch):
    """Sets the key, and lets nobody wait long before he tries again."""
    monkeypatch.setenv('TEST_KEY', KEY)
    monkeypatch.setattr(limits, 'BACKOFF', 0.01)
    monkeypatch.setattr(limits, 'MAX_BACKOFF', 0.05)


def ask(endpoint, **knobs):
    return OpenAIUser('tiny', base_url=endpoint.url, api_key_env='TEST_KEY', **{'timeout': 5.0, **knobs})


def after(failures, then='tea, please'):
    """Returns a plan: the failures first, one a request, then good answers."""
    return lambda number, _: failures[number] if number < len(failures) else then
