"""The warm start: cross-entropy at taught tokens, the same however the steps are cut, in a rollout's own layout."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from talk import tiny_chat

from infopo_jax import warmstart
from infopo_jax.envs.array import Example
from infopo_jax.envs.probe import Probe
from infopo_jax.lm.config import LMConfig
from infopo_jax.lm.transformer import Transformer

CHAT = tiny_chat()
ENV = Probe(probe='first_turn')


class Teacher:
    """Text transitions of one to three actions; some are long."""

    def tasks(self, split):
        return ['red']

    def reset(self, *, seed=0, options=None):
        return 'which colour', {}

    def example(self, rng):
        messages = [{'role': 'user', 'content': 'which colour'}]
        for _ in range(rng.randrange(3)):
            messages += [
                {'role': 'assistant', 'content': 'ask'},
                {'role': 'user', 'content': 'it is red' * rng.randrange(1, 9)},
            ]
        return messages, rng.choice(['take red', 'take blue'])


def make(vocab_size):
    config = LMConfig(vocab_size=vocab_size, dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=16)
    return nnx.split(Transformer(config, nnx.Rngs(0)))


def test_example_loss_is_the_cross_entropy_at_targets():
    graphdef, params = make(9)
    model = nnx.merge(graphdef, params)
    tokens = jnp.array([[1, 2, 3, 4, 5], [6, 7, 8, 0, 0]])
    real = jnp.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)
    target = jnp.array([[0, 1, 0, 1, 1], [0, 0, 1, 0, 0]], bool)
    logp = jax.nn.log_softmax(model(tokens, real))
    wanted = -np.mean([logp[n, i - 1, tokens[n, i]] for n, i in np.argwhere(target)])
    loss = warmstart.example_loss(model, Example(tokens, real, target), 3)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    garbage = Example(jnp.where(real, tokens, 3), real, target)
    np.testing.assert_allclose(warmstart.example_loss(model, garbage, 5), wanted, rtol=1e-5)
    assert warmstart.example_loss(model, Example(tokens, real, jnp.zeros_like(target)), 3) == 0


def test_optimizer_warms_up_and_decays_to_a_tenth():
    tx, params = warmstart.optimizer(1.0, 50), {'w': jnp.ones(())}
    state, sizes = tx.init(params), []
    for _ in range(50):
        updates, state = tx.update({'w': jnp.ones(())}, state, params)
        sizes.append(-float(updates['w']))  # Adam's step on a constant gradient is the learning rate
    assert sizes[0] == 0 and np.argmax(sizes) == 10
    np.testing.assert_allclose([sizes[10], sizes[-1]], [1.0, 0.1], atol=0.03)


def test_array_steps_learn_and_do_not_depend_on_where_they_are_cut():
    graphdef, params = make(len(ENV.vocab))
    tx, key = warmstart.optimizer(1e-2, 60), jax.random.key(1)
    state = params, tx.init(params)

    def run(stretches):
        step = {n: jax.jit(warmstart.array_steps(graphdef, ENV, tx, steps=n, batch=16)) for n in set(stretches)}
        (params, opt_state), start, losses = state, 0, []
        for size in stretches:
            params, opt_state, part = step[size](params, opt_state, key, start)
            start += size
            losses.append(part)
        return params, np.concatenate(losses)

    whole, losses = run([60])
    assert losses.shape == (60,) and losses[-10:].mean() < 0.8 * losses[:10].mean()
    cut, cut_losses = run([20, 20, 20])
    np.testing.assert_allclose(cut_losses, losses, rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), cut, whole)


def test_draw_examples_draws_each_by_its_own_key():
    examples = warmstart.draw_examples(ENV, jax.random.key(0), 8)
    assert examples.tokens.shape == examples.target_mask.shape == (8, ENV.example_len)
    assert len(np.unique(examples.tokens, axis=0)) > 4


def test_render_example_is_laid_out_as_a_rollout_and_ends_with_its_target():
    messages = [
        {'role': 'user', 'content': 'which colour'},
        {'role': 'assistant', 'content': 'ask'},
        {'role': 'tool', 'content': 'it is red'},
        {'role': 'user', 'content': 'nothing'},
    ]
    for size in (1, 4):
        ids, num_said = warmstart.render_example(CHAT, messages[:size], 'take red')
        whole = [*messages[:size], {'role': 'assistant', 'content': 'take red'}]
        assert ids == CHAT.tokenizer.apply_chat_template(whole, tokenize=True, return_dict=False)
        assert CHAT.decode(ids[-num_said:]) == 'take red<|im_end|>'


def batches(count, **changes):
    settings = {'seed': 0, 'batch': 4, 'max_len': 60, 'max_targets': 12, 'pool': 2, 'multiple': 16} | changes
    return list(itertools.islice(warmstart.text_batches(Teacher(), CHAT, **settings), count))


def test_text_batches_hold_whole_examples_of_like_length():
    drawn = batches(6)
    for b in drawn:
        assert b.tokens.shape == b.token_mask.shape == b.target_mask.shape
        assert b.tokens.shape[0] == 4 and (b.tokens.shape[1] % 16 == 0 or b.tokens.shape[1] == 60)
        assert b.token_mask.sum(1).max() > b.tokens.shape[1] - 16
        assert (np.diff(b.token_mask.astype(int), axis=1) <= 0).all() and (b.tokens[~b.token_mask] == 0).all()
        assert not (b.target_mask & ~b.token_mask).any() and (b.target_mask.sum(1) <= 12).all()
        for tokens, real, target in zip(b.tokens, b.token_mask, b.target_mask, strict=True):
            assert CHAT.decode(tokens[real]).startswith('<|user|>which colour') and target[real.sum() - 1]
    assert len({b.tokens.shape[1] for b in drawn}) > 1


def test_text_batches_repeat_with_their_seed():
    rows = [[b.tokens.tolist() for b in batches(3, seed=seed)] for seed in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]


@pytest.mark.parametrize('changes', [{'max_len': 5}, {'max_targets': 1}])
def test_text_batches_say_when_no_example_fits(changes):
    with pytest.raises(ValueError, match=r'config\.rollout'):
        batches(1, **changes)


def test_run_text_learns_and_reports():
    graphdef, params = make(CHAT.vocab_size)
    seen = []
    settings = {'seed': 0, 'batch': 8, 'lr': 1e-2, 'max_len': 64, 'max_targets': 16}
    before = jax.tree.map(jnp.copy, params)
    after = warmstart.run_text(
        graphdef, params, Teacher(), CHAT, steps=40, progress=lambda i, loss: seen.append((i, loss)), **settings
    )
    assert [i for i, _ in seen] == list(range(4, 41, 4))
    assert seen[-1][1] < 0.5 * seen[0][1] < 5
    again = warmstart.run_text(graphdef, before, Teacher(), CHAT, steps=40, progress=lambda *_: None, **settings)
    jax.tree.map(np.testing.assert_array_equal, after, again)
