"""Generation: exact log-probabilities, independence of the batch, stops, limits, streaming, and no recompilation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import tiny_model

from infopo_jax.lm import decoding
from infopo_jax.lm.decoding import bucket
from infopo_jax.lm.generate import Sampler, StopReason, generate

VOCAB, NEW = 30, 21
PROMPTS = [[3, 4, 5], [7] * 17, [1, 2], [9, 8, 7, 6, 5, 4]]


@pytest.fixture(scope='module')
def model():
    return tiny_model(VOCAB, num_layers=2, head=2.0, rope_theta=50.0, qk_norm=True)


@pytest.fixture(scope='module')
def sampler(model):
    return Sampler(model, chunk=4, decode=lambda ids: ''.join(chr(97 + i) for i in ids))


def run(sampler, prompts=PROMPTS, *, seed=0, **options):
    return sampler.generate(prompts, key=jax.random.key(seed), **({'max_new_tokens': NEW} | options))


@pytest.fixture(scope='module')
def whole(sampler):
    return run(sampler)


def rescored(model, prompt, ids, temperature=1.0):
    logits = nnx.jit(model)(jnp.array([[*prompt, *ids]]))[0] / temperature
    logp = jax.nn.log_softmax(logits)
    return np.array([logp[len(prompt) - 1 + i, token] for i, token in enumerate(ids)])


@pytest.mark.parametrize('group_size', [1, 3])
@pytest.mark.parametrize('temperature', [1.0, 0.6])
def test_generate_records_the_log_probabilities_of_the_plain_pass(model, sampler, group_size, temperature):
    out = run(sampler, group_size=group_size, temperature=temperature)
    for n in (0, group_size, 4 * group_size - 1):
        wanted = rescored(model, PROMPTS[n // group_size], out.ids(n), temperature)
        np.testing.assert_allclose(out.logps[n, : out.lengths[n]], wanted, atol=1e-4)
    assert out.tokens.shape == (4 * group_size, NEW)
    assert len({tuple(row) for row in out.tokens.tolist()}) > 2 * group_size


def test_generate_greedy_is_the_argmax(model, sampler):
    out = run(sampler, PROMPTS[:2], temperature=0.0)
    for n in range(2):
        logits = nnx.jit(model)(jnp.array([[*PROMPTS[n], *out.ids(n)]]))[0]
        np.testing.assert_array_equal(out.ids(n), jnp.argmax(logits, -1)[len(PROMPTS[n]) - 1 : -1])


def test_generate_a_row_does_not_depend_on_the_batch(sampler, whole):
    few = run(sampler, PROMPTS[:1])
    np.testing.assert_array_equal(few.tokens[0], whole.tokens[0])
    grouped = run(sampler, PROMPTS[:2], group_size=3)
    for n in (0, 3):  # member 0 of a group is who it is without others
        np.testing.assert_array_equal(grouped.tokens[n], whole.tokens[n // 3])
    assert (run(sampler, seed=1).tokens != whole.tokens).any()


def test_generate_by_folds_knows_prompts_by_name_and_not_by_place(sampler, whole):
    names = [[7, 2**32 - 1], [1, 0], [5, 5], [0, 3]]
    named = run(sampler, folds=names)
    turned = run(sampler, PROMPTS[::-1], folds=names[::-1])
    np.testing.assert_array_equal(named.tokens, turned.tokens[::-1])
    assert (named.tokens != whole.tokens).any(axis=1).all()
    assert len({tuple(run(sampler, PROMPTS[:1], folds=[[7, n]]).tokens[0]) for n in range(4)}) == 4
    by_number = run(sampler, folds=[[n] for n in range(4)])
    np.testing.assert_array_equal(by_number.tokens, whole.tokens)


def test_generate_in_batches_of_one_shape_is_the_same_to_the_last_bit(model):
    sampler = Sampler(model, chunk=4, least_prompts=4)
    prompts, names = [[3, 4, 5], [1, 2], [9, 8, 7, 6], [6] * 9], [[n] for n in (4, 9, 1, 3)]
    together = run(sampler, prompts, folds=names)
    before = decoding._advance._cache_size()
    for n in range(4):
        alone = run(sampler, prompts[n : n + 1], folds=names[n : n + 1])
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[n])
        np.testing.assert_array_equal(alone.logps[0], together.logps[n])
    assert decoding._advance._cache_size() == before
    with pytest.raises(ValueError, match='least_prompts must be at least 1'):
        Sampler(model, least_prompts=0)


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_generate_without_empty_rows_is_what_drawing_anew_would_give(model, sampler, temperature):
    first = run(sampler, PROMPTS[:1], temperature=temperature).ids(0)[0]
    out = run(sampler, PROMPTS[:1], temperature=temperature, stop_ids=[first, 999], allow_empty=False)
    assert out.ids(0)[0] != first
    logits = np.array(nnx.jit(model)(jnp.array([PROMPTS[0]]))[0, -1])
    logits[first] = -np.inf
    wanted = jax.nn.log_softmax(logits)[out.ids(0)[0]]
    np.testing.assert_allclose(out.logps[0, 0], wanted, atol=1e-5)


@pytest.mark.parametrize('chunk', [1, 7, 64])
def test_generate_is_the_same_for_any_chunk(model, whole, chunk):
    out = run(Sampler(model, chunk=chunk))
    np.testing.assert_array_equal(out.tokens, whole.tokens)
    np.testing.assert_allclose(out.logps, whole.logps, atol=1e-5)


def test_generate_in_several_prefill_chunks_is_the_same(model, whole, monkeypatch):
    monkeypatch.setattr(decoding, 'LEAST_CHUNK', 5)
    monkeypatch.setattr(decoding, 'PREFILL_TOKENS', 4)
    np.testing.assert_array_equal(run(Sampler(model)).tokens, whole.tokens)


def test_generate_ends_rows_at_stop_ids_and_limits(sampler, whole):
    stop = int(whole.tokens[1, 6])
    limits = [NEW, NEW, 2, 1]
    out = run(sampler, stop_ids=[stop, 999], limits=limits)
    for n in range(4):
        full = whole.tokens[n].tolist()
        end = full.index(stop) + 1 if stop in full else NEW
        end = min(end, limits[n])
        assert out.ids(n) == full[:end] and (out.tokens[n, end:] == 0).all() and (out.logps[n, end:] == 0).all()
        assert out.reasons[n] == (StopReason.STOP_ID if full[end - 1] == stop else StopReason.LENGTH)
    assert out.lengths[1] < NEW and out.lengths[2] <= 2 and out.lengths[3] == 1


def test_generate_ends_rows_with_the_token_that_completes_a_stop_string(sampler, whole):
    string = sampler.decode(whole.ids(0)[5:8])  # three tokens, across chunks of four
    out = run(sampler, stop_strings=[string, '!'])
    for n in range(4):
        text = sampler.decode(whole.ids(n))
        found = text.find(string)
        wanted = found + len(string) if found >= 0 else NEW
        assert out.ids(n) == whole.ids(n)[:wanted]
        assert out.reasons[n] == (StopReason.STOP_STRING if found >= 0 else StopReason.LENGTH)
    assert out.reasons[0] == StopReason.STOP_STRING


def test_generate_streams_every_token_once(sampler, whole):
    heard = {n: [] for n in range(4)}
    calls = []
    out = run(sampler, limits=[NEW, 3, NEW, NEW], on_tokens=lambda n, ids: (heard[n].extend(ids), calls.append(n)))
    for n in range(4):
        assert heard[n] == out.ids(n)
    assert calls.count(0) > 3 and calls.count(1) == 2


def test_generate_stops_decoding_when_all_rows_have(sampler, whole, monkeypatch):
    steps = []
    advance = decoding._advance
    monkeypatch.setattr(decoding, '_advance', lambda *args: steps.append(1) or advance(*args))
    run(sampler, limits=[2, 3, 1, 4], max_new_tokens=400)
    assert len(steps) <= 1
    steps.clear()
    stops = sorted(set(range(VOCAB)))
    out = run(sampler, stop_ids=stops, max_new_tokens=400)
    assert (out.lengths == 1).all() and len(steps) <= 2


def test_generate_keeps_the_draw_of_what_truncation_leaves(model, sampler):
    out = run(sampler, PROMPTS[:1], top_k=1)
    greedy = run(sampler, PROMPTS[:1], temperature=0.0)
    np.testing.assert_array_equal(out.tokens, greedy.tokens)
    np.testing.assert_allclose(out.logps, 0.0, atol=1e-6)


@pytest.mark.parametrize(('dtype', 'bound'), [('bfloat16', 0.05), ('int8', 0.2)])
def test_generate_with_a_narrow_cache_stays_within_a_bound(model, dtype, bound):
    out = generate(model, PROMPTS, key=jax.random.key(0), max_new_tokens=NEW, cache_dtype=dtype, group_size=2)
    gaps = [np.abs(rescored(model, PROMPTS[n // 2], out.ids(n)) - out.logps[n]).max() for n in range(0, 8, 3)]
    assert 1e-6 < max(gaps) < bound


def test_generate_in_bfloat16_computes_with_converted_weights(model):
    half = tiny_model(VOCAB, num_layers=2, dtype='bfloat16')
    decoder = decoding.for_decoding(half)
    block = decoder.unstacked()[0]
    assert block.q.kernel[...].dtype == jnp.bfloat16 and block.attn_norm.scale[...].dtype == jnp.float32
    assert half.blocks.q.kernel[...].dtype == jnp.float32 and half.blocks.q.kernel[...].ndim == 3
    out = generate(half, PROMPTS, key=jax.random.key(0), max_new_tokens=5)
    np.testing.assert_allclose(out.logps[0], rescored(half, PROMPTS[0], out.ids(0)), atol=0.05)


def test_generate_compiles_nothing_in_a_hundred_batches_after_a_warm_up(model):
    sampler, rng = Sampler(model, chunk=8), np.random.default_rng(0)

    def batch(rows, longest, new):
        prompts = [rng.integers(0, VOCAB, rng.integers(1, longest + 1)).tolist() for _ in range(rows)]
        prompts[0] = [1] * longest
        sampler.generate(prompts, key=jax.random.key(int(rng.integers(99))), max_new_tokens=new, stop_ids=(2,))

    for rows in (2, 3, 4):
        for longest in (16, 24):
            batch(rows, longest, 20)
    programs = (decoding._prefill, decoding._begin, decoding._advance, decoding._grow)
    before = [program._cache_size() for program in programs]
    with jax.log_compiles(False):
        for _ in range(100):
            batch(int(rng.integers(2, 5)), int(rng.integers(1, 25)), int(rng.integers(1, 21)))
    assert [program._cache_size() for program in programs] == before and sum(before) > 6


def test_publish_takes_new_weights_without_compiling(model, sampler, whole):
    other = tiny_model(VOCAB, seed=1, num_layers=2, head=2.0, rope_theta=50.0, qk_norm=True)
    mine = Sampler(model, chunk=4)
    run(mine)
    before = decoding._advance._cache_size()
    mine.publish(other)
    assert (run(mine).tokens != whole.tokens).any() and decoding._advance._cache_size() == before
    mine.publish(model)
    np.testing.assert_array_equal(run(mine).tokens, whole.tokens)


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (dict(prompts=[]), 'at least one of them'),
        (dict(prompts=[[1], []]), 'at least one token'),
        (dict(prompts=[[1], [VOCAB]]), 'prompt 1 holds token 30; the vocabulary has 30'),
        (dict(max_new_tokens=0), 'at least 1'),
        (dict(limits=[1, 2]), 'limits must be 4 numbers'),
        (dict(limits=[1, 2, 0, 3]), 'at least 1'),
        (dict(top_p=0.0), 'top_p'),
        (dict(folds=[[1]]), r'folds must be \[4, K\] integers, got shape \[1, 1\]'),
    ],
)
def test_generate_names_what_makes_no_sense(sampler, options, words):
    with pytest.raises(ValueError, match=words):
        run(sampler, **options)


def test_generate_asks_for_a_tokenizer_for_stop_strings(model):
    with pytest.raises(ValueError, match='stop_strings need a tokenizer'):
        run(Sampler(model), stop_strings=['x'])


def test_bucket_has_two_sizes_per_doubling():
    assert [bucket(n) for n in (1, 2, 3, 4, 5, 7, 9, 13, 17, 25)] == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]
    assert [bucket(n, 16) for n in (1, 16, 17, 25, 33, 100)] == [16, 16, 24, 32, 48, 128]
