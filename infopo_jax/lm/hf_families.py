"""How each supported architecture of transformers spells an LMConfig."""

import dataclasses
from collections.abc import Mapping
from typing import Any

# Fields that say nothing about logits: ids, generation, training, bookkeeping.
HARMLESS = frozenset((
    '_attn_implementation_autoset', '_name_or_path', 'architectures', 'bad_words_ids', 'begin_suppress_tokens',
    'bos_token_id', 'cache_implementation', 'cross_attention_hidden_size', 'decoder_start_token_id',
    'diversity_penalty', 'do_sample', 'dtype', 'early_stopping', 'encoder_no_repeat_ngram_size', 'eos_token_id',
    'exponential_decay_length_penalty', 'finetuning_task', 'forced_bos_token_id', 'forced_eos_token_id', 'id2label',
    'initializer_range', 'is_decoder', 'label2id', 'length_penalty', 'max_length', 'min_length', 'model_type',
    'no_repeat_ngram_size', 'num_beam_groups', 'num_beams', 'num_labels', 'num_return_sequences',
    'output_attentions', 'output_hidden_states', 'output_router_logits', 'output_scores', 'pad_token_id', 'prefix',
    'pretraining_tp', 'problem_type', 'remove_invalid_values', 'repetition_penalty', 'return_dict',
    'return_dict_in_generate', 'router_aux_loss_coef', 'sep_token_id', 'suppress_tokens', 'task_specific_params',
    'temperature', 'tf_legacy_loss', 'tie_encoder_decoder', 'tokenizer_class', 'top_k', 'top_p', 'torch_dtype',
    'torchscript', 'transformers_version', 'typical_p', 'use_bfloat16', 'use_cache',
))  # fmt: skip

# Fields with one value that this package computes; leaving them out means the same.
REQUIRED = {
    'add_cross_attention': (False,),
    'attention_dropout': (0, None),  # also in training
    'chunk_size_feed_forward': (0,),
    'decoder_sparse_step': (1,),  # every layer has experts
    'is_encoder_decoder': (False,),
    'mlp_only_layers': ([], None),
    'pruned_heads': ({},),
    'use_bidirectional_attention': (False, None),
}

COMMON = {
    'vocab_size': 'vocab_size',
    'dim': 'hidden_size',
    'num_layers': 'num_hidden_layers',
    'num_heads': 'num_attention_heads',
    'num_kv_heads': 'num_key_value_heads',
    'head_dim': 'head_dim',
    'mlp_dim': 'intermediate_size',
    'norm_eps': 'rms_norm_eps',
    'tie_embeddings': 'tie_word_embeddings',
    'max_position': 'max_position_embeddings',
}
DEFAULTS = {  # what transformers takes where a config.json leaves a field out; sizes have to be there
    'rms_norm_eps': 1e-6,
    'tie_word_embeddings': False,
    'num_key_value_heads': None,  # as many as query heads
    'head_dim': None,  # hidden_size / num_attention_heads
    'max_position_embeddings': 32768,
    'rope_theta': 10000.0,
}


@dataclasses.dataclass(frozen=True)
class Family:
    """How one architecture of transformers spells an LMConfig."""

    model_type: str
    architecture: str
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)  # of LMConfig -> of config.json, beside COMMON
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of config.json, before DEFAULTS
    switches: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of LMConfig, what it always has
    optional_bias: bool = True  # attention_bias: of q, k, v and o together
    window: str = 'none'  # 'none', 'all' layers, 'above' a layer or 'pattern': how layers have a sliding window
    activation: str = 'hidden_act'
    unused: tuple[str, ...] = ()  # fields without effect in this architecture
    ignored: tuple[str, ...] = ()  # fields that sound as if they had an effect, but transformers computes without
    whole_heads: bool = False  # hidden_size must be a multiple of the heads

    @property
    def needs_experts(self) -> bool:
        """Whether every layer is a mixture of experts."""
        return 'num_experts' in self.fields


GEMMA_SWITCHES = dict(activation='gelu_tanh', norm_plus_one=True, post_norms=True, scale_embed=True)
GEMMA_SIZES = dict(
    hidden_size=2304, intermediate_size=9216, num_hidden_layers=26, num_attention_heads=8, num_key_value_heads=4,
    head_dim=256, query_pre_attn_scalar=256, sliding_window=4096, tie_word_embeddings=True,
)  # fmt: skip
MOE_FIELDS = {
    'mlp_dim': 'moe_intermediate_size',
    'num_experts': 'num_experts',
    'experts_per_token': 'num_experts_per_tok',
    'norm_expert_weights': 'norm_topk_prob',
}
CAPS = {'query_scalar': 'query_pre_attn_scalar', 'final_soft_cap': 'final_logit_softcapping'}

FAMILIES = {
    family.model_type: family
    for family in (
        Family('llama', 'LlamaForCausalLM', fields={'mlp_bias': 'mlp_bias'}, defaults={'mlp_bias': False},
               whole_heads=True),
        Family('qwen2', 'Qwen2ForCausalLM', switches={'qkv_bias': True}, optional_bias=False, window='above'),
        Family('qwen3', 'Qwen3ForCausalLM', switches={'qk_norm': True}, window='above', defaults={'head_dim': 128}),
        Family('qwen3_moe', 'Qwen3MoeForCausalLM', fields=MOE_FIELDS, switches={'qk_norm': True}, window='all',
               defaults={'norm_topk_prob': False}, unused=('intermediate_size', 'max_window_layers')),
        Family('mistral', 'MistralForCausalLM', optional_bias=False, window='all', defaults={'sliding_window': 4096}),
        Family('gemma2', 'Gemma2ForCausalLM', fields=CAPS | {'attn_soft_cap': 'attn_logit_softcapping'},
               switches=GEMMA_SWITCHES, window='pattern', activation='hidden_activation', unused=('hidden_act',),
               whole_heads=True,
               defaults=GEMMA_SIZES | dict(vocab_size=256000, max_position_embeddings=8192, sliding_window_pattern=2,
                                           final_logit_softcapping=30.0, attn_logit_softcapping=50.0)),
        Family('gemma3_text', 'Gemma3ForCausalLM', fields=CAPS, switches=GEMMA_SWITCHES | {'qk_norm': True},
               window='pattern', activation='hidden_activation', ignored=('attn_logit_softcapping',), whole_heads=True,
               defaults=GEMMA_SIZES | dict(vocab_size=262208, max_position_embeddings=131072, sliding_window_pattern=6,
                                           final_logit_softcapping=None, rope_theta=1e6, rope_local_base_freq=1e4)),
    )
}  # fmt: skip
ACTIVATIONS = {'silu': 'silu', 'gelu_tanh': 'gelu_pytorch_tanh'}  # ours -> theirs
