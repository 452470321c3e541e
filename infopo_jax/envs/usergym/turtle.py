"""Turtle: the story behind a strange scene, found by yes/no questions."""

import dataclasses
import random
from typing import ClassVar

from infopo_jax.envs.usergym.base import Gym
from infopo_jax.envs.usergym.moves import Move, Reply, found, refuse

SCENES = (
    'A boat came back with nobody on board.',
    'The clock of the town hall stood still at noon.',
    'A light burnt all night in an empty house.',
    'The statue in the park had lost its head.',
)
FACTS = {
    'who': ('sailor', 'widow', 'doctor', 'thief', 'baker', 'twin'),
    'why': ('love', 'debt', 'fear', 'pride', 'envy', 'grief'),
    'how': ('rope', 'poison', 'mirror', 'candle', 'letter', 'key'),
}
SIZES = ((2, 3), (3, 3), (3, 4))  # by level: facts of a story, candidates for each


@dataclasses.dataclass(frozen=True)
class Puzzle:
    """A scene, the candidates for each fact of the story behind it, and which of them are true."""

    scene: str
    candidates: tuple[tuple[str, ...], ...]  # in the order of FACTS
    story: tuple[str, ...]  # one candidate of each


class Turtle(Gym):
    """The user shows a scene and what might be behind it: who, why and how, with a few candidates for each.

    'action' with a candidate in it is answered yes or no; of several, the first counts. 'answer' ends the episode with
    the share of facts of which it names the true candidate and no other.

    UserRL's TurtleGym has free stories of several sentences with a language model as the judge of questions and
    answers, scores an answer by weighted criteria, and lets the agent answer again. Here the facts are a list, the
    candidates are shown, and there is one answer.
    """

    name = 'turtle'
    goal = 'Find the story: ask yes/no questions, then answer.'
    manual = (
        'choice "action", content a yes/no question that names one candidate: the user says yes or no. choice '
        '"answer", content the true candidates: ends the session.'
    )
    choices = ('action', 'answer')
    turn_limits = (6, 9, 12)
    words: ClassVar = ('yes', 'no', *(word for words in FACTS.values() for word in words))

    def deal(self, rng: random.Random) -> Puzzle:
        num_facts, num_candidates = SIZES[self.level - 1]
        candidates = tuple(tuple(rng.sample(words, num_candidates)) for words in list(FACTS.values())[:num_facts])
        return Puzzle(rng.choice(SCENES), candidates, tuple(rng.choice(words) for words in candidates))

    def open(self) -> str:
        parts = [f'{fact}: {" ".join(words)}.' for fact, words in zip(FACTS, self.puzzle.candidates, strict=False)]
        return ' '.join([self.manner.say(self.puzzle.scene), *parts])

    def reply(self, choice: str, content: str) -> Reply:
        story = self.puzzle.story
        if choice == 'answer':
            named = [found(content, words) for words in self.puzzle.candidates]
            right = sum(words == [fact] for words, fact in zip(named, story, strict=True))
            return Reply(self.manner.say('The end.'), score=right / len(story))
        asked = found(content, [word for words in self.puzzle.candidates for word in words])
        if not asked:
            return refuse('ask about one of the candidates')
        verdict = 'yes' if asked[0] in story else 'no'
        return self.tell(f'{verdict}.', verdict, notes={asked[0]: verdict})

    def questions(self) -> list[Move]:
        return [('action', f'{word}?') for words in self.puzzle.candidates for word in words]

    def guess(self, rng: random.Random, notes: dict[str, str]) -> Move | None:
        """Names what was confirmed, and of the other facts any candidate, ruled out or not: that is to be learnt."""
        chosen = [[w for w in words if notes.get(w) == 'yes'] or words for words in self.puzzle.candidates]
        return 'answer', ' '.join(rng.choice(words) for words in chosen)

    def knows(self, notes: dict[str, str]) -> bool:
        return all(len(left) == 1 for left in self._left(notes))

    def plan(self) -> Move:
        left = self._left(self.notes)
        asked = next((words[0] for words in left if len(words) > 1), None)
        return ('action', f'{asked}?') if asked else ('answer', ' '.join(words[0] for words in left))

    def _left(self, notes: dict[str, str]) -> list[list[str]]:
        """Returns the candidates of each fact that may be true by the notes."""
        ruled_out = {word for word, verdict in notes.items() if verdict == 'no'}
        for words in self.puzzle.candidates:
            if any(notes.get(word) == 'yes' for word in words):
                ruled_out |= {word for word in words if notes.get(word) != 'yes'}
        return [[word for word in words if word not in ruled_out] for words in self.puzzle.candidates]
