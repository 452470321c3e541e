"""Rollouts of text environments: the model decodes in slots on the device, the environments answer on the host.

Two device programs run over a fixed number of slots, each slot a row of one KV cache that lives across turns:
``extend`` feeds prompts and feedback in fixed chunks, ``decode`` samples up to ``chunk`` tokens a dispatch. A slot
whose action has ended goes to its environment; its answer is fed when enough slots wait, or none can decode. A finished
rollout's slot is taken by the next one. Keys are folded from (group, member, token position), so who sits where changes
nothing.
"""

import collections
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from infopo_jax import packing
from infopo_jax.envs.text import TextEnv
from infopo_jax.lm import cache as cache_lib, sampling
from infopo_jax.lm.chat import Chat
from infopo_jax.rollout.dialogue import Dialogue, Limits
from infopo_jax.types import Role, Turns

ROOM = 0.6  # share of the most branch and target tokens that fit a rung below the last
EXTEND_SHARE = 0.5  # of the busy slots must wait for the device before feedback is fed while others could decode


@dataclasses.dataclass
class Clock:
    """Where a batch's time went, and how many tokens were moved."""

    decode: float = 0.0  # seconds on the device, sampling
    extend: float = 0.0  # seconds on the device, feeding prompts and feedback
    env: float = 0.0  # seconds in environments
    sampled: int = 0  # tokens
    fed: int = 0  # tokens


class HostedRollout:
    """Plays batches of episodes of a text environment.

    Args:
        make_env: returns a fresh environment; one serves one rollout.
        chat: renders messages.
        graphdef: static part of the model.
        limits: of turns and tokens.
        num_slots: rows decoded at once.
        chunk: decode steps per dispatch.
        extend_chunk: tokens fed per row and dispatch.
    """

    def __init__(
        self,
        make_env: Callable[[], TextEnv],
        chat: Chat,
        graphdef: Any,
        limits: Limits,
        *,
        num_slots: int,
        chunk: int = 8,
        extend_chunk: int = 16,
    ):
        self.make_env, self.chat, self.graphdef, self.limits = make_env, chat, graphdef, limits
        self.num_slots, self.chunk, self.extend_chunk = num_slots, chunk, extend_chunk
        self._extend = jax.jit(functools.partial(_extend, graphdef), donate_argnums=(1, 2))
        self._decode = jax.jit(
            functools.partial(_decode, graphdef, chunk, chat.stop_id),
            donate_argnums=(1, 2),
            static_argnames='temperature',
        )

    def rollout(
        self, params: Any, key: jax.Array, tasks: Sequence[Any], *, group_size: int, seed: int, temperature: float
    ) -> tuple[list[Dialogue], Clock]:
        """Plays ``group_size`` episodes of every task.

        Args:
            params: of the model.
            key: of this batch.
            tasks: P task ids; a group shares the task and the reset seed.
            group_size: G.
            seed: host randomness of the environments (the wording of users).
            temperature: of sampling; 0 is greedy.

        Returns:
            N = P * G finished dialogues in the order of their rows, and the clock.
        """
        dialogues = [
            Dialogue(self.chat, self.limits, task, group=g, member=m, seed=seed + 7919 * g)
            for g, task in enumerate(tasks)
            for m in range(group_size)
        ]
        queue, clock = collections.deque(dialogues), Clock()
        slots: list[Dialogue | None] = [None] * self.num_slots
        keys = _row_keys(key, np.zeros((self.num_slots, 2), np.int32))
        places = np.zeros((self.num_slots, 2), np.int32)
        model_config = nnx.merge(self.graphdef, params).config
        device = _Device(
            cache=cache_lib.empty(model_config, self.num_slots, self.limits.max_tokens + max(self.extend_chunk, 2)),
            logits=jnp.zeros((self.num_slots, model_config.vocab_size), jnp.float32),
        )
        while True:
            refilled = self._refill(slots, queue, places, clock)
            if refilled is not None:
                keys = _row_keys(key, places)
                device.cache = _forget(device.cache, refilled)
            busy = [d for d in slots if d is not None]
            if not busy:
                return dialogues, clock
            waiting = [d for d in busy if d.pending]
            if waiting and (len(waiting) >= EXTEND_SHARE * len(busy) or len(waiting) == len(busy)):
                self._feed(params, device, slots, clock)
            self._sample(params, device, slots, keys, temperature, clock)
            self._answer(slots, clock)

    def _refill(self, slots, queue, places, clock) -> np.ndarray | None:
        """Puts queued dialogues into free slots; returns a mask of the slots that changed."""
        start, changed = time.perf_counter(), np.zeros((len(slots),), bool)
        for i in range(len(slots)):
            if slots[i] is not None and slots[i].ended:
                slots[i] = None
            while slots[i] is None and queue:
                dialogue = queue.popleft()
                dialogue.start(self.make_env())
                if not dialogue.ended:  # it has not failed at once
                    slots[i], changed[i] = dialogue, True
                    places[i] = dialogue.group, dialogue.member
        clock.env += time.perf_counter() - start
        return changed if changed.any() else None

    def _feed(self, params, device, slots, clock):
        """Feeds all pending tokens, ``extend_chunk`` per row and dispatch."""
        start = time.perf_counter()
        while any(d is not None and d.pending for d in slots):
            tokens = np.zeros((len(slots), self.extend_chunk), np.int32)
            count, fed = (np.zeros((len(slots),), np.int32) for _ in range(2))
            for i, d in enumerate(slots):
                if d is None:
                    continue
                fed[i] = d.fed
                part = d.take(self.extend_chunk)
                tokens[i, : len(part)], count[i] = part, len(part)
            device.cache, device.logits = self._extend(params, device.cache, device.logits, tokens, count, fed)
            clock.fed += int(count.sum())
        jax.block_until_ready(device.logits)
        clock.extend += time.perf_counter() - start

    def _sample(self, params, device, slots, keys, temperature, clock):
        """Samples up to ``chunk`` tokens in every slot whose agent speaks."""
        speaking = np.array([d is not None and not d.pending and not d.ended for d in slots])
        if not speaking.any():
            return
        start = time.perf_counter()
        fed = np.array([0 if d is None else d.fed for d in slots], np.int32)
        budget = np.array([d.budget if on else 0 for d, on in zip(slots, speaking, strict=True)], np.int32)
        device.cache, device.logits, out = self._decode(
            params, device.cache, device.logits, fed, budget, keys, temperature=temperature
        )
        tokens, logps, count = jax.device_get(out)
        for i in np.flatnonzero(speaking):
            slots[i].hear(tokens[i, : count[i]], logps[i, : count[i]])
        clock.sampled += int(count.sum())
        clock.decode += time.perf_counter() - start

    def _answer(self, slots, clock):
        """Lets environments answer the actions that have ended."""
        start = time.perf_counter()
        for d in slots:
            if d is not None and d.spoken:
                d.step()
        clock.env += time.perf_counter() - start


@dataclasses.dataclass
class _Device:
    """What stays on the device between dispatches."""

    cache: cache_lib.Cache
    logits: jax.Array  # [slots, V] of each row's next token


def _extend(graphdef, params, cache, logits, tokens, count, fed):
    """Feeds tokens [S, C], the first ``count`` of each row, behind the ``fed`` tokens that its cache holds."""
    model = nnx.merge(graphdef, params)
    offset = jnp.arange(tokens.shape[1])
    position = jnp.where(offset < count[:, None], fed[:, None] + offset, -1)
    hidden, cache = model.extend(tokens, position, cache, fed)
    last = jnp.take_along_axis(hidden, jnp.maximum(count - 1, 0)[:, None, None], axis=1)[:, 0]
    return cache, jnp.where(count[:, None] > 0, model.logits(last), logits)


def _decode(graphdef, chunk, stop_id, params, cache, logits, fed, budget, keys, *, temperature):
    """Samples up to ``chunk`` tokens per row, at most ``budget``, until it stops.

    Every token is fed as it is sampled, except one that ends the action: that goes in front of the feedback.

    Returns:
        cache, logits and (tokens [S, chunk], logps [S, chunk], count [S]).
    """
    model = nnx.merge(graphdef, params)
    n = logits.shape[0]

    def body(s):
        j, going, cache, logits, tokens, logps, count = s
        token_keys = jax.vmap(jax.random.fold_in)(keys, fed + count)
        token, logp = sampling.sample(token_keys, logits, temperature=temperature)
        tokens = tokens.at[:, j].set(jnp.where(going, token, 0))
        logps = logps.at[:, j].set(jnp.where(going, logp, 0.0))
        position = jnp.where(going, fed + count, -1)
        count = count + going
        goes_on = going & (token != stop_id) & (count < budget)
        # A row that waits or has stopped writes to its next free column, never over a token of its past.
        column = fed + count - goes_on

        def feed(cache):
            hidden, cache = model.extend(token[:, None], jnp.where(goes_on, position, -1)[:, None], cache, column)
            return cache, model.logits(hidden[:, 0])

        cache, logits = jax.lax.cond(jnp.any(goes_on), feed, lambda cache: (cache, logits), cache)
        return j + 1, goes_on, cache, logits, tokens, logps, count

    start = (
        jnp.int32(0), budget > 0, cache, logits,
        jnp.zeros((n, chunk), jnp.int32), jnp.zeros((n, chunk), jnp.float32), jnp.zeros((n,), jnp.int32),
    )  # fmt: skip
    _, _, cache, logits, *out = jax.lax.while_loop(lambda s: (s[0] < chunk) & jnp.any(s[1]), body, start)
    return cache, logits, tuple(out)


@jax.jit
def _row_keys(key, places):
    """Returns a key per slot for its (group, member)."""
    return jax.vmap(lambda p: jax.random.fold_in(jax.random.fold_in(key, p[0]), p[1]))(places)


@functools.partial(jax.jit, donate_argnums=0)
def _forget(cache, rows):
    """Empties the cache of some rows."""
    position = jnp.where(rows[:, None], -1, cache.position)
    return cache_lib.Cache(k=cache.k, v=cache.v, position=position)


class RolloutsFailed(ValueError):
    """Too many rollouts of a batch failed; the message has the first failure's text."""


@dataclasses.dataclass(frozen=True)
class Ladder:
    """At most four shapes that a batch can have: the rung fixes L, B and A together, so that little recompiles."""

    rungs: tuple[tuple[int, int, int], ...]  # (L, B, A), ascending

    @classmethod
    def of(cls, limits: Limits, *, num_placeholder: int, horizon: int | str, num_rungs: int = 4) -> 'Ladder':
        """Returns rungs of equally spaced L; the last holds anything that the limits allow.

        Branches and targets of real dialogues take up well under half of what L would allow; lower rungs have room for
        ROOM of it, and a batch that needs more takes the next rung.
        """
        most = limits.max_tokens
        targets = min(most, limits.max_turns * limits.max_action_tokens)
        h = packing.num_horizons(horizon, limits.max_turns)
        branches = most * h + limits.max_turns * (num_placeholder + 1)
        sizes = []
        for i in range(1, num_rungs + 1):
            room = 1.0 if i == num_rungs else ROOM
            wanted = (most * i, room * branches * i, room * targets * i)
            bounds = zip(wanted, (most, branches, targets), strict=True)
            sizes.append(tuple(min(x, math.ceil(want / (num_rungs * 16)) * 16) for want, x in bounds))
        return cls(tuple(dict.fromkeys(sizes)))

    def fit(self, turns: Turns, placeholder: Sequence[int], horizon: int | str) -> tuple[tuple[int, int], Turns]:
        """Returns (B, A) of the lowest rung that holds a concrete batch, and the batch cut to its L."""
        length = int(np.max(np.sum(turns.role != Role.PAD, axis=1)))
        branch, target = packing.bounds(turns, placeholder, horizon=horizon, multiple=1)
        for rung in self.rungs:
            if length <= rung[0] and branch <= rung[1] and target <= rung[2]:
                cut = {name: getattr(turns, name)[:, : rung[0]] for name in ('tokens', 'role', 'turn', 'sampled_logp')}
                return rung[1:], dataclasses.replace(turns, **cut)
        raise ValueError(f'a batch of L={length}, B={branch}, A={target} fits no rung of {self.rungs}')


def to_turns(dialogues: Sequence[Dialogue], length: int, num_turns: int) -> Turns:
    """Pads finished dialogues to Turns with L = length, T = num_turns."""
    n = len(dialogues)
    blank = {
        'tokens': np.zeros((n, length), np.int32),
        'role': np.zeros((n, length), np.int8),
        'turn': np.full((n, length), -1, np.int32),
        'sampled_logp': np.zeros((n, length), np.float32),
    }
    reward, error = np.zeros((n, num_turns), np.float32), np.zeros((n, num_turns), bool)
    for i, d in enumerate(dialogues):
        size = len(d.ids)
        values = {'tokens': d.ids, 'role': d.roles, 'turn': d.turns, 'sampled_logp': d.logps}
        for name, value in values.items():
            blank[name][i, :size] = value
        reward[i, : len(d.rewards)], error[i, : len(d.errors)] = d.rewards, d.errors
    return Turns(
        **blank,
        turn_reward=reward,
        outcome=np.array([d.outcome for d in dialogues], np.float32),
        success=np.array([d.success for d in dialogues]),
        valid=np.array([d.valid for d in dialogues]),
        num_turns=np.array([d.num_turns for d in dialogues], np.int32),
        end_reason=np.array([d.end_reason for d in dialogues], np.int8),
        turn_error=error,
    )
