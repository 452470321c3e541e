"""Search: questions of one to three hops over a small library, which BM25 searches."""

import dataclasses
import functools
import random
from typing import ClassVar

import bm25s

from infopo_jax.envs.usergym.base import Gym
from infopo_jax.envs.usergym.moves import Move, Reply, found, refuse

FIRMS = ('Orix', 'Velum', 'Tarn', 'Quillon', 'Brask', 'Nimbo', 'Halden', 'Zefir')
PEOPLE = ('Mira', 'Odo', 'Lena', 'Tibor', 'Signe', 'Rufus', 'Ines', 'Walt', 'Petra', 'Yuri', 'Clio', 'Abel')
TOWNS = ('Arvik', 'Belmont', 'Corran', 'Duna', 'Esker', 'Fjord', 'Gorse', 'Hyde')
RIVERS = ('Avon', 'Brue', 'Cam', 'Dee', 'Wye', 'Frome', 'Glen', 'Hull')
NAMES = (*FIRMS, *PEOPLE, *TOWNS, *RIVERS)
RELATIONS = {  # relation -> whose it is, what it is
    'founder': (FIRMS, PEOPLE),
    'rival': (FIRMS, FIRMS),
    'teacher': (PEOPLE, PEOPLE),
    'home': (PEOPLE, TOWNS),
    'mayor': (TOWNS, PEOPLE),
    'river': (TOWNS, RIVERS),
}
WORLDS = 200  # libraries; each has facts of its own, so that what was read in one is of no use in another
SHOWN = 2  # texts in a search result
CACHED_WORLDS = 256
CACHED_QUERIES = 65536  # a warm start repeats the same few


@dataclasses.dataclass(frozen=True)
class Puzzle:
    """A question: start at a name, follow the relations."""

    world: int
    start: str
    path: tuple[str, ...]  # relations, in the order in which they are followed


@functools.cache
def facts(world: int) -> dict[tuple[str, str], str]:
    """Returns (relation, name) -> name of one library.

    A relation of a group to itself goes round in one circle: nothing is related to itself, and a search for
    "teacher Mira" matches two texts equally, whose teacher she is and who hers is, and no third.
    """
    rng = random.Random(f'library {world}')
    found_out = {}
    for relation, (names, targets) in RELATIONS.items():
        circle = rng.sample(names, len(names))
        drawn = circle[1:] + circle[:1] if names is targets else rng.choices(targets, k=len(names))
        found_out |= {(relation, name): target for name, target in zip(circle, drawn, strict=True)}
    return found_out


@functools.lru_cache(maxsize=CACHED_WORLDS)
def library(world: int) -> tuple[bm25s.BM25, tuple[str, ...]]:
    """Returns the index of a library, and its texts."""
    texts = tuple(f'The {relation} of {name} is {target}.' for (relation, name), target in facts(world).items())
    index = bm25s.BM25()
    index.index(bm25s.tokenize(list(texts), show_progress=False), show_progress=False)
    return index, texts


class Search(Gym):
    """The user asks for a fact that follows from one, two or three texts of a library, by level.

    'search' shows the two texts that match best, by BM25; 'answer' ends the episode: 1 if it names what was asked for
    and no other name, else 0.

    UserRL's SearchGym asks questions about the world, searches the web by a paid service, and has a language model
    compare the answer. Here the library is small and made up, another for every few tasks, and the comparison exact.
    """

    name = 'search'
    goal = 'Answer from the library: search, then answer.'
    manual = (
        'choice "search", content a few words: the texts that match best. choice "answer", content the name that was '
        'asked for: ends the session.'
    )
    choices = ('search', 'answer')
    turn_limits = (4, 6, 8)
    words: ClassVar = (*NAMES, *RELATIONS)
    talks = False  # it is the library that answers

    def deal(self, rng: random.Random) -> Puzzle:
        world = rng.randrange(WORLDS)
        while True:
            start, path = rng.choice((*FIRMS, *PEOPLE, *TOWNS)), []
            name = start
            for _ in range(self.level):
                path.append(rng.choice([relation for relation, (names, _) in RELATIONS.items() if name in names]))
                name = facts(world)[path[-1], name]
                if name in RIVERS:  # they have no relations
                    break
            if len(path) == self.level and name != start:
                return Puzzle(world, start, tuple(path))

    def open(self) -> str:
        links = ''.join(f'the {relation} of ' for relation in reversed(self.puzzle.path))
        return f'What is {links}{self.puzzle.start}?'

    def reply(self, choice: str, content: str) -> Reply:
        if choice == 'answer':
            target = _follow(self.puzzle, {f'{r} of {n}': t for (r, n), t in facts(self.puzzle.world).items()})[0]
            return Reply('Thank you.', score=float(found(content, NAMES) == [target]))
        hits = search(self.puzzle.world, content)
        if not hits:
            return refuse('nothing found, try other words')
        notes = {text[len('The ') : text.index(' is ')]: text[text.index(' is ') + len(' is ') : -1] for text in hits}
        return Reply(' '.join(hits), notes=notes)

    def questions(self) -> list[Move]:
        names = dict.fromkeys([self.puzzle.start, *self.notes.values()])
        return [('search', f'{relation} {name}') for name in names for relation in RELATIONS]

    def guess(self, rng: random.Random, notes: dict[str, str]) -> Move | None:
        return ('answer', rng.choice(list(notes.values()))) if notes else None

    def knows(self, notes: dict[str, str]) -> bool:
        return _follow(self.puzzle, notes)[1] is None

    def plan(self) -> Move:
        name, missing = _follow(self.puzzle, self.notes)
        return ('answer', name) if missing is None else ('search', f'{missing} {name}')


@functools.lru_cache(maxsize=CACHED_QUERIES)
def search(world: int, query: str) -> tuple[str, ...]:
    """Returns the texts of a library that match a query best, the best first; none that shares no word with it."""
    index, texts = library(world)
    words = bm25s.tokenize([query], show_progress=False, return_ids=False)
    hits, scores = index.retrieve(words, k=SHOWN, show_progress=False)
    return tuple(texts[hit] for hit, score in zip(hits[0], scores[0], strict=True) if score > 0)


def _follow(puzzle: Puzzle, known: dict[str, str]) -> tuple[str, str | None]:
    """Follows a question's path as far as is known; returns the name reached and the relation that is missing there."""
    name = puzzle.start
    for relation in puzzle.path:
        if f'{relation} of {name}' not in known:
            return name, relation
        name = known[f'{relation} of {name}']
    return name, None
