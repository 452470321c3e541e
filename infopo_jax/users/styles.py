"""How a scripted user talks: the same facts in another manner, to measure what an agent owes to its simulator.

Train with 'plain', evaluate with each of the others: what is lost is the simulator shift. Every style leaves every fact
to be had; at most one question about each request is evaded, so that an agent that asks again needs one turn more.
"""

import dataclasses
import random
import re

# What is polite and no news; terse users leave it away.
_LEAD = re.compile(r'^(?:Hello, |Please |I (?:want|need) (?:to )?)')


@dataclasses.dataclass(frozen=True)
class Style:
    """One manner.

    No text holds a digit, an id or a word that an environment may take for a value.
    """

    terse: bool = False  # bare values, no politeness
    chatter: tuple[str, ...] = ()  # one of them follows whatever is said
    evasions: tuple[str, ...] = ()  # what is said instead of an answer
    evade_share: float = 0.0  # probability that a question is evaded, while none about the request has been


STYLES: dict[str, Style] = {
    'plain': Style(),
    'terse': Style(terse=True),
    'verbose': Style(
        chatter=(
            'I hope that this helps you, and I thank you in advance.',
            'My neighbour told me that you are very good at this, by the way.',
            'To be honest I had hoped to have this over and done with by now.',
            'Tell me if that is not clear, I tend to explain things badly.',
        )
    ),
    'distracted': Style(
        evasions=(
            'Sorry, somebody is at the door. What did you say?',
            'One moment, the dog is barking. What was that?',
            'Lovely weather today, is it not?',
        ),
        evade_share=0.5,
    ),
    'stubborn': Style(
        evasions=('You should know that.', 'Why should I tell you?', 'Can you not see that yourself?'),
        evade_share=1.0,
    ),
}


class Manner:
    """A style in one talk.

    Args:
        style: a key of ``STYLES``.
        rng: drives what is left to chance; 'plain' draws nothing from it.

    Raises:
        ValueError: there is no such style.
    """

    def __init__(self, style: str, rng: random.Random):
        check_style(style)
        self._style, self._rng = STYLES[style], rng
        self._has_evaded = False

    def say(self, text: str, value: str | None = None) -> str:
        """Returns what is said for a plain ``text``, whose news is ``value`` if it is an answer."""
        if self._style.terse:
            if value is not None:
                return value
            short = _LEAD.sub('', text)
            return short[:1].upper() + short[1:]
        if self._style.chatter:
            end = '' if text.endswith(('.', '!', '?')) else '.'
            return f'{text}{end} {self._rng.choice(self._style.chatter)}'
        return text

    def evade(self) -> str | None:
        """Returns what is said instead of an answer to a question; None if it is to be answered."""
        if self._has_evaded or not self._style.evasions or self._rng.random() >= self._style.evade_share:
            return None
        self._has_evaded = True
        return self._rng.choice(self._style.evasions)

    def next_request(self) -> None:
        """Begins another request, about which a question may be evaded anew."""
        self._has_evaded = False


def check_style(style: str) -> None:
    """Raises ValueError unless a style of that name exists."""
    if style not in STYLES:
        raise ValueError(f'user_style must be one of {tuple(STYLES)}, got {style!r}')
