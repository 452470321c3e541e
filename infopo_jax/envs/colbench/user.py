"""Who the agent works with: a scripted collaborator for the generated set, a language model for the published data."""

import random
import re

from infopo_jax.envs.colbench.tasks import Task
from infopo_jax.users import User, UserFailed
from infopo_jax.users.styles import Manner

ANSWERS = {
    'limit': ('Above {}.', 'The limit is {}.', 'For more than {}.'),
    'rate': ('The rate is {}.', 'We take {}.', 'It is {}.'),
    'fee': ('The fee is {}.', '{} each time.', 'It costs {}.'),
    'group': ('The {} group.', 'Only {}.', 'It is for {}.'),
    'rounding': ('Rounded {}.', 'We round {}.', 'It is rounded {}.'),
    'cap': ('At most {}.', 'The cap is {}.', 'Never more than {}.'),
}
AGAIN = ('I already said {}.', 'As I said, {}.')
UNKNOWN = ('I do not know.', 'That does not matter here.')
CONFUSED = ('I do not understand.', 'What do you mean?')
THANKS = 'Thank you, I will try it.'
MAX_REPLY = 400  # characters, as in the published benchmark

# Which slot a question is about. "How much may it cost at most?" is about the cap, so caps are looked for first.
_KEYWORDS = {
    'cap': re.compile(r'\bcap\b|maximum|at most|\bupper'),
    'limit': re.compile(r'\blimit|threshold|how (?:large|big|many)|from (?:which|what) (?:amount|total|size|price)'),
    'rate': re.compile(r'\brate\b|percent|\bshare\b|factor|multipl'),
    'fee': re.compile(r'\bfees?\b|fixed amount|\bcosts?\b|surcharge'),
    'group': re.compile(r'\bgroups?\b|\bwho\b|which (?:customers|people)'),
    'rounding': re.compile(r'\bround|whole number|decimals'),
}

SYSTEM = """You play a person who wants a Python function written and works on it with a programmer. You asked for this:

{problem}

What you want is exactly what the following code does. The programmer must not see it:

{source}

How you talk:
- Answer what you are asked, in one or two plain sentences, from what this code does and nothing else.
- What the code does not settle, you do not know: say so.
- Tell nothing that you are not asked for. Never write code, and never read the code out line by line.
- Say only what this person says, without any heading or remark."""


def asked(text: str) -> list[str]:
    """Returns the slots that a text asks for, in the order in which it mentions them."""
    text = text.lower()
    found = {slot: match.start() for slot, pattern in _KEYWORDS.items() if (match := pattern.search(text))}
    return sorted(found, key=found.__getitem__)


class ScriptedUser:
    """Answers one question at a time by keywords, in varied wording; knows nothing of what the function does not need.

    Args:
        task: ``task.answers`` is what he knows; if that is nothing, as in the published data, he says so to everything.
        rng: drives the wording.
        style: how he talks; see ``users.styles``. The description itself is the same in all of them.
    """

    def __init__(self, task: Task, rng: random.Random, *, style: str = 'plain'):
        self._task, self._rng = task, rng
        self._manner = Manner(style, rng)
        self._said: set[str] = set()

    def open(self) -> str:
        """Says what is wanted, as far as it is said unasked."""
        return self._rng.choice(self._task.openings)

    def hear(self, text: str) -> str:
        """Answers what the agent says; of several questions, the first that has no answer yet."""
        if not self._task.answers:
            return self._manner.say(UNKNOWN[0])
        slots = asked(text)
        if not slots:
            return self._manner.say(self._rng.choice(CONFUSED))
        evasion = self._manner.evade()
        if evasion is not None:
            return evasion
        slot = next((slot for slot in slots if slot not in self._said), slots[0])
        if slot not in self._task.answers:
            return self._manner.say(self._rng.choice(UNKNOWN))
        wording = AGAIN if slot in self._said else ANSWERS[slot]
        self._said.add(slot)
        value = self._task.answers[slot]
        return self._manner.say(self._rng.choice(wording).format(value), value)


class ModelUser:
    """Lets somebody else play the collaborator, and tells him what he wants: the reference.

    Args:
        task: its first opening is what was asked for.
        user: whoever plays; what he raises is passed on.
        nonce: names the rollout; see ``User.reply``.
    """

    def __init__(self, task: Task, user: User, *, nonce: str):
        self._problem, self._user, self._nonce = task.openings[0], user, nonce
        system = SYSTEM.replace('{problem}', self._problem, 1).replace('{source}', task.source, 1)
        self._messages = [{'role': 'system', 'content': system}]

    def open(self) -> str:
        """Says what is wanted, in the words of the data."""
        return self._problem

    def hear(self, text: str) -> str:
        """Answers what the agent says, cut to ``MAX_REPLY`` characters.

        Raises:
            UserFailed: he said nothing.
        """
        self._messages.append({'role': 'user', 'content': text})
        reply = self._user.reply([dict(message) for message in self._messages], nonce=self._nonce)
        if not isinstance(reply, str) or not reply.strip():
            raise UserFailed(f'the user of colbench gave an empty answer: {reply!r}')
        self._messages.append({'role': 'assistant', 'content': reply.strip()[:MAX_REPLY]})
        return self._messages[-1]['content']
