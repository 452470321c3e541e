"""Rollouts of array environments: prompts, sampling and feedback in one XLA program.

Each turn has a block of fixed columns (action, markup, feedback, markup) in the buffers of a rollout; what a row does
not use stays a hole, and ``compact`` closes the holes when the rollout has ended.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from infopo_jax import sharding
from infopo_jax.envs.array import ArrayEnv
from infopo_jax.lm import cache as cache_lib, decoding, sampling
from infopo_jax.types import EndReason, Role, Turns, pytree_dataclass


@dataclasses.dataclass(frozen=True)
class Layout:
    """Static sizes of a rollout of one environment."""

    prompt: int
    action: int
    opening: int
    feedback: int
    closing: int
    turns: int

    @classmethod
    def of(cls, env: ArrayEnv) -> 'Layout':
        return cls(
            env.prompt_len,
            env.action_len,
            len(env.feedback_open),
            env.feedback_len,
            len(env.feedback_close),
            env.max_turns,
        )

    @property
    def block(self) -> int:
        """Columns per turn."""
        return self.action + self.reply

    @property
    def reply(self) -> int:
        """Columns of markup and feedback."""
        return self.opening + self.feedback + self.closing

    @property
    def length(self) -> int:
        """L, the longest row: nothing follows the last action."""
        return self.prompt + self.turns * self.block - self.reply

    @property
    def targets(self) -> int:
        """A, the most action tokens a row can have."""
        return self.turns * self.action

    def branches(self, num_placeholder: int, horizon: int) -> int:
        """Returns B, the most branch tokens a row can need for ``horizon`` later actions."""
        return sum(self.branch(num_placeholder, horizon, turn) for turn in range(self.turns - 1)) or 1

    def branch(self, shown: int, horizon: int, turn: int = 0) -> int:
        """Returns the most tokens of a turn's branch that shows ``shown`` tokens of feedback."""
        first = self.opening + shown + self.closing + self.action
        return first + (min(horizon, self.turns - 1 - turn) - 1) * self.block


@pytree_dataclass
class _Buffers:
    """What a rollout writes, in its fixed columns; all [N, C]."""

    tokens: jax.Array
    role: jax.Array
    turn: jax.Array
    logp: jax.Array

    def write(self, start, tokens, mask, role, turn, logp=None):
        """Writes a block of columns; where mask is False nothing stands."""
        shape = tokens.shape
        logp = jnp.zeros(shape, jnp.float32) if logp is None else logp
        values = (tokens, jnp.broadcast_to(role, shape), jnp.broadcast_to(turn, shape), logp)
        empty = (0, Role.PAD, -1, 0.0)
        put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=1)
        fields = (self.tokens, self.role, self.turn, self.logp)
        blocks = (jnp.where(mask, v, e).astype(f.dtype) for v, e, f in zip(values, empty, fields, strict=True))
        return _Buffers(*(put(f, b) for f, b in zip(fields, blocks, strict=True)))


@pytree_dataclass
class _Carry:
    """State between turns."""

    t: jax.Array  # []
    alive: jax.Array  # [N]
    env_state: Any
    cache: cache_lib.Cache
    logits: jax.Array  # [N, V] of the next token
    length: jax.Array  # [N] real tokens so far
    buffers: _Buffers
    turn_reward: jax.Array  # [N, T]
    turn_error: jax.Array  # [N, T]
    bad: jax.Array  # [N] malformed actions in a row
    end_reason: jax.Array  # [N]
    num_turns: jax.Array  # [N]


def rollout(
    model: Any,
    env: ArrayEnv,
    key: jax.Array,
    *,
    num_prompts: int,
    group_size: int,
    split: str = 'train',
    temperature: float = 1.0,
    max_bad_actions: int = 3,
    rollout_mesh: jax.sharding.Mesh | None = None,
    **truncation: float,
) -> Turns:
    """Plays ``num_prompts`` groups of ``group_size`` episodes; traceable and without callbacks.

    A group shares its prompt (and one prefill of it); keys are folded from (group, member, turn or token), so that a
    rollout depends on nothing else in the batch.

    Args:
        model: a ``lm.transformer.Transformer``.
        env: the environment.
        key: key of this batch.
        num_prompts: P.
        group_size: G.
        split: 'train' or 'test' goals.
        temperature: of sampling; 0 is greedy.
        max_bad_actions: actions in a row answered by an error that end a rollout with BAD_ACTION.
        rollout_mesh: devices that the rows are divided over.
        **truncation: top_k, top_p and min_p of ``sampling.sample``, for evaluation.

    Returns:
        Turns of N = P * G rows, L = Layout.of(env).length.
    """
    lay, model = Layout.of(env), decoding.for_decoding(model)
    carry, member_keys = _start(model, env, lay, key, num_prompts, group_size, split, rollout_mesh)

    settings = {'temperature': temperature, **truncation}

    def body(c):
        return _divide(_turn(c, model, env, lay, member_keys, settings, max_bad_actions), rollout_mesh)

    carry = jax.lax.while_loop(lambda c: (c.t < lay.turns) & jnp.any(c.alive), body, carry)
    outcome, success = jax.vmap(env.score)(carry.env_state)
    end_reason = jnp.where(carry.alive, EndReason.TURN_LIMIT, carry.end_reason)
    b = compact(carry.buffers, lay.length)
    return Turns(
        tokens=b.tokens,
        role=b.role,
        turn=b.turn,
        sampled_logp=b.logp,
        turn_reward=carry.turn_reward,
        outcome=outcome.astype(jnp.float32),
        success=success & (end_reason == EndReason.DONE),
        valid=jnp.ones_like(success),
        num_turns=carry.num_turns,
        end_reason=end_reason.astype(jnp.int8),
        turn_error=carry.turn_error,
    )


def compact(buffers: _Buffers, length: int) -> _Buffers:
    """Closes the holes of every row, keeping order; the first ``length`` columns hold every real token."""
    real = buffers.role != Role.PAD
    ordinal = jnp.cumsum(real, axis=1)
    slot = jnp.arange(1, length + 1)
    source = jax.vmap(lambda o: jnp.searchsorted(o, slot, side='left'))(ordinal)
    keep = slot[None] <= ordinal[:, -1:]
    source = jnp.minimum(source, real.shape[1] - 1)

    def close(x, empty):
        return jnp.where(keep, jnp.take_along_axis(x, source, axis=1), jnp.asarray(empty, x.dtype))

    return _Buffers(
        close(buffers.tokens, 0), close(buffers.role, Role.PAD), close(buffers.turn, -1), close(buffers.logp, 0.0)
    )


def _divide(carry, mesh):
    """Divides the rows of a rollout over the mesh, and the key heads of its cache."""
    return dataclasses.replace(sharding.rows(carry, mesh), cache=sharding.kv_cache(carry.cache, mesh))


def _start(model, env, lay, key, num_prompts, group_size, split, rollout_mesh):
    """Draws the prompts, prefills each once and hands a copy of its cache to every member of the group."""
    n = num_prompts * group_size
    group_keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(num_prompts))
    reset_keys = jax.vmap(lambda k: jax.random.fold_in(k, 0))(group_keys)
    members = 1 + jnp.arange(group_size)
    member_keys = jax.vmap(lambda k: jax.vmap(functools.partial(jax.random.fold_in, k))(members))(group_keys)
    env_state, prompt, mask = jax.vmap(lambda k: env.reset(k, split))(reset_keys)
    env_state, prompt, mask = sharding.rows((env_state, prompt, mask), rollout_mesh)

    position = jnp.where(mask, jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, -1)
    cache = cache_lib.empty(model.config, num_prompts, lay.prompt + lay.turns * lay.block)
    cache = sharding.kv_cache(cache, rollout_mesh)
    hidden, cache = model.extend(prompt, position, cache, jnp.int32(0))
    logits = model.logits(_last(hidden, mask))

    def spread(tree):
        return jax.tree.map(lambda a: jnp.repeat(a, group_size, axis=0), tree)

    env_state, prompt, mask, logits = spread((env_state, prompt, mask, logits))
    columns = (n, lay.prompt + lay.turns * lay.block)
    buffers = _Buffers(
        jnp.zeros(columns, jnp.int32),
        jnp.zeros(columns, jnp.int8),
        jnp.full(columns, -1),
        jnp.zeros(columns, jnp.float32),
    )
    carry = _Carry(
        t=jnp.int32(0),
        alive=jnp.ones((n,), bool),
        env_state=env_state,
        cache=cache_lib.fork(cache, group_size),
        logits=logits,
        length=jnp.sum(mask, axis=1, dtype=jnp.int32),
        buffers=buffers.write(0, prompt, mask, Role.PROMPT, -1),
        turn_reward=jnp.zeros((n, lay.turns), jnp.float32),
        turn_error=jnp.zeros((n, lay.turns), bool),
        bad=jnp.zeros((n,), jnp.int32),
        end_reason=jnp.full((n,), EndReason.RUNNING, jnp.int32),
        num_turns=jnp.zeros((n,), jnp.int32),
    )
    return _divide(carry, rollout_mesh), sharding.rows(member_keys.reshape(n), rollout_mesh)


def _last(hidden, mask):
    """Returns the state [N, D] at the last real token of left-aligned rows."""
    last = jnp.maximum(jnp.sum(mask, axis=1) - 1, 0)
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]


def _decode(c, model, env, lay, member_keys, settings):
    """Samples one action per living row.

    The last token of an action is not fed here: it goes in front of the feedback, one dispatch less per turn.
    """
    n = c.alive.shape[0]
    start = lay.prompt + c.t * lay.block
    keys = jax.vmap(lambda k: jax.random.fold_in(jax.random.fold_in(k, 0), c.t))(member_keys)

    def draw(j, logits):
        return sampling.sample(jax.vmap(lambda k: jax.random.fold_in(k, j))(keys), logits, **settings)

    def record(j, tokens, logps, mask, alive, logits):
        token, logp = draw(j, logits)
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token[:, None], j, axis=1)
        logps = jax.lax.dynamic_update_slice_in_dim(logps, logp[:, None], j, axis=1)
        mask = jax.lax.dynamic_update_slice_in_dim(mask, alive[:, None], j, axis=1)
        return tokens, logps, mask, token, alive & (token != env.stop_id)

    def body(s):
        j, tokens, logps, mask, token, going, cache = s
        position = jnp.where(going, c.length + j - 1, -1)
        hidden, cache = model.extend(token[:, None], position[:, None], cache, start + j - 1)
        tokens, logps, mask, token, going = record(j, tokens, logps, mask, going, model.logits(hidden[:, 0]))
        return j + 1, tokens, logps, mask, token, going, cache

    blank = (
        jnp.zeros((n, lay.action), jnp.int32), jnp.zeros((n, lay.action), jnp.float32), jnp.zeros((n, lay.action), bool)
    )  # fmt: skip
    first = record(0, *blank, c.alive, c.logits)
    _, tokens, logps, mask, _, _, cache = jax.lax.while_loop(
        lambda s: (s[0] < lay.action) & jnp.any(s[5]), body, (jnp.int32(1), *first, c.cache)
    )
    return tokens, logps, mask, cache


def _turn(c, model, env, lay, member_keys, settings, max_bad_actions):
    """Plays one turn of every living row: action, environment, feedback."""
    tokens, logps, mask, cache = _decode(c, model, env, lay, member_keys, settings)
    mask &= c.alive[:, None]
    tokens = jnp.where(mask, tokens, 0)
    column = lay.prompt + c.t * lay.block
    buffers = c.buffers.write(column, tokens, mask, Role.ACTION, c.t, logps)
    count = jnp.sum(mask, axis=1, dtype=jnp.int32)

    step_keys = jax.vmap(lambda k: jax.random.fold_in(jax.random.fold_in(k, 1), c.t))(member_keys)
    answer = jax.vmap(env.step)(step_keys, c.env_state, tokens, mask)
    env_state, feedback, feedback_mask, reward, done, is_error = answer
    env_state = jax.tree.map(lambda a, b: jnp.where(_like(c.alive, a), a, b), env_state, c.env_state)
    bad = jnp.where(is_error, c.bad + 1, 0)
    ended = jnp.where(done, EndReason.DONE, jnp.where(bad >= max_bad_actions, EndReason.BAD_ACTION, EndReason.RUNNING))
    ended = jnp.where(c.alive, ended, c.end_reason)
    alive = c.alive & (ended == EndReason.RUNNING) & (c.t + 1 < lay.turns)
    limit = c.alive & (ended == EndReason.RUNNING) & ~alive
    ended = jnp.where(limit, EndReason.TURN_LIMIT, ended)

    # Reply: markup, feedback, markup, behind the action's last token, which the cache does not hold yet.
    reply, reply_mask, role = _reply(env, feedback, feedback_mask, alive)
    buffers = buffers.write(column + lay.action, reply, reply_mask, role, c.t)
    last = jnp.take_along_axis(tokens, jnp.maximum(count - 1, 0)[:, None], axis=1)
    fed = jnp.concatenate([last, reply], axis=1)
    fed_mask = jnp.concatenate([alive[:, None], reply_mask], axis=1)
    length = c.length + count
    position = jnp.where(fed_mask, length[:, None] - 2 + jnp.cumsum(fed_mask, axis=1, dtype=jnp.int32), -1)
    start = lay.prompt + c.t * lay.block + lay.action - 1

    def feed(cache):
        hidden, cache = model.extend(fed, position, cache, start)
        final = jnp.argmax(position, axis=1)
        return model.logits(jnp.take_along_axis(hidden, final[:, None, None], axis=1)[:, 0]), cache

    logits, cache = jax.lax.cond(jnp.any(alive), feed, lambda cache: (c.logits, cache), cache)
    played = c.alive[:, None] & (jnp.arange(lay.turns) == c.t)
    return _Carry(
        t=c.t + 1,
        alive=alive,
        env_state=env_state,
        cache=cache,
        logits=logits,
        length=length + jnp.sum(reply_mask, axis=1, dtype=jnp.int32),
        buffers=buffers,
        turn_reward=jnp.where(played, reward[:, None], c.turn_reward),
        turn_error=jnp.where(played, is_error[:, None], c.turn_error),
        bad=jnp.where(c.alive, bad, c.bad),
        end_reason=ended,
        num_turns=c.num_turns + c.alive,
    )


def _reply(env, feedback, feedback_mask, alive):
    """Returns the reply's tokens, mask and roles, [N, opening + feedback + closing]."""
    n = feedback.shape[0]
    opening, closing = (
        jnp.broadcast_to(jnp.array(m, jnp.int32), (n, len(m))) for m in (env.feedback_open, env.feedback_close)
    )
    tokens = jnp.concatenate([opening, feedback, closing], axis=1)
    mask = jnp.concatenate([jnp.ones(opening.shape, bool), feedback_mask, jnp.ones(closing.shape, bool)], axis=1)
    role = jnp.array(
        [Role.TEMPLATE] * opening.shape[1] + [Role.FEEDBACK] * feedback.shape[1] + [Role.TEMPLATE] * closing.shape[1]
    )
    return tokens, mask & alive[:, None], role


def _like(mask, x):
    """Gives a row mask the rank of x."""
    return mask.reshape(mask.shape + (1,) * (x.ndim - 1))
