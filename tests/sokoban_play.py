"""Boards of Sokoban for tests, the rules written a second time, and the game, compiled once."""

import functools
import random

import jax
import jax.numpy as jnp

from infopo_jax.envs.sokoban import Sokoban, boards
from infopo_jax.envs.sokoban.rules import Board

COUNT = 300  # boards a batch, so that each function compiles once
EASY = '######/#P___#/#_X__#/#_O__#/#__#_#/######'  # Right, Down
SHIFT = {'Up': (-1, 0), 'Down': (1, 0), 'Left': (0, -1), 'Right': (0, 1)}


class Reference:
    """gym-sokoban's rules and RAGEN's turns on two layers of characters, written apart from the package."""

    def __init__(self, task):
        rows = task.split('/')
        self.fixed = [['#' if c == '#' else 'O' if c in 'OS√' else '_' for c in row] for row in rows]
        self.things = {
            c: [(i, j) for i, row in enumerate(rows) for j, x in enumerate(row) if x in c] for c in ('PS', 'X√')
        }
        self.left, self.over = 10, False

    @property
    def on(self):
        """How many boxes are on targets."""
        return sum(self.fixed[i][j] == 'O' for i, j in self.things['X√'])

    def move(self, word):
        """Makes a move; returns its reward."""
        before, boxes = self.on, self.things['X√']
        (i, j), (down, right) = self.things['PS'][0], SHIFT[word]
        ahead, beyond = (i + down, j + right), (i + 2 * down, j + 2 * right)
        if ahead in boxes and self.fixed[beyond[0]][beyond[1]] != '#' and beyond not in boxes:
            boxes[boxes.index(ahead)] = beyond
        if self.fixed[ahead[0]][ahead[1]] != '#' and ahead not in boxes:
            self.things['PS'] = [ahead]
        self.left -= 1
        solved = self.on == len(boxes)
        self.over = solved or self.left == 0
        return -0.1 + (self.on - before) + 10 * solved

    def turn(self, words):
        """Plays a turn of words, of which some may be no moves; returns its reward."""
        moves = [word for word in words[:5] if word in SHIFT]
        reward = -0.1 if len(moves) < len(words[:5]) or not moves else 0.0
        for word in moves:
            if not self.over:
                reward += self.move(word)
        return reward

    def text(self):
        """Draws the board."""
        rows = [list(row) for row in self.fixed]
        for (i, j), (free, target) in [(self.things['X√'][0], 'X√'), (self.things['PS'][0], 'PS')]:
            rows[i][j] = target if rows[i][j] == 'O' else free
        return '/'.join(''.join(row) for row in rows)


def random_boards(seed, count=COUNT):
    """Returns boards with things anywhere, the box also on the target."""
    rng, made = random.Random(seed), []
    for _ in range(count):
        player, box, target, *walls = rng.sample(range(16), 3 + rng.randint(0, 7))
        made.append(Board(frozenset(walls), box if rng.random() < 0.1 else target, player, box))
    return made


def stack(made):
    """Returns boards as one batch of positions."""
    return jax.tree.map(lambda *x: jnp.stack(x), *[boards.of_board(board) for board in made])


def at(tree, i):
    return jax.tree.map(lambda x: x[i], tree)


def unstack(positions):
    """Returns a batch of positions, or of states, as boards."""
    positions = jax.device_get(positions)
    return [boards.to_board(at(positions, i)) for i in range(len(positions.box))]


@functools.cache
def compiled(env, name):
    return jax.jit(jax.vmap(getattr(env, name)))


@functools.cache
def game(level=3, reward='ragen'):
    return Sokoban(level=level, reward=reward)


@functools.cache
def draws(split, level):
    keys = jax.random.split(jax.random.key(1), COUNT)
    return jax.jit(jax.vmap(functools.partial(boards.draw, split=split, level=level)))(keys)


def places(task):
    """Returns the words that say where things are, read off a drawn board."""
    rows = task.split('/')
    where = {
        c: next((i, j) for i, row in enumerate(rows) for j, x in enumerate(row) if x in c) for c in ('PS', 'X√', 'OS√')
    }
    return ' '.join(
        f'{name} r{i}c{j}' for name, (i, j) in zip(('player', 'box', 'target'), where.values(), strict=True)
    )
