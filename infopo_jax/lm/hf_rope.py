"""Rotary embeddings in config.json: rope_theta and rope_scaling (transformers 4) or rope_parameters (5)."""

from typing import Any

from infopo_jax.lm.config import LMConfig, RopeScaling

KINDS = {  # rope_type -> our field: theirs
    'linear': {'factor': 'factor'},
    'llama3': {
        'factor': 'factor',
        'low_freq_factor': 'low_freq_factor',
        'high_freq_factor': 'high_freq_factor',
        'original_max_position': 'original_max_position_embeddings',
    },
}


def read(fields: Any, *, max_position: int) -> dict[str, Any]:
    """Takes the rotary fields of a config.json and returns LMConfig's.

    Args:
        fields: a ``hf_config.Fields``; a default of rope_local_base_freq tells that windows have a theta of their own.
        max_position: what 'llama3' was stretched from where the file does not say.

    Raises:
        ValueError: naming a kind or parameter that is not supported.
    """
    given = [value for value in (fields.rest.pop(n, None) for n in ('rope_scaling', 'rope_parameters')) if value]
    if len(given) == 2 and given[0] != given[1]:
        raise ValueError('config.json has both rope_scaling and rope_parameters, and they differ: keep one')
    rope = dict(given[0]) if given else {}
    theta, local = fields.rest.pop('rope_theta', None), fields.rest.pop('rope_local_base_freq', None)
    has_local = 'rope_local_base_freq' in fields.defaults
    if has_local and {'full_attention', 'sliding_attention'} & set(rope):
        near, rope = dict(rope.pop('sliding_attention', None) or {}), _only(rope, 'full_attention')
        near_theta, scaling = _one(near, local, fields.defaults['rope_local_base_freq'], max_position)
        if scaling is not None:
            raise ValueError(f'config.json: rope_parameters.sliding_attention with {scaling.kind!r} is not supported')
        local = near_theta
    elif not has_local and local is not None:
        raise ValueError('config.json: rope_local_base_freq is not supported in this architecture')
    fallback = fields.take('original_max_position_embeddings') or max_position
    theta, scaling = _one(rope, theta, fields.defaults['rope_theta'], fallback)
    found = {'rope_theta': float(theta), 'rope_scaling': scaling}
    if has_local:
        found['rope_theta_local'] = float(fields.defaults['rope_local_base_freq'] if local is None else local)
    return found


def _only(rope, key):
    """Returns the one nested entry that must be all that is left."""
    inner = dict(rope.pop(key, None) or {})
    if rope:
        raise ValueError(f'config.json: rope_parameters of {sorted(rope)} are not supported')
    return inner


def _one(rope, theta, default, max_position):
    """Returns theta and scaling of one flat set of parameters; the theta inside and outside must agree."""
    rope = dict(rope)
    inner = rope.pop('rope_theta', None)
    if None not in (inner, theta) and inner != theta:
        raise ValueError(f'config.json has rope_theta {theta} beside rope_parameters with {inner}: keep one')
    theta = next(value for value in (inner, theta, default) if value is not None)
    kinds = {rope.pop(n) for n in ('rope_type', 'type') if rope.get(n) is not None} or {'default'}
    kind = kinds.pop()
    if kinds or kind not in ('default', *KINDS):
        names = ', '.join(map(repr, ('default', *KINDS)))
        raise ValueError(f'config.json: rope_type {kind!r} is not supported, only {names}')
    if rope.pop('partial_rotary_factor', 1.0) not in (1.0, None):
        raise ValueError('config.json: partial_rotary_factor other than 1 is not supported')
    if kind == 'default':
        if rope:
            raise ValueError(f"config.json: rope_type 'default' with {sorted(rope)} is not supported")
        return theta, None
    if kind == 'llama3':
        rope.setdefault('original_max_position_embeddings', max_position)
    names = KINDS[kind]
    missing, extra = sorted(set(names.values()) - set(rope)), sorted(set(rope) - set(names.values()))
    if missing or extra:
        raise ValueError(f'config.json: rope_type {kind!r} lacks {missing} or has the unknown {extra}')
    return theta, RopeScaling(kind=kind, **{ours: rope[theirs] for ours, theirs in names.items()})


def write(config: LMConfig, *, has_local: bool) -> dict[str, Any]:
    """Returns config.json's fields in the spelling of transformers 4, which 5 reads too."""
    out = {'rope_theta': config.rope_theta, 'rope_scaling': None}
    if config.rope_scaling is not None:
        kind = config.rope_scaling.kind
        values = {theirs: getattr(config.rope_scaling, ours) for ours, theirs in KINDS[kind].items()}
        out['rope_scaling'] = {'rope_type': kind, **values}
    if has_local:
        out['rope_local_base_freq'] = config.rope_theta if config.rope_theta_local is None else config.rope_theta_local
    return out
