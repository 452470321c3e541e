"""Boards, drawn and solved inside XLA: a table of distances says which positions can be solved, and in how many moves.

gym-sokoban carves a room by a random walk and plays backwards from the solved board until it finds a position far away.
Here up to six inner walls stand anywhere, and distances of all positions to the solved board are computed at once, so
every board has a known shortest solution of at most the ten moves of a game, which gym-sokoban does not promise.
"""

import functools

import jax
import jax.numpy as jnp

from infopo_jax.envs.sokoban.rules import LEVELS, MOVE_LIMIT, NEIGHBOURS, NUM_SQUARES, TEST_PART, Board
from infopo_jax.types import pytree_dataclass

MAX_WALLS = 6  # inside the border
FAR = MOVE_LIMIT + 1  # distance of what ten moves do not solve
SPLITS = ('train', 'test')


@pytree_dataclass
class Position:
    """A board as arrays."""

    walls: jax.Array  # [NUM_SQUARES] bool
    target: jax.Array  # [] int32
    player: jax.Array  # [] int32
    box: jax.Array  # [] int32


def move(walls: jax.Array, player: jax.Array, box: jax.Array, direction: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns player and box after a move; the same rule as ``rules.Board.move``.

    Args:
        walls: [NUM_SQUARES] bool.
        player, box: squares, int32, of any one shape.
        direction: int32, of that shape or [].
    """
    neighbours = jnp.asarray(NEIGHBOURS)
    ahead = neighbours[direction, player]
    beyond = neighbours[direction, ahead]  # read only where ahead is the box, which is a square
    is_floor = jnp.concatenate([~walls, jnp.array([False])])  # index -1, the border, is the last
    pushes = (ahead == box) & is_floor[beyond]
    goes = pushes | (is_floor[ahead] & (ahead != box))
    return jnp.where(goes, ahead, player), jnp.where(pushes, beyond, box)


def distances(walls: jax.Array) -> jax.Array:
    """Returns the fewest moves from every position to the solved board, FAR where ten do not suffice.

        distance[s, target] = 0 where the box is on the target, else 1 + min over moves of distance[move(s), target]

    Args:
        walls: [NUM_SQUARES] bool.

    Returns:
        [NUM_SQUARES * NUM_SQUARES, NUM_SQUARES] int32, by player * NUM_SQUARES + box and target. Rows of positions that
        cannot be (two things on a square, a thing in a wall) mean nothing.
    """
    player, box = jnp.divmod(jnp.arange(NUM_SQUARES * NUM_SQUARES), NUM_SQUARES)
    direction = jnp.arange(len(NEIGHBOURS))[:, None]
    to_player, to_box = move(walls, player, box, direction)
    to = to_player * NUM_SQUARES + to_box
    solved = box[:, None] == jnp.arange(NUM_SQUARES)

    def sweep(_, distance):
        return jnp.where(solved, 0, jnp.minimum(FAR, 1 + jnp.min(distance[to], axis=0)))

    return jax.lax.fori_loop(0, MOVE_LIMIT, sweep, jnp.where(solved, 0, FAR).astype(jnp.int32))


def held_out(walls: jax.Array, target: jax.Array) -> jax.Array:
    """Returns whether boards are of split 'test', bool of the shape of ``target``; see ``rules.Board.split``."""
    return (target + jnp.sum(walls * jnp.arange(NUM_SQUARES))) % TEST_PART == 0


def draw_walls(draw: jax.Array) -> jax.Array:
    """Returns walls [NUM_SQUARES] bool, 0 to MAX_WALLS of them, from ``draw`` [NUM_SQUARES + 1], uniform in [0, 1)."""
    return jnp.argsort(draw[1:]) < jnp.floor(draw[0] * (MAX_WALLS + 1))


def draw(key: jax.Array, *, split: str, level: int) -> Position:
    """Draws a board of a split that the level allows; all lengths of shortest solutions are equally likely in a room.

    Raises:
        ValueError: an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    walls_key, choice_key = jax.random.split(key)
    walls = draw_walls(jax.random.uniform(walls_key, (NUM_SQUARES + 1,)))
    rooms = jnp.stack([walls, jnp.zeros_like(walls)])  # the room without walls has boards of every kind
    table = jax.vmap(functools.partial(_lengths, split=split, level=level))(rooms)
    room = jnp.argmax(jnp.any(table > 0, axis=1))
    length = table[room]
    count = jnp.zeros(FAR + 1).at[length].add(1.0)
    logits = jnp.where(length > 0, -jnp.log(count[length]), -jnp.inf)
    place, target = jnp.divmod(jax.random.categorical(choice_key, logits), NUM_SQUARES)
    player, box = jnp.divmod(place, NUM_SQUARES)
    squares = (x.astype(jnp.int32) for x in (target, player, box))
    return Position(rooms[room], *squares)


def _lengths(walls: jax.Array, *, split: str, level: int) -> jax.Array:
    """Returns the lengths of shortest solutions of a room's boards [NUM_SQUARES ** 3], 0 for boards not wanted."""
    square = jnp.arange(NUM_SQUARES)
    player, box = jnp.divmod(jnp.arange(NUM_SQUARES * NUM_SQUARES), NUM_SQUARES)
    possible = ~walls[player] & ~walls[box] & (player != box)
    wanted = ~walls & (held_out(walls, square) == (split == 'test'))
    length = distances(walls)
    fits = possible[:, None] & wanted & (length <= LEVELS[level])
    return jnp.where(fits, length, 0).ravel()  # a solved board has length 0 already


@functools.cache
def tasks(split: str, level: int, count: int) -> tuple[str, ...]:
    """Returns up to ``count`` different boards as task ids; the same ones in every process."""
    keys = jax.random.split(jax.random.key(0), count)
    drawn = jax.device_get(jax.jit(jax.vmap(functools.partial(draw, split=split, level=level)))(keys))
    return tuple(dict.fromkeys(to_board(jax.tree.map(lambda x, i=i: x[i], drawn)).task() for i in range(count)))


def to_board(position: Position) -> Board:
    """Returns a concrete position as a ``rules.Board``."""
    walls = frozenset(square for square, wall in enumerate(position.walls.tolist()) if wall)
    return Board(walls, int(position.target), int(position.player), int(position.box))


def of_board(board: Board) -> Position:
    """Undoes ``to_board``."""
    walls = jnp.array([square in board.walls for square in range(NUM_SQUARES)])
    return Position(walls, *(jnp.int32(square) for square in (board.target, board.player, board.box)))
