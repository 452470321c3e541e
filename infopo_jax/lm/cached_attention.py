"""Attention over a cache: of one new token per row, which is what decoding does all the time, or of several."""

import jax
import jax.numpy as jnp

from infopo_jax.lm import attention, cache as cache_lib
from infopo_jax.lm.layers import soft_cap as cap_scores

MASKED = attention.MASKED
HALVINGS = 3  # of a sum over keys or over what they hold; more of them compile longer and are no faster


def attend(
    q: jax.Array,
    parts: list[tuple[cache_lib.Layer, jax.Array]],
    position: jax.Array,
    *,
    window: int | None = None,
    soft_cap: float | None = None,
) -> jax.Array:
    """Attends from new tokens to what one layer's caches hold, under the causal rule.

    Args:
        q: [N, C, num_heads, D], the new tokens, which the last part holds already.
        parts: (keys and values, their positions [R, S]) of a cache and the prefixes that it stands on; R divides N, and
            row r serves the N / R rows from r * N / R on.
        position: [N, C] int32 of the new tokens; -1 marks those that are not there.
        window: keys whose position is this far back, or further, are invisible; None shows all.
        soft_cap: bounds scores to cap * tanh(scores / cap).

    Returns:
        [N, C, num_heads, D]; zeros where a query sees no key.
    """
    if q.shape[1] == 1:
        return _attend_one(q[:, 0], parts, position[:, 0], window, soft_cap)[:, None]
    n, whole = q.shape[0], []
    for layer, place in parts:
        whole.append([jnp.repeat(x, n // x.shape[0], axis=0) for x in (*layer.unpacked(q.dtype), place)])
    k, v, place = (x[0] if len(x) == 1 else jnp.concatenate(x, axis=1) for x in zip(*whole, strict=True))
    query, key = cache_lib.key_place(position), cache_lib.key_place(place)
    return attention.attend(q, k, v, query, key, window=window, soft_cap=soft_cap)


def _attend_one(q, parts, position, window, soft_cap):
    """One query per row; heads that share a key, and rows that share a prefix, stand as queries of one product.

    The softmax runs over the parts side by side: a maximum and a sum of each, and no concatenation of caches.
    """
    n, num_heads, dim = q.shape
    num_kv_heads = parts[0][0].k.shape[1]
    q = (q * dim**-0.5).reshape(n, num_kv_heads, -1, dim)
    scores, masks = [], []
    for layer, place in parts:
        s = _product(_by_owner(q, layer.k.shape[0]), layer.k)
        s = _by_row(s if layer.k_scale is None else s * layer.k_scale[:, :, None], n)
        mask = _visible(position, jnp.repeat(place, n // place.shape[0], axis=0), window)
        scores.append(cap_scores(s, soft_cap) + jnp.where(mask, 0.0, MASKED)[:, None, None])
        masks.append(mask)
    top = jnp.max(scores[0], axis=-1, keepdims=True)
    for s in scores[1:]:
        top = jnp.maximum(top, jnp.max(s, axis=-1, keepdims=True))
    out = total = 0.0
    for s, (layer, _) in zip(scores, parts, strict=True):
        weights = jnp.exp(s - top)
        total = total + jnp.sum(weights, axis=-1, keepdims=True)
        weights = _by_owner(weights, layer.v.shape[0])
        weights = weights if layer.v_scale is None else weights * layer.v_scale[:, :, None]
        out = out + _by_row(_product(weights.astype(q.dtype), layer.v), n)
    seen = jnp.any(jnp.concatenate(masks, axis=-1), axis=-1)[:, None, None, None]
    return jnp.where(seen, out / total, 0.0).astype(q.dtype).reshape(n, num_heads, dim)


def _visible(position, place, window):
    """Returns [N, S] bool of query positions [N] and key positions [N, S]."""
    mask = (place >= 0) & (place <= position[:, None])
    return mask if window is None else mask & (position[:, None] - place < window)


def _by_owner(x, num_owners):
    """Brings rows that share a part together: [N, K, g, ...] -> [R, K, N / R * g, ...]."""
    n, heads, group = x.shape[:3]
    if n == num_owners:
        return x
    x = x.reshape(num_owners, n // num_owners, heads, group, *x.shape[3:]).swapaxes(1, 2)
    return x.reshape(num_owners, heads, -1, *x.shape[4:])


def _by_row(x, n):
    """Undoes ``_by_owner``."""
    owners, heads = x.shape[:2]
    if n == owners:
        return x
    x = x.reshape(owners, heads, n // owners, -1, *x.shape[3:]).swapaxes(1, 2)
    return x.reshape(n, heads, *x.shape[3:])


def _product(a, cached):
    """Returns a [R, K, q, X] @ cached [R, K, X, Y] in float32.

    On CPU two cases are written as a sum, which XLA fuses: of one row, where it would otherwise take two differently
    shaped views of the cache and copy it at every step, and of a narrower cache, which it would otherwise unpack in
    memory. The sum is halved some times first: whole, XLA hands it to YNNPACK, which is slow at so little.
    """
    plain = cached.shape[0] > 1 and cached.dtype == a.dtype
    if plain or jax.default_backend() != 'cpu':
        return jnp.einsum('rkqx,rkxy->rkqy', a, cached.astype(a.dtype), preferred_element_type=jnp.float32)
    terms = a.astype(jnp.float32)[..., None] * cached.astype(jnp.float32)[:, :, None]
    rest = -terms.shape[-2] % 2**HALVINGS
    terms = jnp.pad(terms, [(0, 0)] * 3 + [(0, rest), (0, 0)]) if rest else terms
    for _ in range(HALVINGS):
        half = terms.shape[-2] // 2
        terms = terms[..., :half, :] + terms[..., half:, :]
    return jnp.sum(terms, axis=-2)
