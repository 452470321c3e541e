"""The device side of hosted rollouts: rows of one KV cache in which rollouts speak, and rows in which others wait.

A token's column is its position, so what an earlier tenant of a row left behind stands at positions that the new one
has not reached: it is invisible until it is overwritten, and nothing has to be emptied.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from infopo_jax import sharding
from infopo_jax.lm import cache as cache_lib, sampling

PREFILL_CHUNK = 64  # tokens of one prompt that are fed at once


class Slots:
    """Programs over the rows, and the arrays that stay on the device between them.

    Args:
        graphdef: static part of the model.
        num_slots: rows that are decoded together.
        num_aside: rows that wait for their environment while others take their slots.
        max_tokens: most tokens of a row.
        chunk: most decode steps per dispatch.
        extend_chunk: tokens fed per row and dispatch.
        stop_ids: tokens that end an action.
        mesh: devices that the slots are divided over.
        cache_dtype: of keys and values; None: the model's compute dtype.
    """

    def __init__(
        self,
        graphdef: Any,
        *,
        num_slots: int,
        num_aside: int,
        max_tokens: int,
        chunk: int,
        extend_chunk: int,
        stop_ids: tuple[int, ...],
        mesh: jax.sharding.Mesh | None = None,
        cache_dtype: str | None = None,
    ):
        self.num_slots, self.num_aside, self.extend_chunk = num_slots, num_aside, extend_chunk
        columns = max_tokens + max(extend_chunk, PREFILL_CHUNK)  # a padded chunk reaches past the last token
        bind = functools.partial
        self._publish = jax.jit(bind(sharding.publish, mesh=mesh))
        self._empty = jax.jit(bind(_empty, graphdef, mesh, columns, cache_dtype), static_argnums=1)
        self._extend = jax.jit(bind(_extend, graphdef, mesh), donate_argnums=(1, 2))
        self._decode = jax.jit(
            bind(_decode, graphdef, mesh, chunk, stop_ids),
            donate_argnums=(1, 2),
            static_argnames=('temperature', 'top_k', 'top_p', 'min_p'),
        )
        self._seat = jax.jit(bind(_seat, mesh), donate_argnums=(0, 1))
        self._swap = jax.jit(bind(_swap, mesh), donate_argnums=(0, 1))
        self._prompt: list[int] = []  # what the prompt's row holds

    def begin(self, params: Any, key: jax.Array) -> None:
        """Makes the rows ready for a batch: new weights, nothing fed."""
        self._params, self._key = self._publish(params), key
        self._cache, self._logits = self._empty(self._params, self.num_slots)
        self._aside = self._empty(self._params, self.num_aside)[0] if self.num_aside else None
        self._row, self._row_logits = self._empty(self._params, 1)
        self._prompt = []
        self._places = np.zeros((self.num_slots, 2), np.int32)  # (group, member) of each slot

    def seat(self, slots: list[int], places: list[tuple[int, int]], prompt: list[int]) -> int:
        """Gives slots to new rollouts of one prompt, fed and ready to speak; returns the tokens that had to be fed.

        The prompt is fed once, behind what it shares with the prompt before: policy and tools stand there already.
        """
        assert prompt
        shared = next((i for i, (a, b) in enumerate(zip(self._prompt, prompt, strict=False)) if a != b), None)
        shared = min(len(self._prompt), len(prompt)) if shared is None else shared
        if prompt != self._prompt:
            shared = min(shared, len(prompt) - 1)  # the last token gives the logits
            for start in range(shared, len(prompt), PREFILL_CHUNK):
                part = prompt[start : start + PREFILL_CHUNK]
                tokens = np.zeros((1, PREFILL_CHUNK), np.int32)
                tokens[0, : len(part)] = part
                count, fed = np.array([len(part)], np.int32), np.array([start], np.int32)
                self._row, self._row_logits = self._extend(
                    self._params, self._row, self._row_logits, tokens, count, fed
                )
            self._prompt = list(prompt)
        mask = np.zeros((self.num_slots,), bool)
        mask[slots] = True
        self._places[slots] = places
        self._cache, self._logits = self._seat(self._cache, self._logits, self._row, self._row_logits, mask)
        return len(prompt) - shared

    def swap(self, pairs: list[tuple[int, int]], places: list[tuple[int, int]]) -> None:
        """Exchanges slots with rows aside, and notes who sits there now.

        Args:
            pairs: (slot, row aside), at most one per slot.
            places: (group, member) of who comes into each slot.
        """
        index = np.zeros((self.num_slots, 2), np.int32)
        index[: len(pairs)] = pairs
        self._places[[slot for slot, _ in pairs]] = places
        self._cache, self._aside = self._swap(self._cache, self._aside, index, np.int32(len(pairs)))

    def extend(self, tokens: np.ndarray, count: np.ndarray, fed: np.ndarray) -> None:
        """Feeds tokens [slots, C], the first ``count`` of each row, behind the ``fed`` tokens that its row holds."""
        self._cache, self._logits = self._extend(self._params, self._cache, self._logits, tokens, count, fed)

    def decode(self, fed: np.ndarray, budget: np.ndarray, **draw: float):
        """Samples up to ``chunk`` tokens in rows with a budget, at most that, until each stops.

        Args:
            fed: [slots] tokens that each row holds.
            budget: [slots] tokens that each may say; 0 where nobody speaks.
            **draw: temperature, top_k, top_p and min_p of ``sampling.sample``.

        Returns:
            tokens [slots, chunk], log-probabilities [slots, chunk] and how many [slots], on the host.
        """
        self._cache, self._logits, out = self._decode(
            self._params, self._cache, self._logits, fed, budget, self._key, self._places, **draw
        )
        return jax.device_get(out)

    def wait(self) -> None:
        """Waits until what was dispatched is done, so that its time is told apart."""
        jax.block_until_ready(self._logits)


def _empty(graphdef, mesh, columns, cache_dtype, params, num_rows):
    """Returns a cache in which nothing stands and logits of no token, made where they stay."""
    config = nnx.merge(graphdef, params).config
    cache = cache_lib.empty(config, num_rows, columns, cache_dtype)
    return sharding.kv_cache(cache, mesh), sharding.rows(jnp.zeros((num_rows, config.vocab_size), jnp.float32), mesh)


def _extend(graphdef, mesh, params, cache, logits, tokens, count, fed):
    tokens, count, fed = sharding.rows((tokens, count, fed), mesh)
    model = nnx.merge(graphdef, params)
    offset = jnp.arange(tokens.shape[1])
    position = jnp.where(offset < count[:, None], fed[:, None] + offset, -1)
    hidden, cache = model.extend(tokens, position, cache, fed)
    last = jnp.take_along_axis(hidden, jnp.maximum(count - 1, 0)[:, None, None], axis=1)[:, 0]
    logits = jnp.where(count[:, None] > 0, model.logits(last), logits)
    return sharding.kv_cache(cache, mesh), sharding.rows(logits, mesh)


def _decode(graphdef, mesh, chunk, stop_ids, params, cache, logits, fed, budget, key, places, **draw):
    """Every token is fed as it is sampled, except one that ends the action: that goes in front of the feedback."""
    model = nnx.merge(graphdef, params)
    fed, budget, keys = sharding.rows((fed, budget, _row_keys(key, places)), mesh)
    n = logits.shape[0]

    def body(s):
        j, going, cache, logits, tokens, logps, count = s
        token_keys = jax.vmap(jax.random.fold_in)(keys, fed + count)
        token, logp = sampling.sample(token_keys, logits, **draw)
        tokens = tokens.at[:, j].set(jnp.where(going, token, 0))
        logps = logps.at[:, j].set(jnp.where(going, logp, 0.0))
        position = jnp.where(going, fed + count, -1)
        count = count + going
        stops = jnp.any(token[:, None] == jnp.array(stop_ids, jnp.int32), axis=1)
        goes_on = going & ~stops & (count < budget)
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
    return sharding.kv_cache(cache, mesh), sharding.rows(logits, mesh), tuple(out)


def _seat(mesh, cache, logits, row, row_logits, mask):
    """Copies the prompt's row into the slots of the mask."""

    def put(old, new):
        return jnp.where(mask.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    cache, logits = jax.tree.map(put, (cache, logits), (row, row_logits))
    return sharding.kv_cache(cache, mesh), sharding.rows(logits, mesh)


def _swap(mesh, cache, aside, pairs, count):
    """Exchanges the rows of the first ``count`` pairs, one after the other."""

    def one(i, both):
        (cache, aside), (slot, row) = both, pairs[i]
        out = jax.tree.map(lambda a: sharding.get_row(a, slot, mesh), cache)
        back = jax.tree.map(lambda a: sharding.get_row(a, row, mesh), aside)
        return (
            jax.tree.map(lambda a, new: sharding.put_row(a, new, slot, mesh), cache, back),
            jax.tree.map(lambda a, new: sharding.put_row(a, new, row, mesh), aside, out),
        )

    cache, aside = jax.lax.fori_loop(0, count, one, (cache, aside))
    return sharding.kv_cache(cache, mesh), sharding.kv_cache(aside, mesh)


def _row_keys(key, places):
    """Returns a key per slot for its (group, member)."""
    return jax.vmap(lambda p: jax.random.fold_in(jax.random.fold_in(key, p[0]), p[1]))(places)
