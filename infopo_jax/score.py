"""Paired log-probabilities: every action with its real history and with one feedback masked, in one forward pass."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from infopo_jax import packing, sharding
from infopo_jax.lm import head
from infopo_jax.types import Turns, pytree_dataclass

KINDS = ('log_ratio', 'kl')


@pytree_dataclass
class Scores:
    """What a forward pass says about the agent's tokens; all float32, 0 at tokens that are not ACTION.

    ``logp[n, i]`` is log p(tokens[n, i] | tokens[n, :i]) under softmax(logits / temperature).
    """

    logp: jax.Array  # [N, L], with gradient
    entropy: jax.Array  # [N, L] nats, with gradient
    token_gain: jax.Array | None = None  # [N, H, L] without gradient; entry h - 1: the feedback h turns back was masked
    ref_logp: jax.Array | None = None  # [N, L] under the reference, without gradient
    ref_kl: jax.Array | None = None  # [N, L] exact KL(policy || reference), with gradient


def score(
    model: Any,
    turns: Turns,
    placeholder: jax.Array | None,
    *,
    horizon: int | str = 1,
    temperature: float = 1.0,
    kind: str = 'log_ratio',
    branch_len: int | None = None,
    target_len: int | None = None,
    reference: Any = None,
    mesh: sharding.AnyMesh | None = None,
) -> Scores:
    """Scores a batch and all its masked-feedback counterfactuals in one packed pass (InfoPO, arXiv 2603.00656).

    For the token i of a_{t+h}, with only o_t masked and everything else kept::

        'log_ratio'   token_gain[n, h-1, i] = log p(tokens[i] | real history) - log p(tokens[i] | masked history)
        'kl'          token_gain[n, h-1, i] = KL(p(. | real history) || p(. | masked history))

    Args:
        model: a ``lm.transformer.Transformer``.
        turns: the batch.
        placeholder: [K] int32 ids shown in place of feedback; None skips the counterfactual (token_gain is None).
        horizon: later actions that each feedback is compared on; 'all' (or 0) means every one.
        temperature: of the sampling softmax.
        kind: 'log_ratio' or 'kl'.
        branch_len: B, static bound of branch tokens per row; None finds it for a concrete batch.
        target_len: A, static bound of ACTION tokens per row; None finds it for a concrete batch.
        reference: a second model to compare with (ref_logp, ref_kl).
        mesh: that the rows are divided over, for the head to know what a device holds; it changes no value.

    Returns:
        Scores. Under jit a row whose branches do not fit B has NaN gain, and one whose actions do not fit A is NaN in
        all of them, which the update refuses.

    Raises:
        ValueError: for an unknown kind, or bounds that are missing or too small (see ``packing.pack``).
    """
    if kind not in KINDS:
        raise ValueError(f'kind must be one of {KINDS}, got {kind!r}')
    paired = placeholder is not None
    if not paired and target_len is None:
        target_len = turns.tokens.shape[1] if isinstance(turns.role, jax.core.Tracer) else None
    packed = packing.pack(
        turns,
        placeholder if paired else jnp.zeros((0,), jnp.int32),
        horizon=horizon if paired else 1,
        branch_len=branch_len if paired else turns.tokens.shape[1],
        target_len=target_len,
    )
    shards = _shards(mesh, len(turns.tokens), model.config.vocab_size)
    settings = dict(temperature=temperature, kind=kind, paired=paired, shards=shards)
    return _score(*_split(model), *_split(reference), turns, packed, **settings)


def _shards(mesh, num_rows: int, vocab_size: int) -> tuple[int, int]:
    """Returns over how many devices the rows and the vocabulary of logits are divided."""
    if mesh is None:
        return 1, 1
    rows, words = math.prod(mesh.shape[axis] for axis in sharding.ROWS), mesh.shape['tensor']
    return 1 if num_rows % rows else rows, 1 if vocab_size % words else words


def _split(model):
    return (None, None) if model is None else nnx.split(model)


@functools.partial(jax.jit, static_argnums=(0, 2), static_argnames=('temperature', 'kind', 'paired', 'shards'))
def _score(graphdef, params, ref_graphdef, ref_params, turns, packed, *, temperature, kind, paired, shards):
    model = nnx.merge(graphdef, params)
    reference = None if ref_graphdef is None else nnx.merge(ref_graphdef, ref_params)
    hidden, branch_hidden = _hidden(model, turns, packed, paired)
    before = jnp.maximum(packed.target_index - 1, 0)
    real = _gather(hidden, before)
    targets = _gather(turns.tokens, packed.target_index)
    others = []
    if reference is not None:
        frozen = jax.lax.stop_gradient(_gather(reference.trunk(turns.tokens, packed.trunk), before))
        others.append((frozen, jax.lax.stop_gradient(reference.vocab_kernel)))
    num_h = packed.branch_source.shape[1] if paired else 0
    if num_h == 1:  # the common case rides in the same chunks of the head
        masked = jax.lax.stop_gradient(_gather(_both(hidden, branch_hidden), packed.branch_source[:, 0]))
        others.append((masked, jax.lax.stop_gradient(model.vocab_kernel)))
    settings = dict(temperature=temperature, soft_cap=model.config.final_soft_cap, shards=shards)
    stats = head.target_stats(real, model.vocab_kernel, targets, others=others, **settings)

    # Rows that do not fit the static bounds have numbers that say so: no others' stand in their place.
    short = jnp.sum(turns.action_mask, axis=1) > packed.target_index.shape[1]

    gain = None
    if num_h == 1:
        gain = (stats.kl[-1] if kind == 'kl' else stats.logp - stats.other_logp[-1])[:, None]
    elif num_h > 1:
        gain = _gain_by_horizon(model, _both(hidden, branch_hidden), real, targets, packed, kind, settings)
    if paired:
        gain = jnp.where(packed.branch_mask, jax.lax.stop_gradient(gain), 0.0)
        overflow = short | (packed.branch_used > packed.branch_tokens.shape[1])
        gain = jnp.where(overflow[:, None, None] & packed.branch_mask, jnp.nan, gain)

    def to_trunk(x):  # [N, A] -> [N, L]
        x = jnp.where(short[:, None], jnp.nan, _gather(x, packed.target_slot))
        return jnp.where(turns.action_mask, x, 0.0)

    return Scores(
        logp=to_trunk(stats.logp),
        entropy=to_trunk(stats.entropy),
        token_gain=jax.vmap(to_trunk, 1, 1)(gain) if paired else None,
        ref_logp=to_trunk(jax.lax.stop_gradient(stats.other_logp[0])) if reference is not None else None,
        ref_kl=to_trunk(stats.kl[0]) if reference is not None else None,
    )


def _hidden(model, turns, packed, paired):
    if not paired:
        return model.trunk(turns.tokens, packed.trunk), None
    return model.paired(turns.tokens, packed.trunk, packed.branch_tokens, packed.branch, visible=packing.visible)


def _both(hidden, branch_hidden):
    return jnp.concatenate([jax.lax.stop_gradient(hidden), branch_hidden], axis=1)


def _gather(x, index):
    """Returns x[n, index[n, a], ...]."""
    return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1)


def _gain_by_horizon(model, states, real, targets, packed, kind, settings):
    """Returns [N, H, A]; one horizon's head at a time."""
    kernel = jax.lax.stop_gradient(model.vocab_kernel)
    real = jax.lax.stop_gradient(real)

    def one(source):  # [N, A]
        others = [(_gather(states, source), kernel)]
        stats = head.target_stats(real, kernel, targets, others=others, **settings)
        return stats.kl[0] if kind == 'kl' else stats.logp - stats.other_logp[0]

    return jnp.moveaxis(jax.lax.map(one, jnp.moveaxis(packed.branch_source, 1, 0)), 0, 1)
