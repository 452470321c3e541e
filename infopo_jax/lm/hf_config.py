"""config.json of transformers <-> LMConfig, in the spellings of transformers 4 and 5.

Every field of a config.json is read, or required to have the one value that this package computes, or stands in
HARMLESS because it does not enter the logits. Whatever is left is an error that names it.
"""

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

from infopo_jax.lm import hf_rope
from infopo_jax.lm.config import LMConfig
from infopo_jax.lm.hf_families import ACTIVATIONS, COMMON, DEFAULTS, FAMILIES, HARMLESS, REQUIRED

RUNTIME = ('dtype', 'param_dtype', 'remat')  # of LMConfig: how it is run, not what it is


class Fields:
    """A config.json from which fields are taken; what nobody took is found in the end."""

    def __init__(self, raw: Mapping[str, Any], defaults: Mapping[str, Any]):
        self.rest = dict(raw)
        self.defaults = defaults

    def take(self, name: str, *aliases: str, default: Any = None) -> Any:
        """Removes and returns a field, under any of its names; an explicit null is None, an absent one its default."""
        found = [self.rest.pop(n) for n in (name, *aliases) if n in self.rest]
        if any(value != found[0] for value in found):
            raise ValueError(f'config.json gives {" and ".join((name, *aliases))} different values: {found}')
        return found[0] if found else self.defaults.get(name, default)


def read(raw: Mapping[str, Any]) -> LMConfig:
    """Returns the architecture that a parsed config.json describes.

    Raises:
        ValueError: naming the architecture, field or value that is not supported, or the field that is missing.
    """
    if raw.get('model_type') == 'gemma3':  # with images: the text model alone
        raw = {'model_type': 'gemma3_text', **raw.get('text_config', {})}
    family = FAMILIES.get(raw.get('model_type'))
    if family is None:
        raise ValueError(f'model_type {raw.get("model_type")!r} is not supported; supported are {", ".join(FAMILIES)}')
    fields = Fields(raw, DEFAULTS | dict(family.defaults))
    names = COMMON | dict(family.fields)
    aliases = {'num_experts': ('num_local_experts',)}
    ours = {name: fields.take(theirs, *aliases.get(theirs, ())) for name, theirs in names.items()}
    missing = [names[n] for n in ('vocab_size', 'dim', 'num_layers', 'num_heads', 'mlp_dim') if ours[n] is None]
    missing += [names[n] for n in ('num_experts', 'experts_per_token') if family.needs_experts and not ours[n]]
    if missing:
        raise ValueError(f'config.json of a {family.model_type} model needs {", ".join(missing)}')
    if ours['num_kv_heads'] is None:
        ours['num_kv_heads'] = ours['num_heads']
    if ours['head_dim'] is None:
        ours['head_dim'] = ours['dim'] // ours['num_heads']
    ours |= family.switches
    if family.optional_bias and fields.take('attention_bias'):
        ours |= {'qkv_bias': True, 'o_bias': True}
    ours |= _windows(fields, family, ours['num_layers'])
    ours |= hf_rope.read(fields, max_position=ours['max_position'])
    if ours.get('sliding_window') is None:
        ours.pop('rope_theta_local', None)  # of layers with a window
    _check_rest(fields, family, ours.get('activation', 'silu'))
    return canonical(LMConfig(**ours))


def _windows(fields, family, num_layers):
    """Returns sliding_window and sliding_layers of LMConfig."""
    if family.window == 'none':
        return {}
    use = family.model_type.startswith(('mistral', 'gemma')) or fields.take('use_sliding_window')
    # Taken in any case: Qwen's files name a window even where use_sliding_window is off.
    window, types = fields.take('sliding_window', default=4096), None
    above = fields.take('max_window_layers', default=28) if family.window == 'above' else 0
    period = fields.take('sliding_window_pattern', '_sliding_window_pattern') if family.window == 'pattern' else 0
    if family.window != 'all':
        types = fields.take('layer_types')
    if types is not None:
        unknown = sorted(set(types) - {'sliding_attention', 'full_attention'})
        if unknown:
            raise ValueError(f'config.json: layer_types {unknown} are not supported')
        layers = tuple(kind == 'sliding_attention' for kind in types)
    elif family.window == 'pattern':
        layers = tuple((i + 1) % period != 0 for i in range(num_layers))
    else:
        layers = tuple(i >= above for i in range(num_layers))
    return {'sliding_window': window, 'sliding_layers': layers} if use and window is not None else {}


def _check_rest(fields, family, activation):
    """Refuses what is left in a config.json and is not known to be without effect."""
    name = fields.take(family.activation, default=ACTIVATIONS[activation])
    if name != ACTIVATIONS[activation]:
        raise ValueError(
            f'config.json: {family.activation} {name!r} is not supported, only {ACTIVATIONS[activation]!r}'
        )
    for field in family.ignored:
        if (value := fields.take(field)) is not None:
            text = f'config.json: {field}={value} has no effect: transformers computes {family.architecture} without it'
            warnings.warn(text, stacklevel=4)
    for field, allowed in REQUIRED.items():
        value = fields.rest.pop(field, allowed[0])
        if value not in allowed:
            raise ValueError(f'config.json: {field}={value!r} is not supported, only {allowed[0]!r}')
    unknown = {k: v for k, v in fields.rest.items() if k not in HARMLESS and k not in family.unused and v is not None}
    if unknown:
        shown = ', '.join(f'{k}={v!r}' for k, v in sorted(unknown.items()))
        raise ValueError(
            f'config.json of a {family.model_type} model has fields that are not supported: {shown}. Remove them only '
            'if they do not change the logits'
        )


def write(config: LMConfig) -> dict[str, Any]:
    """Returns a config.json that transformers 4 and 5 read, of the first architecture that can express the config.

    Raises:
        ValueError: no architecture has this combination of switches; names those in the way.
    """
    config = canonical(config)
    wrong = {}
    for family in FAMILIES.values():
        if family.needs_experts != bool(config.num_experts):
            continue
        raw = _spell(config, family)
        wrong[family.model_type] = _unlike(raw, config)
        if family.whole_heads and config.dim % config.num_heads:
            wrong[family.model_type].append('dim (no multiple of num_heads)')
        if not wrong[family.model_type]:
            return raw
    nearest = min(wrong, key=lambda name: len(wrong[name]))
    raise ValueError(
        f'no supported architecture of transformers has this combination of switches; nearest is {nearest}, which '
        f'cannot have {", ".join(wrong[nearest])}'
    )


def _unlike(raw, config):
    """Returns the fields that come back otherwise than they were written."""
    back = read(raw)
    pairs = {f.name: (getattr(config, f.name), getattr(back, f.name)) for f in dataclasses.fields(config)}
    return [f'{name}={a!r}' for name, (a, b) in pairs.items() if a != b and name not in RUNTIME]


def _spell(config, family):
    """Returns config.json in a family's words; what the family has no words for is left out."""
    names = COMMON | dict(family.fields)
    raw = {theirs: getattr(config, ours) for ours, theirs in names.items()}
    raw |= {'model_type': family.model_type, 'architectures': [family.architecture]}
    if 'query_scalar' in names and config.query_scalar is None:
        raw[names['query_scalar']] = config.head_dim
    raw[family.activation] = ACTIVATIONS[family.switches.get('activation', 'silu')]
    if family.optional_bias:
        raw['attention_bias'] = config.qkv_bias and config.o_bias
    raw |= hf_rope.write(config, has_local='rope_local_base_freq' in family.defaults)
    layers = [config.slides(i) for i in range(config.num_layers)]
    if family.window in ('above', 'pattern'):
        raw['layer_types'] = ['sliding_attention' if slides else 'full_attention' for slides in layers]
    if family.window == 'above':  # older releases do not read layer_types
        raw['max_window_layers'] = layers.index(True) if any(layers) else len(layers)
    if family.model_type.startswith('qwen') and family.window != 'none':
        raw['use_sliding_window'] = any(layers)
    if family.window != 'none':
        raw['sliding_window'] = config.sliding_window
    if family.window == 'pattern' and config.sliding_window is None:  # transformers wants a number, used or not
        raw['sliding_window'] = config.max_position
    return raw


def canonical(config: LMConfig) -> LMConfig:
    """Returns the same architecture with the shortest spelling of its windows and rotary embeddings."""
    layers = tuple(config.slides(i) for i in range(config.num_layers))
    changes = {'sliding_layers': layers if any(layers) and not all(layers) else None}
    if not any(layers):  # nothing has a window
        changes |= {'sliding_window': None, 'rope_theta_local': None}
    elif config.rope_theta_local == config.rope_theta and config.rope_scaling is None:
        changes['rope_theta_local'] = None
    if all(layers) and config.rope_theta_local is not None:
        changes |= {'rope_theta': config.rope_theta_local, 'rope_theta_local': None, 'rope_scaling': None}
    if config.query_scalar == config.head_dim:
        changes['query_scalar'] = None
    return dataclasses.replace(config, **changes)
