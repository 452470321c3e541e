"""The rules, in plain Python: squares, moves, boards as text, the score, a solver.

RAGEN (https://github.com/RAGEN-AI/RAGEN, environment SimpleSokoban, arXiv 2504.20073) plays gym-sokoban
(https://github.com/mpSchrader/gym-sokoban): a move steps or pushes, and a move that can do neither changes nothing but
counts. A move costs 0.1; a box that comes onto its target earns 1, one that leaves it costs 1 (with one box the game
has ended by then), and a solved board earns 10. RAGEN takes 0.1 for a turn with something in it that is no move.

A square is its index in the inner 4x4 squares, row by row; the border is wall.
"""

import collections
import dataclasses
import functools
from typing import Any

import numpy as np

INNER = 4  # rows and columns inside the border
NUM_SQUARES = INNER * INNER
MOVES = ('Up', 'Down', 'Left', 'Right')
MOVE_LIMIT = 10  # moves a game
TURN_MOVES = 5  # moves a turn
TEST_PART = 5  # a board is held out if its checksum is 0 modulo this
LEVELS = {1: 3, 2: 6, 3: MOVE_LIMIT}  # level -> moves of the longest shortest solution
REWARDS = ('ragen', 'sparse')
MOVE_COST, ON_REWARD, SOLVED_REWARD, FORMAT_COST = 0.1, 1.0, 10.0, 0.1


def _neighbours() -> np.ndarray:
    """Returns the square that lies in each direction of each square [4, NUM_SQUARES] int32, -1 for the border."""
    row, column = np.divmod(np.arange(NUM_SQUARES), INNER)
    steps = ((-1, 0), (1, 0), (0, -1), (0, 1))
    moved = [(row + down, column + right) for down, right in steps]
    inside = [(r >= 0) & (r < INNER) & (c >= 0) & (c < INNER) for r, c in moved]
    return np.stack([np.where(ok, r * INNER + c, -1) for ok, (r, c) in zip(inside, moved, strict=True)]).astype(
        np.int32
    )


NEIGHBOURS = _neighbours()
_NEXT = NEIGHBOURS.tolist()


def score(moves: Any, placed: Any, solved: Any, penalties: Any, *, reward: str) -> Any:
    """Returns the outcome of a game; works on numbers and on arrays.

    Args:
        moves: made so far.
        placed: times that a box came onto the target, less times that it left it.
        solved: whether the box is on the target.
        penalties: turns with something in them that is no move, or without a move.
        reward: 'ragen', the sum of rewards; 'sparse', 1 for a solved board.
    """
    if reward == 'sparse':
        return solved * 1.0
    return ON_REWARD * placed + SOLVED_REWARD * solved - MOVE_COST * moves - FORMAT_COST * penalties


def outcome_range(reward: str, turn_limit: int) -> float:
    """Returns the largest minus the smallest outcome: solved by one move; all moves made, and a penalty every turn."""
    best = score(1, 1, 1, 0, reward=reward)
    return best - score(MOVE_LIMIT, 0, 0, turn_limit, reward=reward)


def check_knobs(turn_limit: int, level: int, reward: str) -> None:
    """Raises ValueError for a knob outside its range, or for turns in which the longest solution has no room."""
    rules = {
        'turn_limit': (turn_limit, 1 <= turn_limit <= MOVE_LIMIT, f'from 1 to the {MOVE_LIMIT} moves of a game'),
        'level': (level, level in LEVELS, f'one of {list(LEVELS)}'),
        'reward': (reward, reward in REWARDS, f'one of {list(REWARDS)}'),
    }
    for knob, (value, fits, wanted) in rules.items():
        if not fits:
            raise ValueError(f'{knob} must be {wanted}, got {value!r}')
    longest, room = LEVELS[level], turn_limit * TURN_MOVES
    if room < longest:
        raise ValueError(
            f'turn_limit must be at least {-(-longest // TURN_MOVES)} at level {level}, whose longest solution has '
            f'{longest} moves, {TURN_MOVES} a turn; got {turn_limit!r}'
        )


@dataclasses.dataclass(frozen=True)
class Board:
    """A position."""

    walls: frozenset[int]
    target: int
    player: int
    box: int

    @property
    def solved(self) -> bool:
        """Whether the box is on the target."""
        return self.box == self.target

    @property
    def split(self) -> str:
        """'train' or 'test': by walls and target, so that no position of a held-out board occurs in training."""
        return 'train' if (self.target + sum(self.walls)) % TEST_PART else 'test'

    def move(self, direction: int) -> 'Board':
        """Returns the board after a move, itself if the move can do nothing."""
        ahead = _NEXT[direction][self.player]
        if not self._is_floor(ahead):
            return self
        if ahead != self.box:
            return dataclasses.replace(self, player=ahead)
        beyond = _NEXT[direction][ahead]
        return dataclasses.replace(self, player=ahead, box=beyond) if self._is_floor(beyond) else self

    def text(self) -> str:
        """Returns six lines of RAGEN's symbols, each with a space on either side."""
        cells = ['_'] * NUM_SQUARES
        for wall in self.walls:
            cells[wall] = '#'
        cells[self.target] = 'O'
        cells[self.box] = '√' if self.solved else 'X'
        cells[self.player] = 'S' if self.player == self.target else 'P'
        border = ['#'] * (INNER + 2)
        inner = [['#', *cells[i : i + INNER], '#'] for i in range(0, NUM_SQUARES, INNER)]
        return '\n'.join(''.join(f' {cell} ' for cell in row) for row in [border, *inner, border])

    def task(self) -> str:
        """Returns the board as a task id: its six lines without spaces, joined by '/'."""
        return self.text().replace(' ', '').replace('\n', '/')

    @classmethod
    def of(cls, task: str) -> 'Board':
        """Reads a task id.

        Raises:
            ValueError: it is no board of this size with one player, one box and one target.
        """
        border = '#' * (INNER + 2)
        rows = str(task).split('/')
        framed = rows[:1] == rows[-1:] == [border] and all(row[:1] == row[-1:] == '#' for row in rows)
        cells = ''.join(row[1:-1] for row in rows[1:-1])
        at = {symbol: [i for i, cell in enumerate(cells) if cell in symbol] for symbol in ('#', 'OS√', 'PS', 'X√')}
        fits = (
            framed
            and {len(row) for row in rows} == {INNER + 2}
            and len(cells) == NUM_SQUARES
            and set(cells) <= set('#_O√XPS')
        )
        if not fits or any(len(at[symbol]) != 1 for symbol in ('OS√', 'PS', 'X√')):
            raise ValueError(
                f'unknown task {task!r}: a board is {INNER + 2} lines joined by "/", such as '
                f'"{"/".join([border, "#P___#", "#_X__#", "#__O_#", "#____#", border])}"; tasks(split) lists some'
            )
        return cls(frozenset(at['#']), at['OS√'][0], at['PS'][0], at['X√'][0])

    def _is_floor(self, square: int) -> bool:
        return square >= 0 and square not in self.walls


@functools.lru_cache(maxsize=4096)
def solve(board: Board) -> tuple[int, ...] | None:
    """Returns a shortest solution as directions, None if there is none; breadth first."""
    paths, queue = {board: ()}, collections.deque([board])
    while queue:
        now = queue.popleft()
        if now.solved:
            return paths[now]
        for direction in range(len(MOVES)):
            new = now.move(direction)
            if new not in paths:
                paths[new] = (*paths[now], direction)
                queue.append(new)
    return None
