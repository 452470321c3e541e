"""pass^k by hand, and the look at rollouts against the scorer and the estimator."""

import dataclasses

import builders
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from models import tiny_model

from infopo_jax import estimators, evaluate, score, update as update_lib
from infopo_jax.types import Role


def turns_with(success, valid):
    turns = builders.random_turns(0, num_turns=[2] * len(success))
    return dataclasses.replace(turns, success=np.array(success), valid=np.array(valid))


def test_eval_metrics_pass_k_is_the_share_of_tasks_on_which_all_succeed():
    success = [True, True, True, False, False, False, False, False]
    metrics = evaluate.eval_metrics(turns_with(success, [True] * 8), group_size=2)
    assert metrics['pass_2'] == 1 / 4 and metrics['success'] == 3 / 8 and metrics['failed'] == 0
    assert evaluate.eval_metrics(turns_with(success, [True] * 8), group_size=4)['pass_4'] == 0


def test_eval_metrics_pass_k_leaves_out_tasks_of_which_a_rollout_failed():
    """Task 0 succeeds on its one valid rollout, task 1 has none, task 2 succeeds on one of two, task 3 on both."""
    success = [True, False, True, True, False, True, True, True]
    valid = [True, False, False, False, True, True, True, True]
    metrics = evaluate.eval_metrics(turns_with(success, valid), group_size=2)
    assert metrics['pass_2'] == 1 / 2
    for valid in ([True, False] * 4, [False] * 8):  # no task is whole
        assert evaluate.eval_metrics(turns_with(success, valid), group_size=2)['pass_2'] == 0


@pytest.mark.parametrize(
    ('estimator', 'placeholder'),
    [('infopo', (40,)), ('infopo', (40,) * 9), ('grpo', (40,))],
    ids=['infopo', 'no room for controls', 'grpo'],
)
def test_look_scores_and_credits_as_training_does(estimator, placeholder):
    model = tiny_model(50)
    turns = dataclasses.replace(
        builders.random_turns(1, num_turns=(3, 2, 3, 2)), outcome=np.array([0.0, 1.0, 0.5, 0.0], np.float32)
    )
    rule = update_lib.UpdateRule(
        graphdef=nnx.split(model)[0], optimizer=optax.sgd(1.0), estimator=estimators.get(estimator),
        hyper={'info_weight': 0.5}, needs_gain=estimator == 'infopo', group_size=2, placeholder=placeholder,
        temperature=0.8, branch_len=64, target_len=32,
    )  # fmt: skip
    look = evaluate.look(rule, model, evaluate.with_controls(rule, turns), jax.random.key(0), jnp.int32(0))
    scores = score.score(model, turns, jnp.array(placeholder), temperature=0.8)
    if estimator == 'infopo':
        np.testing.assert_allclose(look.token_gain, scores.token_gain[:, 0], atol=1e-5)
        assert look.gain_mask.any() and (look.gain[~look.gain_mask] == 0).all()
        assert 0 < look.gain_noise < 1e-6 if len(placeholder) == 1 else jnp.isnan(look.gain_noise)  # of float32
    else:
        assert look.token_gain is None and not look.gain_mask.any() and jnp.isnan(look.gain_noise)
    assert (look.advantage[~turns.action_mask] == 0).all() and (look.advantage[turns.action_mask] != 0).all()
    jax.tree.map(np.testing.assert_array_equal, look.turns, turns)


@pytest.mark.parametrize('placeholder', [(40,), (40, 41, 42), ()])
def test_controls_tell_the_placeholder_and_nothing_else(placeholder):
    turns = builders.random_turns(2, num_turns=(3, 2, 1), feedback=(1, 6))
    control = evaluate.controls_of(turns, placeholder)
    runs = told = 0
    for row in range(3):
        feedback = runs_of(turns.role[row] == Role.FEEDBACK)
        answers = np.bincount(turns.turn[row][turns.role[row] == Role.FEEDBACK], minlength=4)
        roomy = [run for run in feedback if len(run) >= len(placeholder)]
        best = min(roomy, key=lambda run: answers[turns.turn[row][run[0]]], default=None)
        for run in feedback:
            shown = placeholder if run is best else ()
            assert tuple(control.tokens[row][run[: len(shown)]]) == shown
            np.testing.assert_array_equal(control.tokens[row][run[len(shown) :]], turns.tokens[row][run[len(shown) :]])
            roles = [Role.FEEDBACK] * len(shown) + [Role.TEMPLATE] * (len(run) - len(shown))
            assert list(control.role[row][run]) == roles
            runs, told = runs + 1, told + bool(shown)
    assert runs and (told or not placeholder)
    others = turns.role != Role.FEEDBACK
    np.testing.assert_array_equal(control.role[others], turns.role[others])
    np.testing.assert_array_equal(control.tokens[others], turns.tokens[others])
    if told:
        gain = score.score(tiny_model(50), control, jnp.array(placeholder)).token_gain
        assert (
            jnp.abs(gain).max()
            < 1e-5
            < jnp.abs(score.score(tiny_model(50), turns, jnp.array(placeholder)).token_gain).max()
        )


def test_controls_tell_it_in_the_shortest_answer():
    """Answers of 2 + 6 tokens and of 3: the second is it, though a message of the first is shorter."""
    a, f, x = Role.ACTION, Role.FEEDBACK, Role.TEMPLATE
    role = np.array([[Role.PROMPT, a, f, f, x, *[f] * 6, a, f, f, f, a]], np.int8)
    turn = np.array([[-1, *[0] * 10, *[1] * 4, 2]], np.int32)
    turns = dataclasses.replace(
        turns_with([False], [True]), tokens=np.arange(16, dtype=np.int32)[None], role=role, turn=turn,
        turn_reward=np.zeros((1, 3), np.float32),
    )  # fmt: skip
    control = evaluate.controls_of(turns, (40, 41))
    np.testing.assert_array_equal(np.flatnonzero(control.role[0] == f), [12, 13])
    np.testing.assert_array_equal(control.tokens[0, 12:15], [40, 41, 14])


def runs_of(mask):
    """Returns the indices of each run of True."""
    index = np.flatnonzero(mask)
    return np.split(index, np.flatnonzero(np.diff(index) > 1) + 1) if len(index) else []
