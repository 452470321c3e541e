"""Where transformers keeps each of our parameters."""

import re
from typing import NamedTuple

from infopo_jax.lm.config import LMConfig

# Tensors of some checkpoints that hold nothing to load: tables that are computed, and the images' half of Gemma 3.
SKIPPED = re.compile(r'(.*\.rotary_emb\.inv_freq|(model\.)?(vision_tower|multi_modal_projector)\..*)')


class Source(NamedTuple):
    """The tensors that make one parameter."""

    names: tuple[tuple[str, ...], ...]  # [layers or 1][experts or 1]
    stacked: bool = False  # the parameter has a leading layer axis
    experts: bool = False  # and then an expert axis
    transpose: bool = False  # transformers keeps [out, in], this package [in, out]


def sources(config: LMConfig) -> dict[str, Source]:
    """Returns parameter name ('blocks/q/kernel') -> the tensors that make it."""
    c = config

    def layers(name, **kind):
        return Source(tuple((f'model.layers.{i}.{name}',) for i in range(c.num_layers)), stacked=True, **kind)

    def linear(ours, theirs, bias):
        found = {f'blocks/{ours}/kernel': layers(f'{theirs}.weight', transpose=True)}
        return found | ({f'blocks/{ours}/bias': layers(f'{theirs}.bias')} if bias else {})

    table = {'embed': Source((('model.embed_tokens.weight',),)), 'final_norm/scale': Source((('model.norm.weight',),))}
    if not c.tie_embeddings:
        table['head'] = Source((('lm_head.weight',),))
    for ours in 'qkv':
        table |= linear(ours, f'self_attn.{ours}_proj', c.qkv_bias)
    table |= linear('o', 'self_attn.o_proj', c.o_bias)
    norms = {'attn_norm': 'input_layernorm', 'mlp_norm': 'post_attention_layernorm'}
    if c.post_norms:
        norms |= {'post_attn_norm': 'post_attention_layernorm', 'mlp_norm': 'pre_feedforward_layernorm'}
        norms |= {'post_mlp_norm': 'post_feedforward_layernorm'}
    if c.qk_norm:
        norms |= {'q_norm': 'self_attn.q_norm', 'k_norm': 'self_attn.k_norm'}
    table |= {f'blocks/{ours}/scale': layers(f'{theirs}.weight') for ours, theirs in norms.items()}
    if not c.num_experts:
        for ours in ('gate', 'up', 'down'):
            table |= linear(ours, f'mlp.{ours}_proj', c.mlp_bias)
        return table
    table['blocks/moe/router'] = layers('mlp.gate.weight', transpose=True)
    for ours in ('gate', 'up', 'down'):
        names = tuple(
            tuple(f'model.layers.{i}.mlp.experts.{e}.{ours}_proj.weight' for e in range(c.num_experts))
            for i in range(c.num_layers)
        )
        table[f'blocks/moe/{ours}'] = Source(names, stacked=True, experts=True, transpose=True)
    return table


def plain(name: str) -> str:
    """Returns a tensor's name as a text model has it; Gemma 3 with images nests its text model, in either order."""
    return re.sub(r'^(language_model\.model|model\.language_model)\.', 'model.', name).removeprefix('language_model.')
