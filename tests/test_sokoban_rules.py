"""The rules of Sokoban against a reference, and how boards are written."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sokoban_play import EASY, Reference, random_boards, stack, unstack

from infopo_jax.envs.sokoban import boards, rules
from infopo_jax.envs.sokoban.rules import MOVES, Board


def test_move_agrees_with_the_reference_on_random_play():
    rng, made = random.Random(0), random_boards(0)
    references, positions = [Reference(board.task()) for board in made], stack(made)
    for _ in range(12):
        directions = [rng.randrange(4) for _ in made]
        player, box = jax.vmap(boards.move)(positions.walls, positions.player, positions.box, jnp.array(directions))
        positions = boards.Position(positions.walls, positions.target, player, box)
        made = [board.move(direction) for board, direction in zip(made, directions, strict=True)]
        for reference, direction in zip(references, directions, strict=True):
            reference.move(MOVES[direction])
        texts = [reference.text() for reference in references]
        assert [board.task() for board in made] == texts
        assert [board.task() for board in unstack(positions)] == texts


def test_board_reads_what_it_writes():
    for board in random_boards(2):
        assert Board.of(board.task()) == board
    assert Board.of(EASY).text().split('\n')[1] == ' #  P  _  _  _  # '


@pytest.mark.parametrize(
    'task', ['', EASY[:-1], EASY.replace('X', '_'), EASY.replace('_', 'P', 1), EASY.lower(), 7, None]
)
def test_board_refuses_what_is_none(task):
    with pytest.raises(ValueError, match='unknown task'):
        Board.of(task)


def test_distances_equal_breadth_first_search():
    made = random_boards(3, 150)
    tables = jax.jit(jax.vmap(boards.distances))(stack(made).walls)
    for board, table in zip(made, np.asarray(tables), strict=True):
        solution = rules.solve(board)
        length = boards.FAR if solution is None else min(len(solution), boards.FAR)
        assert table[board.player * 16 + board.box, board.target] == length
        for direction in solution or ():
            board = board.move(direction)
        assert board.solved or solution is None
