"""The warm start: a short supervised phase before reinforcement learning.

It teaches a model from scratch the syntax of actions and to copy known values, by single transitions: some history,
then one action that follows no strategy. It never shows what to ask when, nor a whole solved episode; it does show the
placeholder, since the gain would otherwise measure how novel the placeholder looks.
"""

import functools
import itertools
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from infopo_jax import sharding
from infopo_jax.envs.array import ArrayEnv, Example
from infopo_jax.envs.text import Message, Teachable
from infopo_jax.envs.tools import native
from infopo_jax.lm import attention, head
from infopo_jax.lm.chat import Chat


def example_loss(model: Any, examples: Example, max_targets: int) -> jax.Array:
    """Returns the mean cross-entropy, nats per target token, of a batch of examples.

    Args:
        model: a ``lm.transformer.Transformer``.
        examples: fields [N, M]; a target is never the first token.
        max_targets: most target tokens that a row has; the head runs on so many.
    """
    hidden = model.trunk(examples.tokens, attention.trunk_place(examples.token_mask))
    index = jnp.argsort(~examples.target_mask, axis=1, stable=True)[:, :max_targets]
    taught = examples.target_mask if examples.guess_mask is None else examples.target_mask & ~examples.guess_mask
    mask = jnp.take_along_axis(taught, index, axis=1)
    targets = jnp.take_along_axis(examples.tokens, index, axis=1)
    states = jnp.take_along_axis(hidden, jnp.maximum(index - 1, 0)[..., None], axis=1)
    stats = head.target_stats(states, model.vocab_kernel, targets, soft_cap=model.config.final_soft_cap)
    return -jnp.sum(jnp.where(mask, stats.logp, 0.0)) / jnp.maximum(jnp.sum(mask), 1)


def optimizer(lr: float, steps: int, *, clip_norm: float = 1.0) -> optax.GradientTransformation:
    """Returns AdamW with a short linear warm-up and a linear decay to a tenth."""
    rise = max(1, min(20, steps // 5))
    schedule = optax.join_schedules(
        [optax.linear_schedule(0.0, lr, rise), optax.linear_schedule(lr, lr / 10, max(1, steps - rise))], [rise]
    )
    return optax.chain(optax.clip_by_global_norm(clip_norm), optax.adamw(schedule, b2=0.98, weight_decay=0.0))


def make_step(
    graphdef: Any, tx: optax.GradientTransformation, *, max_targets: int, mesh: jax.sharding.Mesh | None = None
) -> Callable:
    """Returns step(params, opt_state, examples) -> (params, opt_state, loss), to be jitted by the caller."""

    def loss_of(params, examples):
        return example_loss(sharding.merge(graphdef, params, mesh), examples, max_targets)

    def step(params, opt_state, examples):
        loss, grads = jax.value_and_grad(loss_of)(params, sharding.rows(examples, mesh))
        updates, opt_state = tx.update(sharding.by_name(grads, mesh), opt_state, params)
        params = optax.apply_updates(params, updates)
        return sharding.by_name(params, mesh), sharding.by_name(opt_state, mesh), loss

    return step


def init_optimizer(tx: optax.GradientTransformation, params: Any, mesh: jax.sharding.Mesh | None = None) -> Any:
    """Returns the optimizer's state, laid out as the parameters are; traceable."""
    return sharding.by_name(tx.init(params), mesh)


def draw_examples(env: ArrayEnv, key: jax.Array, batch: int) -> Example:
    """Draws a batch of warm-start transitions of an array environment."""
    return jax.vmap(env.example)(jax.random.split(key, batch))


def array_steps(
    graphdef: Any,
    env: ArrayEnv,
    tx: optax.GradientTransformation,
    *,
    steps: int,
    batch: int,
    mesh: jax.sharding.Mesh | None = None,
) -> Callable:
    """Returns run(params, opt_state, key, start) -> (params, opt_state, losses [steps]); traceable.

    A stretch of the warm start: step i draws its examples from ``key`` folded with i, wherever stretches are cut.
    """
    step = make_step(graphdef, tx, max_targets=env.action_len, mesh=mesh)

    def run(params, opt_state, key, start):
        def body(carry, i):
            params, opt_state, loss = step(*carry, draw_examples(env, jax.random.fold_in(key, i), batch))
            return (params, opt_state), loss

        (params, opt_state), losses = jax.lax.scan(body, (params, opt_state), start + jnp.arange(steps))
        return params, opt_state, losses

    return run


def tools_of(env: Teachable) -> list[dict] | None:
    """Returns the tools that an environment shows in its opening, which are those of all its tasks."""
    _, info = env.reset(options={'task': env.tasks('train')[0]})
    getattr(env, 'close', lambda: None)()
    return info.get('tools')


def render_example(
    chat: Chat, messages: list[Message], target: str, tools: list[dict] | None = None
) -> tuple[list[int], int]:
    """Renders one transition as a rollout lays it out: tools in the prompt, calls in the layout of the chat.

    Args:
        chat: renders.
        messages: an opening, then actions, in Hermes layout, with their answers.
        target: the action that follows.
        tools: that the opening shows.

    Returns:
        Its ids, and how many of them, at the end, are the target.
    """
    turns = [i for i, message in enumerate(messages) if message['role'] == 'assistant']
    first = turns[0] if turns else len(messages)

    def said(text):
        return [*chat.encode_action(native(text, chat.tool_format)), chat.stop_id]

    ids = chat.prompt(messages[:first], tools)
    for start, end in itertools.pairwise([*turns, len(messages)]):
        ids += said(messages[start]['content']) + chat.reply(messages[start + 1 : end])[0]
    last = said(target)
    return ids + last, len(last)


def text_batches(
    env: Teachable,
    chat: Chat,
    *,
    seed: int,
    batch: int,
    max_len: int,
    max_targets: int,
    pool: int = 8,
    multiple: int = 64,
) -> Iterator[Example]:
    """Yields batches of text transitions; rows of like length stand together, padded to a few lengths only.

    Args:
        pool: batches drawn at once and sorted by length among each other.
        multiple: lengths are padded to multiples of this.

    Raises:
        ValueError: the limits leave no example.
    """
    rng, tools = random.Random(f'warm start {seed}'), tools_of(env)
    while True:
        drawn, refused = [], 0
        while len(drawn) < pool * batch:
            ids, said = render_example(chat, *env.example(rng), tools)
            if len(ids) <= max_len and said <= max_targets:
                drawn.append((ids, said))
            else:
                refused += 1
            if refused > 1000 and not drawn:
                raise ValueError(
                    f"no warm-start example fits: one has {len(ids)} tokens, {said} of them the target's, and "
                    f'{max_len} and {max_targets} are allowed; raise config.rollout.max_tokens or max_action_tokens'
                )
        drawn.sort(key=lambda item: len(item[0]))
        batches = [drawn[i : i + batch] for i in range(0, len(drawn), batch)]
        rng.shuffle(batches)
        for rows in batches:
            length = min(max_len, -(-max(len(ids) for ids, _ in rows) // multiple) * multiple)
            tokens = np.zeros((batch, length), np.int32)
            real, target = (np.zeros((batch, length), bool) for _ in range(2))
            for i, (ids, said) in enumerate(rows):
                tokens[i, : len(ids)], real[i, : len(ids)] = ids, True
                target[i, len(ids) - said : len(ids)] = True
            yield Example(tokens=tokens, token_mask=real, target_mask=target)


def run_text(
    graphdef: Any,
    params: Any,
    env: Teachable,
    chat: Chat,
    *,
    seed: int,
    steps: int,
    batch: int,
    lr: float,
    max_len: int,
    max_targets: int,
    progress: Callable[[int, float], None],
    mesh: jax.sharding.Mesh | None = None,
) -> Any:
    """Warm-starts on a text environment; examples are drawn on the host while the device works.

    Args:
        max_len: most tokens of an example. max_targets: most taught tokens of an example; longer ones are left out.
        progress: is called now and then with the steps done and the loss, nats per target token.
        mesh: of the parameters; an example is a row.

    Returns:
        The parameters.
    """
    tx = optimizer(lr, steps)
    step = jax.jit(make_step(graphdef, tx, max_targets=max_targets, mesh=mesh), donate_argnums=(0, 1))
    batches = text_batches(env, chat, seed=seed, batch=batch, max_len=max_len, max_targets=max_targets)
    opt_state = jax.jit(functools.partial(init_optimizer, tx, mesh=mesh))(params)
    with ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(next, batches)
        for i in range(1, steps + 1):
            examples, coming = coming.result(), ahead.submit(next, batches)
            params, opt_state, loss = step(params, opt_state, examples)
            if i % max(1, steps // 10) == 0:
                progress(i, float(loss))
    return params
