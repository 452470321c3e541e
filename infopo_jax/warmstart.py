"""The warm start: a short supervised phase before reinforcement learning.

It teaches a model from scratch the syntax of actions and to copy known values, by single transitions: some history, then one
action that follows no strategy. It never shows what to ask when, nor a whole solved episode; it does show the placeholder,
since the gain would otherwise measure how novel the placeholder looks.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from infopo_jax.envs.array import ArrayEnv, Example
from infopo_jax.lm import attention, head


def example_loss(model: Any, examples: Example) -> jax.Array:
    """Returns the mean cross-entropy, nats per target token, of a batch of examples ([N, M] fields)."""
    hidden = model.trunk(examples.tokens, attention.trunk_place(examples.token_mask))
    stats = head.target_stats(hidden[:, :-1], model.vocab_kernel, examples.tokens[:, 1:])
    mask = examples.target_mask[:, 1:]
    return -jnp.sum(jnp.where(mask, stats.logp, 0.0)) / jnp.maximum(jnp.sum(mask), 1)


def optimizer(lr: float, steps: int, *, clip_norm: float = 1.0) -> optax.GradientTransformation:
    """Returns AdamW with a short linear warm-up and a linear decay to a tenth."""
    rise = max(1, min(20, steps // 5))
    schedule = optax.join_schedules(
        [optax.linear_schedule(0.0, lr, rise), optax.linear_schedule(lr, lr / 10, max(1, steps - rise))], [rise]
    )
    return optax.chain(optax.clip_by_global_norm(clip_norm), optax.adamw(schedule, b2=0.98, weight_decay=0.0))


def make_step(graphdef: Any, tx: optax.GradientTransformation) -> Callable:
    """Returns step(params, opt_state, examples) -> (params, opt_state, loss), to be jitted by the caller."""

    def step(params, opt_state, examples):
        loss, grads = jax.value_and_grad(lambda p: example_loss(nnx.merge(graphdef, p), examples))(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    return step


def draw_examples(env: ArrayEnv, key: jax.Array, batch: int) -> Example:
    """Draws a batch of warm-start transitions of an array environment."""
    return jax.vmap(env.example)(jax.random.split(key, batch))


def run_array(graphdef: Any, params: Any, env: ArrayEnv, key: jax.Array, *, steps: int, batch: int, lr: float):
    """Warm-starts on an array environment, all steps in one traceable program.

    Returns:
        the parameters and the losses [steps], nats per target token.
    """
    tx = optimizer(lr, steps)
    step = make_step(graphdef, tx)

    def body(carry, i):
        params, opt_state, loss = step(*carry, draw_examples(env, jax.random.fold_in(key, i), batch))
        return (params, opt_state), loss

    (params, _), losses = jax.lax.scan(body, (params, tx.init(params)), jnp.arange(steps))
    return params, losses
