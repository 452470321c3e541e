"""Sokoban as text."""

import random
import re

import numpy as np
import pytest
from sokoban_play import EASY

from infopo_jax.envs.sokoban import SokobanText
from infopo_jax.envs.sokoban.rules import MOVES, Board
from infopo_jax.envs.sokoban.text import MALFORMED, parse
from infopo_jax.lm.tokenizer import train_tokenizer


@pytest.mark.parametrize(
    ('text', 'entries'),
    [
        ('<answer>Right || Up</answer>', [3, 0]),
        ('<answer> DOWN||left ||  || Up </answer> and so on', [1, 2, 0]),
        ('<think><answer>Up</answer></think><answer>Down</answer>', [1]),
        ('<answer>Up || Jump</answer>', [0, None]),
        ('<answer>Up Up</answer>', [None]),
        ('<answer>' + ' || '.join(['Jump', *MOVES, *MOVES]) + '</answer>', [None, 0, 1, 2, 3]),
        ('<answer></answer>', []),
        ('<answer>Up', []),
        ('Up || Down', []),
        ('', []),
    ],
)
def test_parse_reads_answers(text, entries):
    assert parse(text) == entries


def play(env, task, policy):
    """Plays to the end; returns the last step's info."""
    env.reset(options={'task': task})
    while True:
        *_, terminated, truncated, info = env.step(policy())
        if terminated or truncated:
            return info


def test_text_tasks_are_solved_by_the_expert():
    env = SokobanText(level=2)
    train, test = env.tasks('train'), env.tasks('test')
    assert len(train) > 800 and len(test) > 200
    parts = [{re.sub('[PX]', '_', task).replace('S', 'O') for task in split} for split in (train, test)]
    assert not parts[0] & parts[1]
    assert all(play(env, task, env.expert)['success'] for task in test)
    assert SokobanText(level=2).tasks('train') == train
    with pytest.raises(ValueError, match="'train' or 'test'"):
        env.tasks('valid')


def test_text_floors():
    env, rng = SokobanText(level=2), random.Random(0)
    random_play = [play(env, task, lambda: env.random_action(rng))['success'] for task in env.tasks('test')]
    assert 0.15 < np.mean(random_play) < 0.35
    assert {play(env, task, lambda: 'hello')['outcome'] for task in env.tasks('test')[:5]} == {-0.5}


def test_text_answers_malformed_with_an_error():
    env = SokobanText()
    messages, info = env.reset(options={'task': EASY})
    assert [m['role'] for m in messages] == ['system', 'user'] and info['task'] == EASY
    assert messages[1]['content'].endswith('\nMoves left: 10.')
    [message], reward, *_, info = env.step('hello')
    assert message['content'] == MALFORMED and reward == -0.1 and info == {'is_error': True}
    [message], reward, terminated, *_, info = env.step('<answer>Right || Down</answer>')
    assert terminated and reward == pytest.approx(10.8) and info['success'] and '√' in message['content']
    with pytest.raises(ValueError, match='call reset'):
        env.step('hello')


def test_text_reset_refuses_a_solved_board():
    with pytest.raises(ValueError, match='solved already'):
        SokobanText().reset(options={'task': '######/#____#/#P√__#/#____#/#____#/######'})
    assert SokobanText(level=2).reset(seed=3)[1]['task'] in SokobanText(level=2).tasks('train')


def test_text_truncates_at_the_turn_limit():
    info = play(SokobanText(turn_limit=2, reward='sparse'), EASY, lambda: '<answer>Up</answer>')
    assert info == {'is_error': False, 'success': False, 'outcome': 0.0}
    assert SokobanText(reward='sparse').outcome_range == 1.0


def test_text_example_replays_and_solves_nothing():
    env, rng, hidden = SokobanText(level=2), random.Random(0), 0
    train = set(env.tasks('train'))
    for _ in range(200):
        history, target = env.example(rng)
        task = '/'.join(line.replace(' ', '') for line in history[1]['content'].split('\n')[:6])
        assert task in train
        replay = SokobanText(level=2)
        replay.reset(options={'task': task})
        for action, reply in zip(history[2::2], history[3::2], strict=True):
            [message], *_, info = replay.step(action['content'])
            assert 'success' not in info and reply['content'] in (message['content'], env.placeholder)
            hidden += reply['content'] == env.placeholder
        *_, info = replay.step(target)
        assert not info['is_error'] and not info.get('success') and None not in parse(target)
    assert 20 < hidden < 150


def test_text_that_is_cut_scores_what_was_played_and_a_penalty_for_each_turn_that_was_not_heard():
    env = SokobanText(level=2)
    env.reset(options={'task': EASY})
    before = env.step('no move')[1]
    assert env.score(3) == pytest.approx(3 * before)


def test_text_tokenizer_keeps_cells_and_moves_whole():
    env = SokobanText(level=2)
    tokenizer = train_tokenizer(env.corpus(), env.special_tokens(), vocab_size=512)
    action = '<answer>Right || Up</answer>'
    assert len(tokenizer.encode(action)) == 5 and tokenizer.decode(tokenizer.encode(action)) == action
    board = Board.of(EASY).text()
    assert len(tokenizer.encode(board)) <= 36 + 5 and tokenizer.decode(tokenizer.encode(board)) == board
