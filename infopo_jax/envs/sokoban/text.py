"""Sokoban as text: the board is drawn, and moves stand in ``<answer>Right || Up</answer>``."""

import random
import re

from infopo_jax.envs.sokoban import boards, rules
from infopo_jax.envs.sokoban.rules import MOVE_LIMIT, MOVES, TURN_MOVES, Board
from infopo_jax.envs.text import Message

NUM_TASKS = {'train': 1024, 'test': 256}  # drawn; boards that come up twice count once
SEPARATOR = ' || '
RULES = f"""You solve a Sokoban board: push the box onto the target.
You push the box by walking into it; you cannot pull it, nor push it into a wall.
 # wall,  _ floor,  O target,  X box,  √ box on target,  P you,  S you on target.
Moves: {', '.join(MOVES)}. Write at most {TURN_MOVES} a turn, such as <answer>Right{SEPARATOR}Up</answer>."""
MALFORMED = f'Error: no move in that. Write moves like <answer>Right{SEPARATOR}Up</answer>.'

_ANSWER = re.compile(r'<answer>(.*?)</answer>', re.DOTALL)
_DIRECTIONS = {move.lower(): direction for direction, move in enumerate(MOVES)}
_CELLS = tuple(f' {cell} ' for cell in '#_O√XPS')
_HIDE = 0.15  # share of replies in warm-start examples that show the placeholder
_REPEATS = 40  # of the texts that stand in every prompt, in the corpus


def parse(text: str) -> list[int | None]:
    """Returns what stands in the first answer, None for what is no move; five entries at most, none without an answer.

    An answer inside a thought (before ``</think>``) is not one.
    """
    match = _ANSWER.search(text.rpartition('</think>')[2])
    words = [word.strip().lower() for word in match[1].split('||')] if match else []
    return [_DIRECTIONS.get(word) for word in words if word][:TURN_MOVES]


def render(directions: list[int] | tuple[int, ...]) -> str:
    """Writes moves as ``parse`` reads them."""
    return f'<answer>{SEPARATOR.join(MOVES[direction] for direction in directions)}</answer>'


class SokobanText:
    """The game; implements ``TextEnv``, ``Scored`` and ``Teachable``. A task id is the board itself.

    What is no move is dropped and costs a penalty, as does a turn without a move, which is answered with an error.
    Beside what ``rules`` and ``boards`` say, it differs from RAGEN in what the agent reads: replies do not tell the
    reward, and the rules stand in the system prompt.

    Args:
        turn_limit: turns of the agent, enough for the longest solution of the level.
        level: 1, boards that at most 3 moves solve; 2, 6 moves; 3, 10 moves.
        reward: 'ragen', the sum of move rewards and penalties; 'sparse', 1 for a solved board.

    Raises:
        ValueError: a knob outside its range.
    """

    placeholder = 'No information found.'

    def __init__(self, *, turn_limit: int = 5, level: int = 3, reward: str = 'ragen'):
        rules.check_knobs(turn_limit, level, reward)
        self.max_turns, self.level, self.reward = turn_limit, level, reward
        self.outcome_range = rules.outcome_range(reward, turn_limit)
        self._board: Board | None = None

    def tasks(self, split: str) -> list[str]:
        """Returns the boards of split 'train' or 'test'; no walls and target of one occur in the other."""
        if split not in NUM_TASKS:
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        return list(boards.tasks(split, self.level, NUM_TASKS[split]))

    def reset(self, *, seed: int = 0, options: dict | None = None) -> tuple[list[Message], dict]:
        """Starts the board ``options['task']``, by default a training board drawn by the seed.

        Raises:
            ValueError: the task is no board, or one that is solved already.
        """
        task = (options or {}).get('task')
        task = random.Random(seed).choice(self.tasks('train')) if task is None else task
        board = Board.of(task)
        if board.solved:
            raise ValueError(f'task {task!r} is solved already: put the box elsewhere')
        self._board, self._moves, self._placed, self._penalties, self._turns = board, 0, 0, 0, 0
        messages = [{'role': 'system', 'content': RULES}, {'role': 'user', 'content': self._view()}]
        return messages, {'task': task}

    def step(self, text: str) -> tuple[list[Message], float, bool, bool, dict]:
        """Plays the moves of an answer until the board is solved or no move is left.

        Raises:
            ValueError: there is no game to go on with.
        """
        if self._board is None:
            raise ValueError('no episode is running: call reset first')
        before, entries = self._score(), parse(text)
        directions = [direction for direction in entries if direction is not None]
        self._turns += 1
        self._penalties += len(directions) < max(1, len(entries))
        for direction in directions:
            if self._board.solved or self._moves == MOVE_LIMIT:
                break
            board = self._board.move(direction)
            self._placed += board.solved - self._board.solved
            self._board, self._moves = board, self._moves + 1
        reward, is_error = self._score() - before, not directions
        messages = [{'role': 'user', 'content': MALFORMED if is_error else self._view()}]
        terminated = self._board.solved
        truncated = not terminated and (self._moves == MOVE_LIMIT or self._turns >= self.max_turns)
        info = {'is_error': is_error}
        if terminated or truncated:
            info |= {'success': terminated, 'outcome': self._score()}
            self._board = None
        return messages, reward, terminated, truncated, info

    def score(self, num_turns: int) -> float:
        """Returns the outcome of the game if it is cut after so many turns; see ``envs.text.Scored``.

        Turns that were too long to be heard had no move in them, and cost a penalty each.
        """
        unheard = num_turns - self._turns
        return self._score() + rules.score(0, 0, False, unheard, reward=self.reward)

    def expert(self) -> str:
        """Returns the moves of a shortest solution, five at most; any move where there is no solution."""
        return render((rules.solve(self._board) or (0,))[:TURN_MOVES])

    def random_action(self, rng: random.Random) -> str:
        """Returns one to five random moves."""
        return render(rng.choices(range(len(MOVES)), k=rng.randint(1, TURN_MOVES)))

    def special_tokens(self) -> list[str]:
        """Returns cells, moves and the marks around them, each to be one token."""
        return [*_CELLS, *MOVES, '<answer>', '</answer>', SEPARATOR]

    def corpus(self) -> list[str]:
        """Returns what an agent meets or writes: rules, error, placeholder, boards, answers."""
        rng = random.Random(0)
        drawn = [self.example(rng) for _ in range(50)]
        texts = [message['content'] for history, _ in drawn for message in history[1:]]
        return [*texts, *(target for _, target in drawn), *[RULES, MALFORMED, self.placeholder] * _REPEATS]

    def example(self, rng: random.Random) -> tuple[list[Message], str]:
        """Draws one warm-start transition: random moves, each of which changes the board and none of which solves it.

        Some boards are replaced by the placeholder, to make it familiar.
        """
        env = SokobanText(turn_limit=self.max_turns, level=self.level, reward=self.reward)
        history, _ = env.reset(options={'task': rng.choice(self.tasks('train'))})
        for turns_left in range(rng.randrange(self.max_turns), 0, -1):  # each later turn needs a move
            action = render(_stroll(rng, env._board, MOVE_LIMIT - env._moves - turns_left))
            answer = env.placeholder if rng.random() < _HIDE else None
            [message] = env.step(action)[0]
            message = message if answer is None else message | {'content': answer}
            history += [{'role': 'assistant', 'content': action}, message]
        return history, render(_stroll(rng, env._board, MOVE_LIMIT - env._moves))

    def _score(self) -> float:
        return rules.score(self._moves, self._placed, self._board.solved, self._penalties, reward=self.reward)

    def _view(self) -> str:
        return f'{self._board.text()}\nMoves left: {MOVE_LIMIT - self._moves}.'


def _stroll(rng: random.Random, board: Board, limit: int) -> list[int]:
    """Draws one to five moves, at most ``limit``, that change the board and do not solve it."""
    directions: list[int] = []
    for _ in range(min(limit, rng.randint(1, TURN_MOVES))):
        to = {direction: board.move(direction) for direction in range(len(MOVES))}
        open_ends = [direction for direction, new in to.items() if not new.solved]
        direction = rng.choice([direction for direction in open_ends if to[direction] != board] or open_ends)
        directions.append(direction)
        board = to[direction]
    return directions
