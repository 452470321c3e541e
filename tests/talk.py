"""A scripted text environment and a tiny chat for tests of hosted rollouts."""

from infopo_jax.lm.chat import Chat
from infopo_jax.lm.tokenizer import train_tokenizer

LONG = 'one two three four five six seven eight nine ten'


def tiny_chat():
    """Returns a chat whose tokenizer knows bytes, a few phrases and the words ``red`` and ``blue``."""
    corpus = ['which colour', 'it is ', 'take ', 'Error: what?', 'nothing'] * 4
    return Chat(train_tokenizer(corpus, ['red', 'blue'], vocab_size=330))


class Colour:
    """The user wants a colour, which only he knows.

    'ask' is answered by it, 'take <colour>' ends the talk; 'half' gives a reward of 0.5 and two messages, 'long' a long
    answer, 'stop' truncates, 'refused' is an error though no malformed action, and anything else is both. Tasks named
    after an exception raise it.
    """

    outcome_range = 1.0
    placeholder = 'nothing'
    max_turns = 4

    def __init__(self, failures=()):
        self.failures = dict(failures)  # text -> exception

    def tasks(self, split):
        return ['red', 'blue'] if split == 'train' else ['red blue']

    def reset(self, *, seed=0, options=None):
        self.goal = options['task']
        if self.goal in self.failures:
            raise self.failures[self.goal]
        return [{'role': 'system', 'content': 'take '}, {'role': 'user', 'content': 'which colour'}], {}

    def step(self, text):
        if text in self.failures:
            raise self.failures[text]
        if text.startswith('take '):
            success = text == f'take {self.goal}'
            info = {'is_error': False, 'success': success, 'outcome': float(success)}
            return 'nothing', float(success), True, False, info
        answers = {'ask': f'it is {self.goal}', 'long': LONG, 'stop': 'nothing'}
        if text == 'half':
            messages = [{'role': 'tool', 'content': 'it is '}, {'role': 'user', 'content': self.goal}]
            return messages, 0.5, False, False, {}
        if text == 'refused':
            return 'nothing', 0.0, False, False, {'is_error': True, 'malformed': False}
        if text in answers:
            return answers[text], 0.0, False, text == 'stop', {'is_error': False}
        return [{'role': 'tool', 'content': 'Error: what?'}], 0.0, False, False, {'is_error': True}
