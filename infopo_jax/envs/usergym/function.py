"""Function: a hidden rule on four numbers, found by trying, applied to a test case."""

import dataclasses
import functools
import itertools
import random
import re
from typing import ClassVar

from infopo_jax.envs.usergym.base import Gym
from infopo_jax.envs.usergym.moves import Move, Reply, refuse

NAMES = 'abcd'
OPERATORS = {'+': int.__add__, '-': int.__sub__, '*': int.__mul__}
TRIALS = ('2 3 5 9', '7 4 8 1', '9 6 2 5', '3 8 7 4', '5 1 6 8', '8 9 3 2', '1 7 4 6', '6 5 9 3')
_NUMBER = re.compile(r'-?\d+')

Numbers = tuple[int, ...]
Rule = tuple[str, ...]  # 'b' or 'a', '*', 'c' or 'a', '+', 'd', '*', 'b', '-', 'c': applied from left to right


@functools.cache
def rules(level: int) -> tuple[Rule, ...]:
    """Returns the rules of a level: one of the numbers; two of them and an operator; all four in any order."""
    size = (1, 2, 4)[level - 1]
    orders, operators = itertools.permutations(NAMES, size), list(itertools.product(OPERATORS, repeat=size - 1))
    mixed = (itertools.zip_longest(order, signs, fillvalue='') for order in orders for signs in operators)
    return tuple(tuple(part for pair in pairs for part in pair if part) for pairs in mixed)


def value(rule: Rule, numbers: Numbers) -> int:
    """Applies a rule to four numbers, from left to right."""
    of = dict(zip(NAMES, numbers, strict=True))
    result = of[rule[0]]
    for operator, name in zip(rule[1::2], rule[2::2], strict=True):
        result = OPERATORS[operator](result, of[name])
    return result


@functools.lru_cache(maxsize=1024)
def values(level: int, numbers: Numbers) -> tuple[int, ...]:
    """Returns the value of every rule of a level for four numbers."""
    return tuple(value(rule, numbers) for rule in rules(level))


@dataclasses.dataclass(frozen=True)
class Puzzle:
    """A rule, and the numbers to which it is to be applied."""

    rule: Rule
    test: Numbers


class Function(Gym):
    """The user has a rule on four numbers in mind.

    'action' with four numbers is answered by the rule's value, except for the test case; 'search' with 'test' shows the
    test case; 'answer' with the rule's value there ends the episode: 1 if it is right, else 0. By level the rule is one
    of the four numbers, an operation on two of them, or operations on all four in some order.

    UserRL's FunctionGym has written rules with division, powers and brackets as well, and a wrong answer may be
    followed by others. Here rules are applied from left to right, and the first answer counts.
    """

    name = 'function'
    goal = 'Find the rule: try numbers, search the test case, then answer.'
    manual = (
        'choice "action", content four whole numbers: the value of the hidden rule. choice "search", content "test": '
        'the test case. choice "answer", content the value of the rule for the test case: ends the session.'
    )
    choices = ('action', 'search', 'answer')
    turn_limits = (5, 7, 12)
    words: ClassVar = (*'0123456789', 'test')
    talks = False  # he answers in numbers only

    def deal(self, rng: random.Random) -> Puzzle:
        return Puzzle(rng.choice(rules(self.level)), tuple(rng.sample(range(1, 10), len(NAMES))))

    def open(self) -> str:
        return 'My rule is ready.'

    def reply(self, choice: str, content: str) -> Reply:
        if choice == 'search':
            if content.strip().lower() != 'test':
                return refuse('search only for "test"')
            return Reply(f'{_text(self.puzzle.test)}.', notes={'test': _text(self.puzzle.test)})
        numbers = tuple(int(number[:9]) for number in _NUMBER.findall(content))
        if choice == 'answer':
            return Reply('Noted.', score=float(numbers == (value(self.puzzle.rule, self.puzzle.test),)))
        if len(numbers) != len(NAMES):
            return refuse('give four numbers')
        if numbers == self.puzzle.test:
            return refuse('that is the test case')
        result = str(value(self.puzzle.rule, numbers))
        return Reply(f'{result}.', notes={_text(numbers): result})

    def questions(self) -> list[Move]:
        return [('search', 'test')] * len(TRIALS) + [('action', trial) for trial in TRIALS]

    def guess(self, rng: random.Random, notes: dict[str, str]) -> Move | None:
        """Copies a number of the test case."""
        return ('answer', rng.choice(notes['test'].split())) if 'test' in notes else None

    def knows(self, notes: dict[str, str]) -> bool:
        return len(self._answers(notes)) == 1

    def plan(self) -> Move:
        if 'test' not in self.notes:
            return 'search', 'test'
        answers = self._answers(self.notes)
        if len(answers) == 1:
            return 'answer', str(answers.pop())
        return 'action', next(trial for trial in TRIALS if trial not in self.notes and trial != self.notes['test'])

    def _answers(self, notes: dict[str, str]) -> set[int]:
        """Returns the values at the test case of all rules that agree with what has been tried."""
        if 'test' not in notes:
            return set()
        answers = values(self.level, _numbers(notes['test']))
        tried = [(values(self.level, _numbers(key)), int(result)) for key, result in notes.items() if key != 'test']
        return {answer for i, answer in enumerate(answers) if all(tries[i] == result for tries, result in tried)}


def _numbers(text: str) -> Numbers:
    return tuple(int(number) for number in text.split())


def _text(numbers: Numbers) -> str:
    return ' '.join(map(str, numbers))
