"""config.json in the spellings of transformers 4 and 5, as they stand in well-known checkpoints."""

import dataclasses
import warnings

import pytest

from infopo_jax.lm import hf_config
from infopo_jax.lm.config import LMConfig, RopeScaling

# As published (fields about generation and bookkeeping left in).
QWEN25_7B = {
    'architectures': ['Qwen2ForCausalLM'], 'attention_dropout': 0.0, 'bos_token_id': 151643, 'eos_token_id': 151645,
    'hidden_act': 'silu', 'hidden_size': 3584, 'initializer_range': 0.02, 'intermediate_size': 18944,
    'max_position_embeddings': 32768, 'max_window_layers': 28, 'model_type': 'qwen2', 'num_attention_heads': 28,
    'num_hidden_layers': 28, 'num_key_value_heads': 4, 'rms_norm_eps': 1e-06, 'rope_theta': 1000000.0,
    'sliding_window': 131072, 'tie_word_embeddings': False, 'torch_dtype': 'bfloat16',
    'transformers_version': '4.43.1', 'use_cache': True, 'use_sliding_window': False, 'vocab_size': 152064,
}  # fmt: skip
LLAMA31_8B = {
    'architectures': ['LlamaForCausalLM'], 'attention_bias': False, 'attention_dropout': 0.0, 'bos_token_id': 128000,
    'eos_token_id': [128001, 128008, 128009], 'hidden_act': 'silu', 'hidden_size': 4096, 'initializer_range': 0.02,
    'intermediate_size': 14336, 'max_position_embeddings': 131072, 'mlp_bias': False, 'model_type': 'llama',
    'num_attention_heads': 32, 'num_hidden_layers': 32, 'num_key_value_heads': 8, 'pretraining_tp': 1,
    'rms_norm_eps': 1e-05, 'rope_theta': 500000.0, 'tie_word_embeddings': False, 'torch_dtype': 'bfloat16',
    'rope_scaling': {
        'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0, 'original_max_position_embeddings': 8192,
        'rope_type': 'llama3',
    },
    'transformers_version': '4.42.3', 'use_cache': True, 'vocab_size': 128256,
}  # fmt: skip
QWEN3_30B = {
    'architectures': ['Qwen3MoeForCausalLM'], 'attention_bias': False, 'attention_dropout': 0.0,
    'decoder_sparse_step': 1, 'head_dim': 128, 'hidden_act': 'silu', 'hidden_size': 2048, 'initializer_range': 0.02,
    'intermediate_size': 6144, 'max_position_embeddings': 40960, 'max_window_layers': 48, 'mlp_only_layers': [],
    'model_type': 'qwen3_moe', 'moe_intermediate_size': 768, 'norm_topk_prob': True, 'num_attention_heads': 32,
    'num_experts': 128, 'num_experts_per_tok': 8, 'num_hidden_layers': 48, 'num_key_value_heads': 4,
    'output_router_logits': False, 'rms_norm_eps': 1e-06, 'rope_scaling': None, 'rope_theta': 1000000.0,
    'router_aux_loss_coef': 0.001, 'sliding_window': None, 'tie_word_embeddings': False, 'use_sliding_window': False,
    'vocab_size': 151936,
}  # fmt: skip
GEMMA3_4B = {  # with images; most sizes are left to transformers' defaults
    'architectures': ['Gemma3ForConditionalGeneration'], 'boi_token_index': 255999, 'eoi_token_index': 256000,
    'mm_tokens_per_image': 256, 'model_type': 'gemma3', 'vision_config': {'hidden_size': 1152},
    'text_config': {
        'hidden_size': 2560, 'intermediate_size': 10240, 'model_type': 'gemma3_text', 'num_hidden_layers': 34,
        'rope_scaling': {'factor': 8.0, 'rope_type': 'linear'}, 'sliding_window': 1024,
    },
}  # fmt: skip


def test_read_of_qwen25_7b():
    wanted = LMConfig(
        vocab_size=152064, dim=3584, num_layers=28, num_heads=28, num_kv_heads=4, head_dim=128, mlp_dim=18944,
        rope_theta=1e6, tie_embeddings=False, qkv_bias=True, max_position=32768,
    )  # fmt: skip
    assert hf_config.read(QWEN25_7B) == wanted


def test_read_of_llama31_8b_in_both_spellings():
    found = hf_config.read(LLAMA31_8B)
    assert found.rope_scaling == RopeScaling(8.0, 1.0, 4.0, 8192) and found.rope_theta == 5e5
    assert (found.head_dim, found.norm_eps, found.tie_embeddings) == (128, 1e-5, False)
    rope = LLAMA31_8B['rope_scaling'] | {'rope_theta': 500000.0}
    new = {k: v for k, v in LLAMA31_8B.items() if k not in ('rope_theta', 'rope_scaling')} | {'rope_parameters': rope}
    assert hf_config.read(new) == found
    with pytest.raises(ValueError, match=r'rope_theta 1\.0 beside rope_parameters'):
        hf_config.read(new | {'rope_theta': 1.0})
    old = LLAMA31_8B | {'rope_scaling': {'type': 'linear', 'factor': 2.0}}  # the oldest spelling
    assert hf_config.read(old).rope_scaling == RopeScaling(kind='linear', factor=2.0)


def test_read_of_qwen3_30b():
    found = hf_config.read(QWEN3_30B)
    assert (found.mlp_dim, found.num_experts, found.experts_per_token, found.norm_expert_weights) == (768, 128, 8, True)
    assert found.qk_norm and not found.qkv_bias and found.sliding_window is None
    renamed = {('num_local_experts' if k == 'num_experts' else k): v for k, v in QWEN3_30B.items()}
    assert hf_config.read(renamed) == found
    with pytest.raises(ValueError, match='different values'):
        hf_config.read(QWEN3_30B | {'num_local_experts': 4})


def test_read_of_gemma3_4b_takes_the_text_model_and_transformers_defaults():
    found = hf_config.read(GEMMA3_4B)
    sizes = dict(vocab_size=262208, dim=2560, num_layers=34, num_heads=8, num_kv_heads=4, head_dim=256, mlp_dim=10240)
    assert {k: getattr(found, k) for k in sizes} == sizes
    assert found.rope_theta == 1e6 and found.rope_theta_local == 1e4
    assert found.rope_scaling == RopeScaling(kind='linear', factor=8.0)
    assert found.sliding_window == 1024 and found.sliding_layers[:7] == (True,) * 5 + (False, True)
    assert found.tie_embeddings and found.scale_embed and found.norm_plus_one and found.query_scalar is None
    nested = {
        'full_attention': {'rope_type': 'linear', 'factor': 8.0, 'rope_theta': 1e6},
        'sliding_attention': {'rope_type': 'default', 'rope_theta': 1e4},
    }
    text = {k: v for k, v in GEMMA3_4B['text_config'].items() if k != 'rope_scaling'}
    assert hf_config.read(text | {'rope_parameters': nested}) == found


def test_read_of_gemma2_keeps_an_explicit_null():
    raw = {'model_type': 'gemma2', 'hidden_act': 'gelu_pytorch_tanh'}
    assert hf_config.read(raw).attn_soft_cap == 50.0 and hf_config.read(raw).final_soft_cap == 30.0
    off = hf_config.read(raw | {'attn_logit_softcapping': None, 'final_logit_softcapping': None})
    assert off.attn_soft_cap is None and off.final_soft_cap is None


def test_read_of_windows():
    mistral = {k: v for k, v in LLAMA31_8B.items() if k not in ('rope_scaling', 'attention_bias', 'mlp_bias')}
    mistral |= {'model_type': 'mistral'}
    assert hf_config.read(mistral).sliding_window == 4096  # transformers' default
    assert hf_config.read(mistral | {'sliding_window': None}).sliding_window is None
    qwen = QWEN25_7B | {'use_sliding_window': True, 'sliding_window': 64}
    assert hf_config.read(qwen).sliding_window is None  # windows begin at layer 28 of 28
    assert hf_config.read(qwen | {'max_window_layers': 0}).sliding_layers is None
    assert hf_config.read(qwen | {'max_window_layers': 27}).sliding_layers == (False,) * 27 + (True,)


@pytest.mark.parametrize('change, words', [
    (dict(model_type='mamba'), "model_type 'mamba' is not supported; supported are llama"),
    (dict(model_type=None), 'model_type None is not supported'),
    (dict(attn_sinks=True), 'attn_sinks=True'),
    (dict(quantization_config={'bits': 4}), 'quantization_config='),
    (dict(sliding_window=64), 'sliding_window=64'),
    (dict(hidden_act='gelu'), "hidden_act 'gelu' is not supported"),
    (dict(attention_dropout=0.1), 'attention_dropout=0.1'),
    (dict(hidden_size=None), 'needs hidden_size'),
    (dict(partial_rotary_factor=0.5), 'partial_rotary_factor=0.5'),
    (dict(rope_scaling={'rope_type': 'yarn', 'factor': 4.0}), "rope_type 'yarn' is not supported"),
    (dict(rope_scaling={'rope_type': 'linear'}), r"lacks \['factor'\]"),
    (dict(rope_scaling={'rope_type': 'default', 'factor': 2.0}), r"'default' with \['factor'\]"),
    (dict(rope_scaling={'rope_type': 'linear', 'factor': 2.0, 'partial_rotary_factor': 0.5}), 'partial_rotary_factor'),
    (dict(rope_parameters={'rope_type': 'linear', 'factor': 2.0}), 'both rope_scaling and rope_parameters'),
    (dict(rope_local_base_freq=1e4), 'rope_local_base_freq'),
])  # fmt: skip
def test_read_names_what_is_not_supported(change, words):
    with pytest.raises(ValueError, match=words):
        hf_config.read(LLAMA31_8B | change)


@pytest.mark.parametrize('raw, change, words', [
    (QWEN3_30B, dict(mlp_only_layers=[3]), r'mlp_only_layers=\[3\]'),
    (QWEN3_30B, dict(decoder_sparse_step=2), 'decoder_sparse_step=2'),
    (QWEN25_7B, dict(layer_types=['linear_attention'] * 28), r"layer_types \['linear_attention'\]"),
    (GEMMA3_4B['text_config'], dict(use_bidirectional_attention=True), 'use_bidirectional_attention=True'),
    (GEMMA3_4B['text_config'], dict(rope_scaling=None, rope_parameters={'sliding_attention': {
        'rope_type': 'linear', 'factor': 2.0}}), 'sliding_attention'),
])  # fmt: skip
def test_read_names_what_an_architecture_does_not_have(raw, change, words):
    with pytest.raises(ValueError, match=words):
        hf_config.read(raw | change)


def test_read_accepts_unknown_nulls_and_warns_of_caps_that_transformers_leaves_out():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert hf_config.read(LLAMA31_8B | {'a_later_field': None}) == hf_config.read(LLAMA31_8B)
    with pytest.warns(UserWarning, match='attn_logit_softcapping=50.0 has no effect'):
        found = hf_config.read(GEMMA3_4B['text_config'] | {'attn_logit_softcapping': 50.0})
    assert found.attn_soft_cap is None


@pytest.mark.parametrize('raw', [QWEN25_7B, LLAMA31_8B, QWEN3_30B, GEMMA3_4B, {'model_type': 'gemma2'}])
def test_write_is_read_back(raw):
    config = hf_config.read(raw)
    out = hf_config.write(config)
    assert hf_config.read(out) == config
    assert out['model_type'] == raw['model_type'].replace('gemma3', 'gemma3_text')


SCRATCH = LMConfig(vocab_size=30, dim=16, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=8, mlp_dim=16)


@pytest.mark.parametrize('fields, family', [
    (dict(), 'llama'),
    (dict(qkv_bias=True), 'qwen2'),
    (dict(qkv_bias=True, o_bias=True), 'llama'),
    (dict(qk_norm=True), 'qwen3'),
    (dict(qk_norm=True, sliding_window=5), 'qwen3'),
    (dict(sliding_window=5), 'mistral'),
    (dict(sliding_window=5, sliding_layers=(True, True)), 'mistral'),
    (dict(qkv_bias=True, sliding_window=5, sliding_layers=(True, False)), 'qwen2'),
    (dict(dim=18, num_heads=4, head_dim=4), 'mistral'),
    (dict(qk_norm=True, num_experts=4, experts_per_token=2), 'qwen3_moe'),
])  # fmt: skip
def test_write_picks_the_architecture_from_the_switches(fields, family):
    assert hf_config.write(dataclasses.replace(SCRATCH, **fields))['model_type'] == family


@pytest.mark.parametrize('fields, words', [
    (dict(qk_norm=True, qkv_bias=True), 'nearest is qwen2, which cannot have qk_norm=True'),
    (dict(scale_embed=True), 'scale_embed=True'),
    (dict(sliding_window=5, sliding_layers=(True, False)), 'nearest is qwen2, which cannot have qkv_bias=False'),
    (dict(num_experts=4, experts_per_token=2), 'nearest is qwen3_moe, which cannot have qk_norm=False'),
    (dict(attn_soft_cap=5.0), 'attn_soft_cap=5.0'),
])  # fmt: skip
def test_write_names_the_switch_that_no_architecture_has(fields, words):
    with pytest.raises(ValueError, match=f'no supported architecture of transformers.*{words}'):
        hf_config.write(dataclasses.replace(SCRATCH, **fields))


def test_canonical_spells_equal_windows_alike():
    same = dataclasses.replace(SCRATCH, sliding_window=5, sliding_layers=(True, True), query_scalar=8)
    assert hf_config.canonical(same) == dataclasses.replace(SCRATCH, sliding_window=5)
    local = dataclasses.replace(SCRATCH, sliding_window=5, rope_theta_local=7.0)
    assert hf_config.canonical(local) == dataclasses.replace(SCRATCH, sliding_window=5, rope_theta=7.0)
    none = dataclasses.replace(SCRATCH, sliding_window=5, sliding_layers=(False, False), rope_theta_local=7.0)
    assert hf_config.canonical(none) == SCRATCH
