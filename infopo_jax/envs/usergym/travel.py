"""Travel: elicit what a guest prefers, search the inns, recommend the best."""

import dataclasses
import random
from typing import ClassVar

from infopo_jax.envs.usergym.base import Gym
from infopo_jax.envs.usergym.moves import Move, Reply, found, refuse

ASPECTS = {
    'area': ('beach', 'centre', 'forest', 'lake', 'hills'),
    'room': ('suite', 'cabin', 'loft', 'dorm', 'attic'),
    'meal': ('vegan', 'grill', 'sushi', 'bistro', 'buffet'),
}
INNS = tuple(f'inn_{i}' for i in range(12))
PRICES = tuple(f'${price}' for price in range(55, 115, 5))
MATCHES = 2  # inns with all that the guest prefers: the cheapest is the best
DECOYS = 6  # inns with all but one of them
SHOWN = 2  # inns in a search result
CORRECT = 0.8  # score of an inn with all that is preferred, though not the cheapest


@dataclasses.dataclass(frozen=True)
class Puzzle:
    """What the guest prefers, and the inns from the cheapest on."""

    preferences: tuple[tuple[str, str], ...]  # (aspect, value); the other aspects do not matter
    inns: tuple[tuple[str, str, tuple[str, ...]], ...]  # id, price, value of each aspect

    def best(self) -> list[str]:
        """Returns the inns with all that is preferred, the cheapest first."""
        return [inn for inn, _, values in self.inns if all(value in values for _, value in self.preferences)]


class Travel(Gym):
    """The user wants an inn; he cares about one, two or three aspects by level, which he does not say.

    'action' with an aspect in it is answered by the preference, or that any will do; of several, the first counts.
    'search' with preferences lists the two cheapest inns that have them all. 'answer' with one inn ends the episode:
    1 for the cheapest that has all that is preferred, 0.8 for one that also has it, else 0.

    UserRL's TravelGym spans flights, cars, hotels and restaurants with dozens of options each, hints at preferences in
    a language model's words, pays for each that is elicited, and lets searches fail now and then. Here there is one
    kind of option, preferences are said plainly, and only the recommendation is paid for.
    """

    name = 'travel'
    goal = 'Find the inn: ask for preferences, search, then answer.'
    manual = (
        'choice "action", content a question about one aspect (area, room, meal): the user says what he prefers. '
        'choice "search", content all preferences: lists inns, the cheapest first. choice "answer", content one inn: '
        'ends the session.'
    )
    choices = ('action', 'search', 'answer')
    turn_limits = (6, 6, 6)
    words: ClassVar = (*ASPECTS, *(value for values in ASPECTS.values() for value in values), *INNS, *PRICES)

    def deal(self, rng: random.Random) -> Puzzle:
        profile = [rng.choice(values) for values in ASPECTS.values()]
        aspects = sorted(rng.sample(range(len(ASPECTS)), self.level))
        rows = []
        for i in range(len(INNS)):
            row = [rng.choice(values) for values in ASPECTS.values()]
            if i < MATCHES + DECOYS:
                for aspect in aspects:
                    row[aspect] = profile[aspect]
            if i >= MATCHES:  # something is amiss
                aspect = rng.choice(aspects)
                values = list(ASPECTS.values())[aspect]
                row[aspect] = rng.choice([value for value in values if value != profile[aspect]])
            rows.append(tuple(row))
        rng.shuffle(rows)
        inns = zip(rng.sample(INNS, len(INNS)), PRICES, rows, strict=True)
        return Puzzle(tuple((list(ASPECTS)[i], profile[i]) for i in aspects), tuple(inns))

    def open(self) -> str:
        return self.manner.say('I need an inn.')

    def reply(self, choice: str, content: str) -> Reply:
        if choice == 'answer':
            named, best = found(content, INNS), self.puzzle.best()
            right = len(named) == 1 and named[0] in best
            score = (1.0 if named[0] == best[0] else CORRECT) if right else 0.0
            return Reply(self.manner.say('Thank you.'), score=score)
        if choice == 'search':
            return self._search(found(content, [value for values in ASPECTS.values() for value in values]))
        asked = found(content, ASPECTS)
        if not asked:
            return refuse(f'ask about one of {", ".join(ASPECTS)}')
        value = dict(self.puzzle.preferences).get(asked[0])
        text = 'Any will do.' if value is None else self.rng.choice(('{}.', 'I like {}.', '{}, please.')).format(value)
        return self.tell(text, value or 'any', notes={asked[0]: value or 'any'})

    def _search(self, wanted: list[str]) -> Reply:
        if not wanted:
            return refuse('search for what the user prefers')
        hits = [(inn, price) for inn, price, values in self.puzzle.inns if set(wanted) <= set(values)][:SHOWN]
        text = ', '.join(f'{inn} {price}' for inn, price in hits) or 'No inn has all of that'
        return Reply(f'{text}.', notes={'found': hits[0][0], 'query': ' '.join(wanted)} if hits else {})

    def questions(self) -> list[Move]:
        """Every aspect, as often as a search for any one value, liked or not."""
        asks = [('action', f'{aspect}?') for aspect, values in ASPECTS.items() for _ in values]
        return asks + [('search', value) for values in ASPECTS.values() for value in values]

    def guess(self, rng: random.Random, notes: dict[str, str]) -> Move | None:
        likes = _likes(notes)
        moves = [('answer', notes['found'])] if 'found' in notes else []
        moves += [('search', ' '.join(likes))] if likes else []
        return rng.choice(moves) if moves else None

    def knows(self, notes: dict[str, str]) -> bool:
        return notes.get('found') == self.puzzle.best()[0]

    def plan(self) -> Move:
        for aspect in ASPECTS:
            if aspect not in self.notes:
                return 'action', f'{aspect}?'
        query = ' '.join(_likes(self.notes))
        return ('answer', self.notes['found']) if self.notes.get('query') == query else ('search', query)


def _likes(notes: dict[str, str]) -> list[str]:
    """Returns the preferences that were said."""
    return [notes[aspect] for aspect in ASPECTS if notes.get(aspect, 'any') != 'any']
