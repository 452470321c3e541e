"""Every supported architecture against transformers' own model: logits, padding, packed branches, cache, export."""

import builders
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import tiny_model

from infopo_jax import packing
from infopo_jax.lm import cache as cache_lib, hf, transformer
from infopo_jax.types import Role

torch = pytest.importorskip('torch', reason="parity with transformers needs torch: pip install -e '.[test,parity]'")
transformers = pytest.importorskip('transformers', minversion='5', reason='the cases are spelled for transformers 5')

VOCAB, L, PAD = 40, 44, 5
SIZES = dict(
    vocab_size=VOCAB, hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128, attn_implementation='eager',
)  # fmt: skip
LLAMA3 = dict(
    rope_type='llama3', rope_theta=5e3, factor=4.0, low_freq_factor=1.0, high_freq_factor=3.0,
    original_max_position_embeddings=16,
)  # fmt: skip
GEMMA3_ROPE = {
    'full_attention': dict(rope_type='linear', rope_theta=3e3, factor=3.0),
    'sliding_attention': dict(rope_type='default', rope_theta=20.0),
}
MIXED = ['sliding_attention', 'full_attention', 'sliding_attention']


def default(theta):
    return dict(rope_type='default', rope_theta=theta)


# name -> (family, its config beside SIZES, changes each of which has to change the logits)
CASES = {
    'qwen2': (
        'Qwen2', dict(rope_parameters=default(700.0), tie_word_embeddings=True), [dict(rope_parameters=default(1e4))]
    ),
    'qwen2_window': (
        'Qwen2',
        dict(rope_parameters=default(2e5), use_sliding_window=True, sliding_window=7, max_window_layers=1),
        [dict(sliding_window=8), dict(layer_types=['full_attention', 'full_attention', 'sliding_attention'])],
    ),
    'qwen3': (
        'Qwen3',
        dict(rope_parameters=dict(rope_type='linear', rope_theta=300.0, factor=2.5), head_dim=10, attention_bias=True),
        [dict(rope_parameters=default(300.0))],
    ),
    'qwen3_moe': (
        'Qwen3Moe',
        dict(rope_parameters=default(500.0), head_dim=8, moe_intermediate_size=12, num_experts=5, num_experts_per_tok=2,
             norm_topk_prob=True),
        [dict(rope_parameters=default(1e4)), dict(norm_topk_prob=False), dict(num_experts_per_tok=3)],
    ),
    'llama3': (
        'Llama',
        dict(rope_parameters=LLAMA3, rms_norm_eps=1e-5, attention_bias=True, mlp_bias=True),
        [dict(rope_parameters=LLAMA3 | dict(high_freq_factor=4.0)), dict(rope_parameters=LLAMA3 | dict(rope_theta=1e4)),
         dict(rms_norm_eps=0.1)],
    ),
    'mistral': (
        'Mistral', dict(rope_parameters=default(2e3), sliding_window=6, head_dim=8), [dict(sliding_window=7)]
    ),
    'gemma2': (
        'Gemma2',
        dict(rope_parameters=default(900.0), head_dim=8, sliding_window=5, layer_types=MIXED, query_pre_attn_scalar=3,
             attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
        [dict(attn_logit_softcapping=3.0), dict(final_logit_softcapping=4.0), dict(query_pre_attn_scalar=8)],
    ),
    'gemma3': (
        'Gemma3Text',
        dict(rope_parameters=GEMMA3_ROPE, head_dim=8, sliding_window=5, layer_types=MIXED, query_pre_attn_scalar=3,
             final_logit_softcapping=3.0),
        [dict(rope_parameters=GEMMA3_ROPE | {'full_attention': default(3e3)}),
         dict(rope_parameters=GEMMA3_ROPE | {'sliding_attention': default(3e3)}), dict(query_pre_attn_scalar=8),
         dict(layer_types=['full_attention', *MIXED[1:]])],
    ),
}  # fmt: skip


class Case:
    """A random checkpoint on disk, transformers' model of it and ours."""

    def __init__(self, name, folder):
        family, fields, self.changes = CASES[name]
        self.make = getattr(transformers, family.removesuffix('Text') + 'ForCausalLM')
        self.config_class, self.fields = getattr(transformers, family + 'Config'), SIZES | fields
        torch.manual_seed(0)
        self.theirs = self.make(self.config_class(**self.fields)).eval()
        with torch.no_grad():
            for p in self.theirs.parameters():
                p.copy_(torch.randn(p.shape) * 0.4 + (1.0 if p.ndim == 1 else 0.0))
        self.folder = folder / name
        self.theirs.save_pretrained(self.folder)
        self.ours = hf.load(str(self.folder), dtype='float32')
        self.tokens = np.random.default_rng(1).integers(0, VOCAB, (3, L))

    def wanted(self, ids, model=None):
        """Returns transformers' logits [B, S, V] of ids [B, S] without padding."""
        with torch.no_grad():
            return (model or self.theirs)(torch.tensor(np.asarray(ids))).logits.numpy()


@pytest.fixture(scope='module', autouse=True)
def scanned():
    """Scans layers as large models do, with flags where they differ; it also compiles in less time."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch.setattr(transformer, 'UNROLL', 0)


@pytest.fixture(scope='module', params=CASES)
def case(request, tmp_path_factory):
    return Case(request.param, tmp_path_factory.mktemp('hf'))


@nnx.jit
def plain(model, tokens, mask):
    return model(tokens, mask)


def assert_close(out, wanted):
    """Checks a relative error of 1e-4, in units of the largest logit."""
    assert np.abs(wanted).max() > 1
    np.testing.assert_allclose(out, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


def test_load_gives_transformers_logits_with_padding_on_either_side(case):
    """Row 0 is full, row 1 begins with padding, row 2 ends with it; what stands in padding does not matter."""
    mask = np.ones((3, L), bool)
    mask[1, :PAD] = mask[2, -PAD:] = False
    position = torch.tensor(np.maximum(mask.cumsum(1) - 1, 0))
    with torch.no_grad():
        inputs = dict(attention_mask=torch.tensor(mask.astype(np.int64)), position_ids=position)
        wanted = case.theirs(torch.tensor(case.tokens), **inputs).logits.numpy()
    out = np.asarray(plain(case.ours, jnp.asarray(case.tokens, jnp.int32), jnp.asarray(mask)))
    assert_close(out[mask], wanted[mask])
    alone = case.wanted(case.tokens[1:2, PAD:])
    assert_close(out[1, PAD:], alone[0])
    garbage = np.where(mask, case.tokens, 7)
    other = np.asarray(plain(case.ours, jnp.asarray(garbage, jnp.int32), jnp.asarray(mask)))
    np.testing.assert_array_equal(other[mask], out[mask])


def test_every_setting_of_the_case_matters(case):
    """The comparison can fail: what a case sets moves transformers' logits by far more than the tolerance."""
    wanted = case.wanted(case.tokens)
    for change in case.changes:
        other = case.make(case.config_class(**case.fields | change)).eval()
        other.load_state_dict(case.theirs.state_dict())
        assert np.abs(case.wanted(case.tokens, other) - wanted).max() > 0.01 * np.abs(wanted).max(), change


def test_extend_in_chunks_gives_transformers_logits(case):
    @nnx.jit
    def feed(model, tokens, position, cache, start):
        hidden, cache = model.extend(tokens, position, cache, start)
        return model.logits(hidden), cache

    cache, outs, size = cache_lib.empty(case.ours.config, 3, 32), [], 8
    for start in [*range(0, 16, size), *range(16, 20)]:
        size = 8 if start < 16 else 1
        part = jnp.asarray(case.tokens[:, start : start + size], jnp.int32)
        position = jnp.broadcast_to(jnp.arange(start, start + size), part.shape)
        logits, cache = feed(case.ours, part, position, cache, jnp.int32(start))
        outs.append(logits)
    assert_close(np.concatenate(outs, 1), case.wanted(case.tokens[:, :20]))


def test_paired_branches_give_transformers_logits_of_separate_passes(case):
    """Each action after masked feedback, in one packed pass, against the masked text rendered on its own."""
    rng = np.random.default_rng(3)
    rows = [builders.random_row(rng, num_turns=t, vocab=VOCAB, silent=0.0) for t in (4, 2)]
    turns, placeholder = builders.turns_of(rows, length=L, pad_garbage=9), [30, 31]
    packed = packing.pack(turns, jnp.array(placeholder), branch_len=48, target_len=24)

    @nnx.jit
    def both(model, tokens, packed):
        args = tokens, packed.trunk, packed.branch_tokens, packed.branch
        return model.logits(jnp.concatenate(model.paired(*args, visible=packing.visible), axis=1))

    logits = np.asarray(both(case.ours, jnp.asarray(turns.tokens), packed))
    checked = 0
    for n, row in enumerate(rows):
        for t in range(int(turns.num_turns[n]) - 1):
            masked = _masked(row, t, placeholder)
            wanted = case.wanted([[token for token, _, _ in masked]])[0]
            at = [i for i, (_, role, turn) in enumerate(masked) if role == Role.ACTION and turn == t + 1]
            mine = [
                a for a in np.flatnonzero(packed.branch_mask[n, 0]) if turns.turn[n, packed.target_index[n, a]] == t + 1
            ]
            assert_close(logits[n, np.asarray(packed.branch_source)[n, 0, mine]], wanted[np.array(at) - 1])
            checked += len(at)
    assert checked > 6


def _masked(row, t, placeholder):
    """Returns a row with each run of feedback t replaced by the placeholder."""
    out = []
    for i, (token, role, turn) in enumerate(row):
        if role != Role.FEEDBACK or turn != t:
            out.append((token, role, turn))
        elif row[i - 1][1:] != (role, turn):
            out.extend((p, role, turn) for p in placeholder)
    return out


def test_save_is_what_transformers_loads(case, tmp_path):
    hf.save(case.ours, str(tmp_path), fields={'eos_token_id': 3})
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation='eager').eval()
    assert type(again) is case.make and again.config.eos_token_id == 3
    np.testing.assert_array_equal(case.wanted(case.tokens, again), case.wanted(case.tokens))
    assert hf.load_config(str(tmp_path)) == hf.load_config(str(case.folder))


@pytest.mark.parametrize('fields', [
    dict(),
    dict(qkv_bias=True, tie_embeddings=False),
    dict(qk_norm=True),
    dict(sliding_window=4),
    dict(dim=18),
    dict(qk_norm=True, num_experts=3, experts_per_token=2),
    dict(activation='gelu_tanh', norm_plus_one=True, post_norms=True, scale_embed=True, qk_norm=True),
], ids=['llama', 'qwen2', 'qwen3', 'mistral', 'odd_heads', 'qwen3_moe', 'gemma3'])  # fmt: skip
def test_save_exports_a_model_from_scratch(fields, tmp_path):
    model = tiny_model(VOCAB, **fields)
    hf.save(model, str(tmp_path))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation='eager').eval()
    ids = np.random.default_rng(0).integers(0, VOCAB, (1, 12))
    with torch.no_grad():
        wanted = theirs(torch.tensor(ids)).logits.numpy()
    out = plain(model, jnp.asarray(ids, jnp.int32), jnp.ones(ids.shape, bool))
    np.testing.assert_allclose(out, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
