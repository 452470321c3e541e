"""Sokoban inside XLA: boards, moves and feedback are one traced program.

The agent names up to five moves a turn and is shown where everything then stands (its tokens in brackets)::

    <user> player r1c1 box r2c2 target r4c2 wall r3c4 r1c4 <agent> [Right Down <end>]
    <user> player r2c2 box r3c2 target r4c2 <agent> [Down <end>]

``r2c3`` is row 2, column 3 of the 6x6 board; rows and columns 0 and 5 are wall. One token a square is the coordinate
rendering that RAGEN offers, made for models that have no idea of lines and columns; ``SokobanText`` draws the board.
"""

import functools

import jax
import jax.numpy as jnp

from infopo_jax.envs.array import Example
from infopo_jax.envs.intent import PLACEHOLDER_SHARE, Worded, left_align, pick
from infopo_jax.envs.sokoban import boards, rules
from infopo_jax.envs.sokoban.rules import INNER, MOVE_LIMIT, MOVES, NUM_SQUARES, TURN_MOVES
from infopo_jax.types import pytree_dataclass

WORDS = ('<pad>', '<user>', '<agent>', '<end>', '<error>', '<no_information>', 'player', 'box', 'target', 'wall')
PAD, USER, AGENT, END, ERROR, NOTHING, PLAYER, BOX, TARGET, WALL = range(len(WORDS))
MOVE = len(WORDS)  # id of Up
SQUARE = MOVE + len(MOVES)  # id of r1c1


@pytree_dataclass
class State:
    """One game."""

    walls: jax.Array  # [NUM_SQUARES] bool
    target: jax.Array  # [] int32
    player: jax.Array  # [] int32
    box: jax.Array  # [] int32
    moves: jax.Array  # [] int32, made so far, those that changed nothing too
    placed: jax.Array  # [] int32, times the box came onto the target less times it left it
    penalties: jax.Array  # [] int32, turns with something in them that is no move, or without a move
    done: jax.Array  # [] bool, solved or out of moves

    @property
    def goal(self) -> jax.Array:
        """Walls and target [..., NUM_SQUARES + 1] int32: what no two splits share."""
        return jnp.concatenate([self.walls, self.target[..., None]], axis=-1).astype(jnp.int32)


class Sokoban(Worded):
    """The game; an ``array.ArrayEnv``.

    Words that are no moves are dropped and cost a penalty, as does a turn without a move, which is answered with an
    error; of more than five words in a turn the first five count. The game ends when the board is solved or ten moves
    are made. RAGEN's replies also tell the reward; here they do not.
    """

    vocab = WORDS + MOVES + tuple(f'r{1 + i // INNER}c{1 + i % INNER}' for i in range(NUM_SQUARES))
    stop_id = END
    prompt_len = 9 + boards.MAX_WALLS
    action_len = TURN_MOVES + 1
    feedback_len = 6
    feedback_open, feedback_close, placeholder = (USER,), (AGENT,), (NOTHING,)

    def __init__(self, *, turn_limit: int = 5, level: int = 3, reward: str = 'ragen'):
        """Sets the task.

        Args:
            turn_limit: actions per game, enough for the longest solution of the level.
            level: 1, boards that at most 3 moves solve; 2, 6 moves; 3, 10 moves.
            reward: 'ragen', the sum of move rewards and penalties; 'sparse', 1 for a solved board.

        Raises:
            ValueError: a knob outside its range.
        """
        rules.check_knobs(turn_limit, level, reward)
        self.max_turns, self.level, self.reward = turn_limit, level, reward
        self.outcome_range = rules.outcome_range(reward, turn_limit)
        self.example_len = (
            self.prompt_len + (turn_limit - 1) * (self.action_len + self.feedback_len + 2) + self.action_len
        )

    def reset(self, key: jax.Array, split: str) -> tuple[State, jax.Array, jax.Array]:
        """Starts a game; see ``array.ArrayEnv.reset``."""
        board = boards.draw(key, split=split, level=self.level)
        prompt = _prompt(board)
        return self.start(board), prompt, prompt != PAD

    def start(self, board: boards.Position) -> State:
        """Returns the state before the first turn on a board."""
        zero = jnp.int32(0)
        return State(board.walls, board.target, board.player, board.box, zero, zero, zero, jnp.bool_(False))

    def step(self, key: jax.Array, state: State, action: jax.Array, action_mask: jax.Array) -> tuple:
        """Answers one action; see ``array.ArrayEnv.step``. Rewards sum to the outcome."""
        del key  # boards do not answer at random
        words = action[:TURN_MOVES]
        said = action_mask[:TURN_MOVES] & (words != END)
        direction = words - MOVE
        is_move = said & (direction >= 0) & (direction < len(MOVES))

        played, _ = jax.lax.scan(_play, state, (jnp.where(is_move, direction, 0), is_move))
        penalty = jnp.any(said & ~is_move) | ~jnp.any(is_move)
        played = State(**vars(played) | {'penalties': state.penalties + penalty})
        new = jax.tree.map(lambda old, fresh: jnp.where(state.done, old, fresh), state, played)
        reward = jnp.where(state.done, 0.0, self.score(new)[0] - self.score(state)[0])  # exactly 0 however XLA fuses

        error = ~jnp.any(is_move) & ~state.done
        feedback = jnp.where(error, jnp.zeros(self.feedback_len, jnp.int32).at[0].set(ERROR), _places(new))
        feedback = jnp.where(new.done, PAD, feedback)
        return new, feedback, feedback != PAD, reward, new.done, error

    def score(self, state: State) -> tuple[jax.Array, jax.Array]:
        """Returns outcome [] float32 and success [] bool: the box is on the target."""
        success = state.box == state.target
        outcome = rules.score(state.moves, state.placed, success, state.penalties, reward=self.reward)
        return outcome.astype(jnp.float32), success

    def expert(self, state: State) -> tuple[jax.Array, jax.Array]:
        """Returns the moves of a shortest solution, five at most, and their mask [action_len]; it sees distances."""
        table = boards.distances(state.walls)[:, state.target]

        def walk(place, _):
            player, box = place
            to = boards.move(state.walls, player, box, jnp.arange(len(MOVES)))
            best = jnp.argmin(table[to[0] * NUM_SQUARES + to[1]])
            going = box != state.target
            player, box = (jnp.where(going, new[best], old) for new, old in zip(to, place, strict=True))
            return (player, box), jnp.where(going, MOVE + best, END)

        _, words = jax.lax.scan(walk, (state.player, state.box), None, length=TURN_MOVES)
        return _close(words, jnp.sum(words != END))

    def random_action(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns one to five random moves and their mask [action_len]."""
        draw = jax.random.uniform(key, (TURN_MOVES + 1,))
        return _close(MOVE + pick(draw[1:], 0, len(MOVES)), pick(draw[0], 1, TURN_MOVES + 1))

    def example(self, key: jax.Array) -> Example:
        """Draws one warm-start transition, laid out as a rollout is.

        History and target are random moves on a board that need not have a solution: each changes something, so that
        walls and places have to be read, and none brings the box home, so that no example is a solved board. Some
        boards are replaced by the placeholder.
        """
        board_key, walk_key = jax.random.split(key)
        draw = jax.random.uniform(board_key, (3, NUM_SQUARES + 1))
        walls = boards.draw_walls(draw[0])
        square = jnp.arange(NUM_SQUARES)
        # A target of split 'train', then two other squares, each uniform among the free ones.
        target = jnp.argmax(jnp.where(walls | boards.held_out(walls, square), -1.0, draw[1, 1:])).astype(jnp.int32)
        free = jnp.where(walls | (square == target), -1.0, draw[2, 1:])
        player, box = jax.lax.top_k(free, 2)[1].astype(jnp.int32)
        board = boards.Position(walls, target, player, box)

        num_past = pick(draw[1, 0], 0, self.max_turns)
        actions, replies = self._walk(walk_key, board, num_past)
        columns = jnp.full((self.max_turns, 1), USER), replies, jnp.full((self.max_turns, 1), AGENT)
        history = jnp.concatenate([actions, *columns], axis=1)[:-1]
        history = jnp.where(jnp.arange(self.max_turns - 1)[:, None] < num_past, history, PAD)
        action = actions[num_past]
        tokens = jnp.concatenate([_prompt(board), history.ravel(), action])
        target_mask = (jnp.arange(tokens.size) >= tokens.size - self.action_len) & (tokens != PAD)
        return left_align(tokens, tokens != PAD, target_mask)

    def _walk(self, key: jax.Array, board: boards.Position, num_past: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Plays random turns, of which the one at ``num_past`` is the target.

        Returns:
            actions [T, action_len] and replies [T, feedback_len], some the placeholder.
        """
        nothing = jnp.full(self.feedback_len, PAD).at[0].set(NOTHING)

        def turn(carry, inputs):
            board, left = carry
            draw, later = inputs
            count = jnp.minimum(pick(draw[0], 1, TURN_MOVES + 1), jnp.maximum(left - later, 0))
            board, words = jax.lax.scan(functools.partial(_stroll, count), board, (jnp.arange(TURN_MOVES), draw[2:]))
            reply = jnp.where(draw[1] < PLACEHOLDER_SHARE, nothing, _places(board))
            return (board, left - count), (_close(words, count)[0], reply)

        draws = jax.random.uniform(key, (self.max_turns, 2 + TURN_MOVES))
        later = jnp.maximum(num_past - jnp.arange(self.max_turns), 0)  # each later turn, up to the target, needs a move
        return jax.lax.scan(turn, (board, jnp.int32(MOVE_LIMIT)), (draws, later))[1]


def _play(state: State, inputs: tuple[jax.Array, jax.Array]) -> tuple[State, None]:
    """Makes one move unless the game is over or ``is_move`` is False."""
    direction, is_move = inputs
    goes = is_move & ~state.done
    player, box = boards.move(state.walls, state.player, state.box, direction)
    player, box = jnp.where(goes, player, state.player), jnp.where(goes, box, state.box)
    moves = state.moves + goes
    on = box == state.target
    placed = state.placed + on.astype(jnp.int32) - (state.box == state.target)
    done = state.done | on | (moves >= MOVE_LIMIT)
    return State(state.walls, state.target, player, box, moves, placed, state.penalties, done), None


def _stroll(count: jax.Array, board: boards.Position, inputs: tuple[jax.Array, jax.Array]) -> tuple:
    """Makes a random move that changes the board and does not solve it; the ``count``-th and later ones stay away."""
    index, draw = inputs
    to = boards.move(board.walls, board.player, board.box, jnp.arange(len(MOVES)))
    fits = (to[1] != board.target) & (to[0] != board.player)
    fits |= (to[1] != board.target) & ~jnp.any(fits)  # walled in: any move that does not solve
    rank = jnp.cumsum(fits)
    direction = jnp.argmax(rank > pick(draw, 0, rank[-1]))
    goes = index < count
    player = jnp.where(goes, to[0][direction], board.player)
    box = jnp.where(goes, to[1][direction], board.box)
    return boards.Position(board.walls, board.target, player, box), MOVE + direction


def _close(words: jax.Array, count: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Ends the first ``count`` of ``words`` [TURN_MOVES] by END; returns action and mask [TURN_MOVES + 1]."""
    index = jnp.arange(TURN_MOVES + 1)
    action = jnp.where(index < count, jnp.append(words, PAD), jnp.where(index == count, END, PAD))
    return action.astype(jnp.int32), index <= count


def _places(board: boards.Position | State) -> jax.Array:
    """Returns the tokens [6] that say where player, box and target are."""
    columns = PLAYER, SQUARE + board.player, BOX, SQUARE + board.box, TARGET, SQUARE + board.target
    return jnp.stack(columns).astype(jnp.int32)


def _prompt(board: boards.Position) -> jax.Array:
    """Returns the prompt [prompt_len] int32, PAD behind it: places and walls."""
    walls = jnp.where(board.walls, SQUARE + jnp.arange(NUM_SQUARES), PAD)
    tokens = jnp.concatenate([jnp.array([USER]), _places(board), jnp.array([WALL]), walls, jnp.array([AGENT])])
    order = jnp.argsort(tokens == PAD, stable=True)
    return tokens[order][: Sokoban.prompt_len].astype(jnp.int32)
