"""Persuade: a user holds a claim for reasons that he has to be asked for, and yields to arguments that meet them."""

import dataclasses
import random
from typing import ClassVar

from infopo_jax.envs.usergym.base import Gym
from infopo_jax.envs.usergym.moves import Move, Reply, found, refuse

CLAIMS = (
    'Schools should start at seven.',
    'Cities should ban bicycles.',
    'Museums should charge more.',
    'Nobody should work from home.',
)
CONCERNS = ('cost', 'safety', 'health', 'noise', 'time', 'fairness', 'privacy', 'custom')
EVIDENCE = ('figures', 'examples', 'studies', 'experts')
PATIENCE = 2  # arguments that miss before the user leaves


@dataclasses.dataclass(frozen=True)
class Puzzle:
    """A claim, the concerns behind it in their order, and the evidence that meets each."""

    claim: str
    concerns: tuple[tuple[str, str], ...]  # (concern, evidence)


class Persuade(Gym):
    """The user makes a claim because of 2, 3 or 4 concerns by level, each open to one kind of evidence.

    'action' is either the question why, which brings out the concern that he has in mind, or an argument: a concern and
    a kind of evidence. The right one for the concern in mind moves him on to the next; after two that miss he leaves.
    The episode scores the share of concerns met, and ends when all are.

    UserRL's PersuadeGym lets a language model judge free arguments and say which of seven stances it now takes. Here
    what convinces is hidden but exact, and can be found out by asking.
    """

    name = 'persuade'
    goal = 'Change his mind: ask why, then argue.'
    manual = (
        'choice "action", content "why?" or an argument, which is a concern (cost, safety, health, noise, time, '
        'fairness, privacy, custom) and a kind of evidence (figures, examples, studies, experts).'
    )
    choices = ('action',)
    turn_limits = (6, 8, 10)
    words: ClassVar = (*CONCERNS, *EVIDENCE, 'why')

    def deal(self, rng: random.Random) -> Puzzle:
        concerns = rng.sample(CONCERNS, self.level + 1)
        return Puzzle(rng.choice(CLAIMS), tuple((concern, rng.choice(EVIDENCE)) for concern in concerns))

    def open(self) -> str:
        self._met, self._missed = 0, 0
        return self.manner.say(self.puzzle.claim)

    def reply(self, choice: str, content: str) -> Reply:
        concern, evidence = self.puzzle.concerns[self._met]
        argued = found(content, CONCERNS), found(content, EVIDENCE)
        if found(content, ['why']) and not any(argued):
            text = self.rng.choice(('My worry is {}, show me {}.', 'Think of {}. I trust {}.'))
            notes = {'concern': concern, 'evidence': evidence}
            return self.tell(text.format(concern, evidence), f'{concern}, {evidence}', notes=notes)
        if not all(len(words) == 1 for words in argued):
            return refuse('ask why, or argue with one concern and one kind of evidence')
        if argued != ([concern], [evidence]):
            self._missed += 1
            missed = self.manner.say('That misses my point.')
            return Reply(missed, score=self.partial() if self._missed == PATIENCE else None)
        self._met += 1
        if self._met == len(self.puzzle.concerns):
            return Reply(self.manner.say('You have convinced me.'), score=1.0)
        return Reply(self.manner.say('Fair enough, but still.'), notes={'concern': '', 'evidence': ''})

    def questions(self) -> list[Move]:
        """Asking why, and every argument: as often the one as the other."""
        arguments = [('action', f'{concern} {evidence}') for concern in CONCERNS for evidence in EVIDENCE]
        return [('action', 'why?')] * len(arguments) + arguments

    def guess(self, rng: random.Random, notes: dict[str, str]) -> Move | None:
        return ('action', f'{notes["concern"]} {notes["evidence"]}') if notes.get('concern') else None

    def knows(self, notes: dict[str, str]) -> bool:
        concern, _ = self.puzzle.concerns[self._met]
        return self._met + 1 == len(self.puzzle.concerns) and notes.get('concern') == concern

    def plan(self) -> Move:
        if not self.notes.get('concern'):
            return 'action', 'why?'
        return 'action', f'{self.notes["concern"]} {self.notes["evidence"]}'

    def partial(self) -> float:
        return self._met / len(self.puzzle.concerns)
