"""Sokoban inside XLA: turns against a reference, boards that are drawn, and what is taught."""

import functools
import random
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sokoban_play import COUNT, EASY, SHIFT, Reference, at, compiled, draws, game, places, random_boards, stack, unstack

from infopo_jax.envs.sokoban import Sokoban, SokobanText, boards, rules
from infopo_jax.envs.sokoban.env import MOVE, SQUARE
from infopo_jax.envs.sokoban.rules import LEVELS, MOVES, Board
from infopo_jax.envs.sokoban.text import render


def words_of(rng):
    """Returns up to six words, some of which are no moves."""
    return [rng.choice([*MOVES, *MOVES, 'box', '<error>']) for _ in range(rng.randint(0, 6))]


# Rules


def test_step_agrees_with_the_reference_turn_by_turn():
    rng, env = random.Random(1), game()
    made = [board for board in random_boards(1) if not board.solved] + unstack(draws('train', 1))
    references = [Reference(board.task()) for board in made]
    texts = [SokobanText() for _ in made]
    for text, board in zip(texts, made, strict=True):
        text.reset(options={'task': board.task()})
    state, running = jax.vmap(env.start)(stack(made)), np.ones(len(made), bool)
    for turn in range(5):
        turns = [words_of(rng) for _ in made]
        ids = np.zeros((len(made), 6), np.int32)
        for row, words in zip(ids, turns, strict=True):
            said = env.encode(' '.join([*words, '<end>']))[:6]
            row[: len(said)] = said
        keys = jax.random.split(jax.random.key(turn), len(made))
        out = compiled(env, 'step')(keys, state, jnp.asarray(ids), ids > 0)
        state, feedback, _, reward, done, is_error = jax.device_get(out)
        now, (outcome, success) = unstack(state), jax.vmap(env.score)(state)
        for i in np.flatnonzero(running):
            wanted = references[i].turn(turns[i])
            messages, paid, terminated, truncated, info = texts[i].step(f'<answer>{" || ".join(turns[i])}</answer>')
            assert abs(wanted - paid) < 1e-6 and abs(wanted - float(reward[i])) < 1e-5
            board = references[i].text()
            assert now[i].task() == board
            assert bool(done[i]) == references[i].over and terminated == (references[i].on == 1)
            assert truncated == (not terminated and (references[i].over or turn == 4))
            assert bool(is_error[i]) == info['is_error'] == (not set(turns[i][:5]) & set(SHIFT))
            if not info['is_error']:
                assert messages[0]['content'].split('\nMoves')[0].replace(' ', '').replace('\n', '/') == board
            if not (done[i] or is_error[i]):
                assert env.decode(feedback[i]) == places(board)
            if terminated or truncated:
                assert abs(info['outcome'] - float(outcome[i])) < 1e-5 and info['success'] == bool(success[i])
        running &= ~done
    assert 10 < sum(reference.over and reference.on > 0 for reference in references) < len(made)


def test_step_plays_a_board_by_hand():
    env = game()
    state = env.start(boards.of_board(Board.of(EASY)))
    log = []
    for text in ('Up Left <end>', 'wall <end>', 'Right wall <end>', 'Down Down <end>'):
        ids = np.zeros(6, np.int32)
        ids[: len(env.encode(text))] = env.encode(text)
        state, feedback, _, reward, done, is_error = env.step(jax.random.key(0), state, jnp.asarray(ids), ids > 0)
        log.append((env.decode(feedback), round(float(reward), 4), bool(done), bool(is_error)))
    assert log == [
        ('player r1c1 box r2c2 target r3c2', -0.2, False, False),  # two moves into walls
        ('<error>', -0.1, False, True),
        ('player r1c2 box r2c2 target r3c2', -0.2, False, False),  # a move, and a word that is none
        ('', 10.9, True, False),  # solved by the first Down; the second is not made
    ]
    assert int(state.moves) == 4 and round(float(env.score(state)[0]), 4) == 10.4 and bool(env.score(state)[1])


def test_step_stops_after_ten_moves_without_success():
    env = game()
    state = env.start(boards.of_board(Board.of(EASY)))
    action = jnp.array([*[MOVE] * 5, env.stop_id])
    for turn in range(2):
        state, _, mask, reward, done, _ = env.step(jax.random.key(0), state, action, jnp.ones(6, bool))
        assert bool(done) == (turn == 1) == (not mask.any()) and round(float(reward), 4) == -0.5
    assert not env.score(state)[1]
    text = SokobanText()
    text.reset(options={'task': EASY})
    text.step(render([0] * 5))
    _, reward, terminated, truncated, info = text.step(render([0] * 5))
    assert truncated and not terminated and info == {'is_error': False, 'success': False, 'outcome': -1.0}


def test_score_pays_a_box_that_leaves_its_target():
    state = game().start(boards.of_board(Board.of('######/#____#/#P√__#/#____#/#____#/######')))
    left = game().step(jax.random.key(0), state, jnp.array([MOVE + 3, 3, 0, 0, 0, 0]), jnp.arange(6) < 2)
    assert round(float(left[3]), 4) == -11.1  # -0.1 for the move, -1 for the box, and no longer 10 for a solved board
    assert rules.score(3, -1, 0, 2, reward='ragen') == pytest.approx(-1.5)
    assert rules.score(3, 1, 1, 2, reward='sparse') == 1.0
    assert rules.outcome_range('ragen', 5) == pytest.approx(10.9 + 1.5)


# Boards


@pytest.mark.parametrize('level', LEVELS)
def test_draw_gives_boards_of_the_level_in_disjoint_splits(level):
    rooms = {}
    for split in ('train', 'test'):
        drawn = unstack(draws(split, level))
        lengths = [len(rules.solve(board)) for board in drawn]
        assert set(lengths) == set(range(1, LEVELS[level] + 1))
        assert {board.split for board in drawn} == {split}
        rooms[split] = {(board.walls, board.target) for board in drawn}
        assert {len(board.walls) for board in drawn} == set(range(boards.MAX_WALLS + 1))
    assert not rooms['train'] & rooms['test'] and len(rooms['train']) > COUNT // 2


def test_draw_under_jit_equals_eager():
    key = jax.random.split(jax.random.key(1), COUNT)[7]
    eager = boards.draw(key, split='train', level=3)
    jax.tree.map(np.testing.assert_array_equal, eager, at(draws('train', 3), 7))


def test_draw_falls_back_on_the_room_without_walls(monkeypatch):
    monkeypatch.setattr(boards, 'draw_walls', lambda draw: jnp.ones(16, bool))
    drawn = boards.draw(jax.random.key(0), split='test', level=1)
    assert not drawn.walls.any() and len(rules.solve(boards.to_board(drawn))) <= 3


# The game inside XLA


def episodes(env, split, policy):
    """Plays COUNT boards; returns outcomes and successes."""
    keys = jax.random.split(jax.random.key(1), COUNT)
    state = jax.vmap(env.start)(draws(split, env.level))
    for turn in range(env.max_turns):
        action, mask = policy(state, jax.vmap(jax.random.fold_in, (0, None))(keys, turn))
        state = compiled(env, 'step')(keys, state, action, mask)[0]
    return jax.vmap(env.score)(state)


@pytest.mark.parametrize('split', ['train', 'test'])
def test_expert_solves_every_board(split):
    env = game()
    outcome, success = episodes(env, split, lambda state, _: compiled(env, 'expert')(state))
    lengths = np.array([len(rules.solve(board)) for board in unstack(draws(split, 3))])
    assert success.all()
    np.testing.assert_allclose(outcome, 11 - 0.1 * lengths, atol=1e-5)  # by a shortest solution


@pytest.mark.parametrize(('level', 'low', 'high'), [(1, 0.25, 0.42), (3, 0.06, 0.16)])
def test_random_moves_solve_some_boards(level, low, high):
    env = game(level)
    outcome, success = episodes(env, 'test', lambda _, keys: compiled(env, 'random_action')(keys))
    assert low < success.mean() < high and outcome.min() >= -1.0 - 1e-6


def test_doing_nothing_costs_the_penalty_every_turn():
    env = game()
    nothing = jnp.tile(jnp.array([env.stop_id, 0, 0, 0, 0, 0]), (COUNT, 1)), jnp.tile(jnp.arange(6) < 1, (COUNT, 1))
    outcome, success = episodes(env, 'test', lambda *_: nothing)
    assert not success.any()
    np.testing.assert_allclose(outcome, -0.5, atol=1e-6)


def test_random_action_is_legal_and_of_every_length():
    action, mask = compiled(game(), 'random_action')(jax.random.split(jax.random.key(0), COUNT))
    action, mask = np.asarray(action), np.asarray(mask)
    assert set(mask.sum(1)) == {2, 3, 4, 5, 6}
    for row, m in zip(action, mask, strict=True):
        assert set(game().decode(row[m][:-1]).split()) <= set(MOVES) and row[m][-1] == game().stop_id
        assert not row[~m].any()


def test_reset_shows_the_board():
    state, prompt, mask = game().reset(jax.random.key(3), 'train')
    board = boards.to_board(state)
    walls = ' '.join(f'r{1 + square // 4}c{1 + square % 4}' for square in sorted(board.walls))
    wanted = f'<user> {places(board.task())} wall {walls} <agent>'
    assert game().decode(prompt[mask]).split() == wanted.split() and not prompt[~mask].any()
    with pytest.raises(ValueError, match="'train' or 'test'"):
        game().reset(jax.random.key(0), 'valid')


def test_vocab_has_literal_ids():
    env = game()
    assert env.vocab[MOVE : SQUARE + 2] == ('Up', 'Down', 'Left', 'Right', 'r1c1', 'r1c2') and len(env.vocab) == 30
    assert env.vocab[SQUARE + 6] == 'r2c3'


@functools.cache
def examples():
    return jax.device_get(compiled(game(), 'example')(jax.random.split(jax.random.key(0), COUNT)))


def test_example_replays_as_a_rollout_and_solves_nothing():
    env, batch, hidden, lengths, targets = game(), examples(), 0, set(), set()
    for tokens, mask, target_mask in zip(batch.tokens, batch.token_mask, batch.target_mask, strict=True):
        text = env.decode(tokens[mask])
        prompt, *turns = re.split(r' <agent> ?', text)
        squares = [(int(i) - 1) * 4 + int(j) - 1 for i, j in re.findall(r'r(\d)c(\d)', prompt)]
        board = Board(frozenset(squares[3:]), squares[2], squares[0], squares[1])
        assert board.split == 'train' and not board.solved
        moves = 0
        for turn in turns:
            action, _, reply = turn.partition(' <end>')
            moves += len(action.split())
            for word in action.split():
                after = board.move(MOVES.index(word))
                stuck = all(board.move(direction) in (board,) or board.move(direction).solved for direction in range(4))
                assert not after.solved and (after != board or stuck)
                board = after
            if reply:
                hidden += '<no_information>' in reply
                assert reply in (' <user> <no_information>', f' <user> {places(board.task())}')
        assert moves <= 10 and env.decode(tokens[target_mask]) == turns[-1]
        lengths.add(len(turns))
        targets.add(len(turns[-1].split()) - 1)
    assert lengths == set(range(1, 6)) and targets == set(range(1, 6)) and 80 < hidden < 400


@pytest.mark.parametrize('make', [Sokoban, SokobanText])
@pytest.mark.parametrize(
    ('knobs', 'message'),
    [
        ({'turn_limit': 0}, 'turn_limit must be from 1'),
        ({'turn_limit': 11}, 'turn_limit must be from 1 to the 10 moves'),
        ({'turn_limit': 1}, 'at least 2 at level 3, whose longest solution has 10 moves, 5 a turn; got 1'),
        ({'turn_limit': 1, 'level': 2}, 'turn_limit must be at least 2 at level 2, whose longest solution has 6 moves'),
        ({'level': 4}, 'level must be one of'),
        ({'reward': 'dense'}, "reward must be one of .* got 'dense'"),
    ],
)
def test_sokoban_refuses_knobs_out_of_range(make, knobs, message):
    with pytest.raises(ValueError, match=message):
        make(**knobs)


@pytest.mark.parametrize('make', [Sokoban, SokobanText])
@pytest.mark.parametrize(('level', 'turn_limit'), [(1, 1), (2, 2), (3, 2)])
def test_sokoban_takes_the_fewest_turns_in_which_all_boards_can_be_solved(make, level, turn_limit):
    assert make(level=level, turn_limit=turn_limit).max_turns == turn_limit
