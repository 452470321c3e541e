"""Telepathy: which of the creatures in a table the user thinks of, found by yes/no questions about their attributes."""

import dataclasses
import itertools
import random
from typing import ClassVar

from infopo_jax.envs.usergym.base import Gym
from infopo_jax.envs.usergym.moves import Move, Reply, found, refuse

CREATURES = ('ibex', 'wren', 'newt', 'carp', 'moth', 'toad', 'lynx', 'crow', 'seal', 'hare', 'wasp', 'mole')
ATTRIBUTES = (('small', 'large'), ('red', 'grey'), ('tame', 'wild'), ('quick', 'slow'))
SIZES = ((4, 2), (6, 3), (10, 4))  # by level: creatures, attributes


@dataclasses.dataclass(frozen=True)
class Puzzle:
    """Creatures with their attributes, no two alike, and the one that the user thinks of."""

    table: tuple[tuple[str, ...], ...]  # rows: creature, then a value of each attribute
    target: str


class Telepathy(Gym):
    """The user shows a table of creatures and thinks of one.

    'action' with an attribute in it is answered yes or no, and so is the name of a creature; of several, the first
    counts. 'answer' with one name ends the episode: 1 if it is right, else 0.

    UserRL's TelepathyGym thinks of anything in the world and has a language model answer; knowledge of the world is
    what splits the possibilities, and a wrong guess may be followed by others. Here all there is to know stands in the
    table, another for every task, and there is one answer.
    """

    name = 'telepathy'
    goal = 'Find what the user thinks of: ask yes/no questions, then answer.'
    manual = (
        'choice "action", content a yes/no question about one attribute: the user says yes or no. choice "answer", '
        'content the name: ends the session.'
    )
    choices = ('action', 'answer')
    turn_limits = (4, 6, 8)
    words: ClassVar = ('yes', 'no', *CREATURES, *itertools.chain(*ATTRIBUTES))

    def deal(self, rng: random.Random) -> Puzzle:
        num_rows, num_attributes = SIZES[self.level - 1]
        profiles = rng.sample(list(itertools.product(*ATTRIBUTES[:num_attributes])), num_rows)
        names = rng.sample(CREATURES, num_rows)
        return Puzzle(tuple((name, *values) for name, values in zip(names, profiles, strict=True)), rng.choice(names))

    def open(self) -> str:
        return ' '.join(f'{" ".join(row)}.' for row in self.puzzle.table)

    def reply(self, choice: str, content: str) -> Reply:
        names = [row[0] for row in self.puzzle.table]
        if choice == 'answer':
            return Reply(self.manner.say('Well.'), score=float(found(content, names) == [self.puzzle.target]))
        asked = found(content, {word for row in self.puzzle.table for word in row})
        if not asked:
            return refuse('ask about an attribute or a name of the table')
        secret = next(row for row in self.puzzle.table if row[0] == self.puzzle.target)
        verdict = 'yes' if asked[0] in secret else 'no'
        return self.tell(f'{verdict}.', verdict, notes={asked[0]: verdict})

    def questions(self) -> list[Move]:
        words = dict.fromkeys(word for row in self.puzzle.table for word in row[1:])
        return [('action', f'{word}?') for word in words]

    def guess(self, rng: random.Random, notes: dict[str, str]) -> Move | None:
        """Names a creature of the table, whatever the notes say: to read the table is what has to be learnt."""
        return 'answer', rng.choice(self.puzzle.table)[0]

    def knows(self, notes: dict[str, str]) -> bool:
        return len(self._left(notes)) == 1

    def plan(self) -> Move:
        left = self._left(self.notes)
        if len(left) == 1:
            return 'answer', left[0][0]
        words = sorted({word for row in left for word in row[1:]})
        return 'action', f'{min(words, key=lambda word: abs(2 * sum(word in row for row in left) - len(left)))}?'

    def _left(self, notes: dict[str, str]) -> list[tuple[str, ...]]:
        """Returns the rows that may be meant by the notes."""
        return [row for row in self.puzzle.table if all((word in row) == (v == 'yes') for word, v in notes.items())]
