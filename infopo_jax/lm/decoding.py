"""The device side of generation: padded shapes, the programs that prefill and decode, and what stays between them.

A batch is prefilled once per prompt. Its rows then decode in lockstep: all that go on have drawn equally many tokens,
and a step writes one column for all of them, into a cache of their own behind that of the prompts.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from infopo_jax.lm import cache as cache_lib, sampling
from infopo_jax.types import pytree_dataclass

LEAST_COLUMNS = 16  # smallest size of a cache
PREFILL_TOKENS = 32768  # prompt tokens fed at once, all rows together: bounds the memory of activations
LEAST_CHUNK = 64  # prompt tokens per row fed at once, at least


@dataclasses.dataclass(frozen=True)
class Draw:
    """How a token is drawn; see ``sampling.sample``. The default is what training samples from."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self):
        sampling.check(**dataclasses.asdict(self))

    def __call__(self, uniform: jax.Array, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns token and log-probability [N]."""
        return sampling.draw(uniform, logits, **dataclasses.asdict(self))


@pytree_dataclass
class State:
    """What stays on the device between chunks."""

    cache: cache_lib.Cache  # of what the rows have said, behind that of the prompts
    token: jax.Array  # [N] int32, drawn and not yet fed
    step: jax.Array  # [] int32, tokens drawn per row that goes on
    going: jax.Array  # [N] bool, the row draws another token


@pytree_dataclass
class Drawn:
    """What a dispatch hands to the host."""

    tokens: jax.Array  # [N, C] int32
    logps: jax.Array  # [N, C] float32
    count: jax.Array  # [N] int32, how many of them each row has drawn
    going: jax.Array  # [N] bool


def for_decoding(model: Any) -> Any:
    """Returns the model with its weights as decoding reads them: in the compute dtype, a module per layer.

    Called before a loop, it spares the loop to cut every layer out of the stacked weights, and to convert it, at every
    token. The result has ``extend`` and ``logits``; it is no model to be scored or trained.
    """
    dtype = jnp.dtype(model.config.dtype)

    def convert(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        stays = 'scale' in name or 'adapter' in name or leaf.dtype.itemsize <= dtype.itemsize
        return leaf if stays else leaf.astype(dtype)

    graphdef, params = nnx.split(model)
    model = nnx.merge(graphdef, jax.tree_util.tree_map_with_path(convert, params))
    model.blocks = nnx.List(model.unstacked())
    return model


_for_decoding = nnx.jit(for_decoding)  # one program for every model of a shape


def split_for_decoding(model: Any) -> tuple[Any, Any]:
    """Returns graphdef and parameters of ``for_decoding(model)``, computed under jit."""
    return nnx.split(_for_decoding(model))


def bucket(size: int, least: int = 1) -> int:
    """Returns the smallest of least * (1, 1.5, 2, 3, 4, 6, 8, ...), rounded up, that is at least ``size``."""
    step = least
    while step < size:
        half = -(-3 * step // 2)
        if half >= size:
            return half
        step *= 2
    return step


class Batch:
    """One batch of prompts on the device.

    Args:
        model: what ``split_for_decoding`` returned.
        prompts: P lists of ids.
        limits: [N] int32, most tokens of each row.
        draw: how tokens are drawn.
        stop_ids: tokens that end a row.
        chunk: tokens per row and dispatch.
        cache_dtype: of keys and values.
        folds: [P, K] integers that the prompts' keys are folded with, one after the other; None: 0, 1, ... [P, 1].
        least_prompts: rows of prompts, at least.
        allow_empty: False: the first token is none that ends a row.
    """

    def __init__(
        self, model, prompts, limits, *,
        draw, stop_ids, chunk, cache_dtype, folds=None, least_prompts=1, allow_empty=True,
    ):  # fmt: skip
        self.graphdef, self.params = model
        self.draw, self.stop_ids, self.chunk, self.cache_dtype = draw, stop_ids, chunk, cache_dtype
        self.allow_empty = allow_empty
        self.group_size = group_size = len(limits) // len(prompts)
        num_prompts = bucket(len(prompts), least_prompts)
        self.tokens = np.zeros((num_prompts, bucket(max(map(len, prompts)), LEAST_COLUMNS)), np.int32)
        self.lengths = np.ones((num_prompts,), np.int32)  # a row that fills the batch up has one token and says none
        for p, prompt in enumerate(prompts):
            self.tokens[p, : len(prompt)], self.lengths[p] = prompt, len(prompt)
        self.limits = np.zeros((num_prompts * group_size,), np.int32)
        self.limits[: len(limits)] = limits
        folds = np.arange(num_prompts)[:, None] if folds is None else np.asarray(folds)
        self.folds = np.zeros((num_prompts, folds.shape[1]), np.uint32)
        self.folds[: len(folds)] = folds
        self.step = 0

    def begin(self, key):
        """Prefills and draws every row's first token."""
        chunk = max(LEAST_CHUNK, bucket(PREFILL_TOKENS // len(self.lengths)))
        prefix, logits = _prefill(
            self.graphdef, min(chunk, self.tokens.shape[1]), self.cache_dtype, self.params, self.tokens, self.lengths
        )
        size = bucket(self.chunk, LEAST_COLUMNS)
        setting = (self.group_size, size, self.draw, self.stop_ids, self.allow_empty)
        self.keys, self.state, self.drawn = _begin(
            self.graphdef, *setting, self.params, prefix, logits, key, self.folds, self.limits
        )
        self.step = 1

    def advance(self, ended):
        """Draws up to ``chunk`` further tokens per row that goes on and that the host has not ended."""
        padded = np.zeros((len(self.limits),), bool)
        padded[: len(ended)] = ended
        size = bucket(self.step - 1 + self.chunk, LEAST_COLUMNS)
        if size > self.state.cache.size:
            prefix, own = self.state.cache.prefix, dataclasses.replace(self.state.cache, prefix=None)
            cache = dataclasses.replace(_grow(size, own), prefix=prefix)
            self.state = dataclasses.replace(self.state, cache=cache)
        self.state, self.drawn = _advance(
            self.graphdef, self.chunk, self.group_size, self.draw, self.stop_ids,
            self.params, self.state, self.keys, self.lengths, self.limits, padded,
        )  # fmt: skip
        self.step += self.chunk


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _prefill(graphdef, chunk, cache_dtype, params, tokens, lengths):
    """Feeds prompts [P, S], ``chunk`` tokens per row at once; returns their cache and the logits behind them."""
    model = nnx.merge(graphdef, params)
    column = jnp.arange(tokens.shape[1])
    position = jnp.where(column < lengths[:, None], column, -1)
    cache, last = cache_lib.empty(model.config, len(lengths), 0, cache_dtype), 0.0
    for start in range(0, tokens.shape[1], chunk):
        end = min(start + chunk, tokens.shape[1])
        cache = cache_lib.resize(cache, end)
        hidden, cache = model.extend(tokens[:, start:end], position[:, start:end], cache, jnp.int32(start))
        here = (lengths > start) & (lengths <= end)
        index = jnp.where(here, lengths - 1 - start, 0)[:, None, None]
        last = jnp.where(here[:, None], jnp.take_along_axis(hidden, index, axis=1)[:, 0], last)
    return cache, model.logits(last)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def _begin(graphdef, group_size, size, draw, stop_ids, allow_empty, params, prefix, logits, key, folds, limits):
    """Draws every row's first token; returns row keys, state and what was drawn."""
    config, n = nnx.merge(graphdef, params).config, len(limits)
    groups = jax.vmap(lambda words: functools.reduce(jax.random.fold_in, words, key))(folds)
    keys = jax.vmap(lambda k: jax.vmap(functools.partial(jax.random.fold_in, k))(jnp.arange(group_size)))(groups)
    keys = keys.reshape(n)
    uniform = sampling.uniforms(_token_keys(keys, jnp.zeros((1,), jnp.int32)))[:, 0]
    if not allow_empty and stop_ids:
        logits = logits.at[:, jnp.array(stop_ids)].set(-jnp.inf, mode='drop')
    token, logp = draw(uniform, jnp.repeat(logits, group_size, axis=0))
    going = (limits > 1) & ~_is_in(token, stop_ids)
    cache = cache_lib.behind(prefix, config, n, size)
    drawn = Drawn(token[:, None], logp[:, None], (limits > 0).astype(jnp.int32), going)
    return keys, State(cache=cache, token=token, step=jnp.int32(1), going=going), drawn


@functools.partial(jax.jit, static_argnums=0)
def _grow(size, cache):
    return cache_lib.resize(cache, size)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4), donate_argnums=6)
def _advance(graphdef, chunk, group_size, draw, stop_ids, params, state, keys, lengths, limits, ended):
    """Feeds and draws up to ``chunk`` times, until no row goes on; returns the state and what was drawn."""
    model, n = nnx.merge(graphdef, params), len(limits)
    prefix, lengths = state.cache.prefix, jnp.repeat(lengths, group_size)
    uniform = sampling.uniforms(_token_keys(keys, state.step + jnp.arange(chunk)))
    ropes = model.rotary(lengths[:, None] + state.step - 1 + jnp.arange(chunk))

    def body(s):
        j, state, tokens, logps, count = s
        step = state.step
        position = jnp.where(state.going, lengths + step - 1, -1)[:, None]
        cache = dataclasses.replace(state.cache, prefix=prefix)
        rope = jax.tree.map(lambda t: jax.lax.dynamic_slice_in_dim(t, j, 1, axis=1), ropes)
        hidden, cache = model.extend(state.token[:, None], position, cache, step - 1, rope)
        token, logp = draw(uniform[:, j], model.logits(hidden[:, 0]))
        tokens = tokens.at[:, j].set(jnp.where(state.going, token, 0))
        logps = logps.at[:, j].set(jnp.where(state.going, logp, 0.0))
        count = count + state.going
        going = state.going & (step + 1 < limits) & ~_is_in(token, stop_ids)
        cache = dataclasses.replace(cache, prefix=None)
        return j + 1, State(cache=cache, token=token, step=step + 1, going=going), tokens, logps, count

    own = dataclasses.replace(state.cache, prefix=None)
    start = dataclasses.replace(state, cache=own, going=state.going & ~ended)
    blank = jnp.zeros((n, chunk), jnp.int32), jnp.zeros((n, chunk), jnp.float32), jnp.zeros((n,), jnp.int32)
    _, state, *drawn = jax.lax.while_loop(
        lambda s: (s[0] < chunk) & jnp.any(s[1].going), body, (jnp.int32(0), start, *blank)
    )
    state = dataclasses.replace(state, cache=dataclasses.replace(state.cache, prefix=prefix))
    return state, Drawn(*drawn, state.going)


def _token_keys(keys, index):
    """Returns a key per row and token, [N, C], of row keys [N] and token indices [C]."""
    return jax.vmap(lambda key: jax.vmap(functools.partial(jax.random.fold_in, key))(index))(keys)


def _is_in(token, ids):
    """Returns [N] bool, whether each token is one of a few ids."""
    return functools.reduce(jnp.logical_or, (token == i for i in ids), jnp.zeros(token.shape, bool))
