"""Intention: find out what matters to a user who has only named the occasion, the most important first."""

import dataclasses
import random
from typing import ClassVar

from infopo_jax.envs.usergym.base import Gym
from infopo_jax.envs.usergym.moves import Move, Reply, found, refuse

DETAILS = {
    'date': ('monday', 'tuesday', 'thursday', 'friday', 'saturday', 'sunday'),
    'budget': ('$200', '$300', '$450', '$600', '$750', '$900'),
    'place': ('garden', 'museum', 'harbour', 'castle', 'beach', 'farm'),
    'food': ('pasta', 'curry', 'soup', 'fish', 'salad', 'cake'),
    'music': ('jazz', 'folk', 'rock', 'opera', 'disco', 'blues'),
    'guests': ('ten', 'twenty', 'thirty', 'forty', 'fifty', 'sixty'),
}
OCCASIONS = {  # what matters, the most important first
    'wedding': ('place', 'guests', 'music', 'date'),
    'picnic': ('food', 'date', 'place', 'guests'),
    'concert': ('music', 'place', 'budget', 'date'),
    'dinner': ('guests', 'food', 'budget', 'music'),
    'birthday': ('date', 'music', 'food', 'budget'),
    'reunion': ('budget', 'guests', 'date', 'place'),
}
WEIGHTS = (1.0, 0.7, 0.4, 0.4)  # by rank of importance, as UserRL's 3, 2, 1
WORDINGS = ('{detail}: {value}.', 'I want {value}.', '{value}, please.')


@dataclasses.dataclass(frozen=True)
class Puzzle:
    """An occasion, and what its user wants of every detail, whether it matters or not."""

    occasion: str
    values: tuple[str, ...]  # in the order of DETAILS


class Intention(Gym):
    """The user names an occasion; some details matter to him, by importance, others do not.

    'action' with the name of a detail is answered by its value; of several names, the first counts. 'answer' with
    values ends the episode: each detail that matters and is right counts by its importance. What matters depends on the
    occasion, 2, 3 or 4 details by level, and turns are few, so that an agent has to learn what to ask when.

    UserRL's IntentionGym pays for every question that covers a missing detail, has a language model judge coverage and
    word the answers, and asks for no result. Here what was learnt has to be used, which is what is scored.
    """

    name = 'intention'
    goal = 'Plan what the user wants: ask, then answer.'
    manual = (
        'choice "action", content a question about one detail (date, budget, place, food, music, guests): the user '
        'says what he wants. choice "answer", content all that you found out: ends the session.'
    )
    choices = ('action', 'answer')
    turn_limits = (4, 5, 6)
    words: ClassVar = (*OCCASIONS, *DETAILS, *(value for values in DETAILS.values() for value in values))

    def deal(self, rng: random.Random) -> Puzzle:
        return Puzzle(rng.choice(list(OCCASIONS)), tuple(rng.choice(values) for values in DETAILS.values()))

    def open(self) -> str:
        return self.manner.say(f'Please plan a {self.puzzle.occasion}.')

    def reply(self, choice: str, content: str) -> Reply:
        wanted = dict(zip(DETAILS, self.puzzle.values, strict=True))
        if choice == 'answer':
            weights = dict(zip(self._important(), WEIGHTS, strict=False))
            right = [d for d in weights if found(content, DETAILS[d]) == [wanted[d]]]
            score = sum(weights[detail] for detail in right) / sum(weights.values())
            return Reply(self.manner.say('Thank you.'), score=1.0 if len(right) == len(weights) else score)
        asked = found(content, DETAILS)
        if not asked:
            return refuse(f'ask about one of {", ".join(DETAILS)}')
        detail, value = asked[0], wanted[asked[0]]
        return self.tell(self.rng.choice(WORDINGS).format(detail=detail, value=value), value, notes={detail: value})

    def questions(self) -> list[Move]:
        return [('action', f'{detail}?') for detail in DETAILS]

    def guess(self, rng: random.Random, notes: dict[str, str]) -> Move | None:
        return ('answer', ' '.join(notes.values())) if notes else None

    def knows(self, notes: dict[str, str]) -> bool:
        return set(self._important()) <= set(notes)

    def plan(self) -> Move:
        for detail in self._important():
            if detail not in self.notes:
                return 'action', f'{detail}?'
        return 'answer', ' '.join(self.notes.values())

    def _important(self) -> tuple[str, ...]:
        return OCCASIONS[self.puzzle.occasion][: self.level + 1]
