"""A checkpoint of the Qwen2.5 shape, end to end: loaded, trained on retail, exported, and read by transformers."""

import json
import pathlib
import runpy
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import save_checkpoint

from infopo_jax import build, build_state, config as config_lib, envs, export, train
from infopo_jax.lm import hf

torch = pytest.importorskip('torch', reason="needs torch: pip install -e '.[parity]'")
transformers = pytest.importorskip('transformers')

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp('qwen'), envs.make('retail', level=1))


def config_of(checkpoint, **fields):
    """Returns a run on retail; a random model's groups tie and inform nobody, so entropy is what moves it."""
    config = runpy.run_path(str(ROOT / 'configs' / 'taubench.py'))['get_config']()
    config.update_from_flattened_dict({
        'model.path': str(checkpoint), 'steps': 3, 'batch.prompts': 2, 'batch.group_size': 2, 'eval.episodes': 2,
        'eval.interval': 0, 'optim.lr': 1e-3, 'rollout.max_prompt_tokens': 800, 'rollout.max_tokens': 960,
        'rollout.max_action_tokens': 8, 'rollout.max_feedback_tokens': 40, 'log.tensorboard': False,
        'loss.entropy_coef': 1.0, 'optim.warmup_steps': 0,
        **fields,
    })  # fmt: skip
    config_lib.validate(config)
    return config


def logits_of(path, tokens):
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.no_grad():
        return model, model(torch.tensor(np.asarray(tokens))).logits.numpy()


@pytest.fixture(scope='module')
def trained(checkpoint, tmp_path_factory):
    """Returns config and workdir of three updates."""
    workdir = tmp_path_factory.mktemp('run')
    config = config_of(checkpoint)
    metrics = train.main(config, str(workdir))
    assert 0 <= metrics['success'] <= 1
    return config, workdir


def test_training_updates_a_checkpoint_and_its_probabilities_are_those_that_sampled(trained):
    rows = [json.loads(line) for line in (trained[1] / 'metrics.jsonl').read_text().splitlines()]
    steps = [row for row in rows if row['phase'] == 'train']
    assert len(steps) == 3
    for row in steps:
        assert row['skipped'] == 0 and row['grad_norm'] > 0 and abs(row['sampler_gap']) < 1e-4
    assert not any('warm' in row['phase'] for row in rows)


def test_a_context_beyond_the_checkpoints_is_refused(checkpoint):
    config = config_of(checkpoint, **{'rollout.max_tokens': 5000})
    with pytest.raises(ValueError, match=r'rollout\.max_tokens = 5000: .* made for contexts of 4096 tokens'):
        build.make_loop(config)


def test_a_tokenizer_that_is_not_the_checkpoints_is_refused(checkpoint, tmp_path):
    """Ids beyond the embedding would be read as others."""
    other = shutil.copytree(checkpoint, tmp_path / 'other')
    fields = json.loads((other / 'config.json').read_text())
    (other / 'config.json').write_text(json.dumps(fields | {'vocab_size': 2}))
    with pytest.raises(ValueError, match=r'ends turns with id 2, its embedding has 2 rows: they do not belong'):
        build.make_loop(config_of(other))
    chat = build.make_chat(config_of(checkpoint), None)
    chat.num_rows = 300
    with pytest.raises(ValueError, match=r'has a token of id \d+, the embedding of the model 300 rows'):
        chat.content({'role': 'user', 'content': 'I want to cancel an order.'})


def test_export_is_what_was_trained_and_transformers_reads_it(trained, checkpoint, tmp_path):
    config, workdir = trained
    out = tmp_path / 'exported'
    assert export.export(config, str(workdir), str(out)) == 3
    loop, _, state = train.open_run(config, str(workdir))
    tokens = np.random.default_rng(0).integers(0, 700, (2, 24)).astype(np.int32)
    ours = loop.rule.model(state.weights)(jnp.asarray(tokens))
    theirs, logits = logits_of(out, tokens)
    np.testing.assert_allclose(ours, logits, atol=1e-4 * np.abs(logits).max())
    assert np.abs(logits - logits_of(checkpoint, tokens)[1]).max() > 1e-3  # it has learnt something

    # A greedy continuation, by the decoder with its cache and by transformers' generate.
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    chat = [{'role': 'user', 'content': 'I want to cancel an order.'}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert ids == loop.chat.prompt(chat)
    with torch.no_grad():
        said = theirs.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=12)[0, len(ids) :].tolist()
    model, row = hf.load(str(out), dtype='float32'), list(ids)
    step = jax.jit(lambda tokens: jnp.argmax(model(tokens)[0], axis=-1))
    for _ in range(len(said)):
        padded = np.zeros((1, len(ids) + 12), np.int32)
        padded[0, : len(row)] = row
        row.append(int(step(padded)[len(row) - 1]))
    assert row[len(ids) :] == said
    assert json.loads((out / 'config.json').read_text())['eos_token_id'] == list(loop.chat.stop_ids)


@pytest.fixture(scope='module')
def adapted(checkpoint, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('lora')
    config = config_of(checkpoint, **{'lora.rank': 4, 'steps': 2, 'optim.lr': 1e-2, 'loss.kl_coef': 0.1})
    train.main(config, str(workdir))
    return config, workdir


def test_adapters_alone_train_and_alone_are_kept(adapted, checkpoint):
    config, workdir = adapted
    _, _, state = train.open_run(config, str(workdir))
    base = hf.load(str(checkpoint), dtype='float32')
    import flax.nnx as nnx

    jax.tree.map(np.testing.assert_array_equal, state.frozen, nnx.split(base)[1])
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert (
        count == sum(4 * (a + b) for a, b in [(32, 32), (32, 16), (32, 16), (32, 32), (32, 48), (32, 48), (48, 32)]) * 2
    )
    assert state.reference is None
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if getattr(leaf, 'ndim', 0) > 0]
    assert sum(leaf.size for leaf in moments) == 2 * count  # of the adapters alone
    rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    kl = [row['kl'] for row in rows if row['phase'] == 'train']
    assert kl[0] == pytest.approx(0, abs=1e-7) and kl[1] > 0  # against the base, at which adapters start


def test_a_base_under_adapters_is_kept_in_the_dtype_it_computes_in(checkpoint):
    """It does not train: float32 would be twice the memory for the same products."""
    for rank, wanted in ((4, 'bfloat16'), (0, 'float32')):
        config = config_of(checkpoint, **{'lora.rank': rank, 'model.dtype': 'bfloat16'})
        loop, model_config = build.make_loop(config)
        base = build_state.load_base(config, loop)
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(base)} == {wanted}
        state = build_state.make_state(loop, model_config, jax.random.key(0), base=base)
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(state.params)} == {'float32'}


def test_adapters_export_merged_and_as_peft_reads_them(adapted, checkpoint, tmp_path):
    peft = pytest.importorskip('peft', reason="needs peft: pip install -e '.[parity]'")
    config, workdir = adapted
    export.export(config, str(workdir), str(tmp_path / 'merged'))
    export.export(config, str(workdir), str(tmp_path / 'adapter'), adapter=True)
    tokens = np.random.default_rng(0).integers(0, 700, (2, 24)).astype(np.int32)
    base, start = logits_of(checkpoint, tokens)
    _, merged = logits_of(tmp_path / 'merged', tokens)
    with torch.no_grad():
        adapted = peft.PeftModel.from_pretrained(base, tmp_path / 'adapter')(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(merged, adapted, atol=1e-4 * np.abs(merged).max())
    assert np.abs(merged - start).max() > 1e-3


def test_export_refuses_what_has_no_tokenizer_or_no_adapter(trained, tmp_path):
    config, workdir = trained
    with pytest.raises(ValueError, match=r'lora\.rank = 0'):
        export.export(config, str(workdir), str(tmp_path), adapter=True)
    jitted = config_lib.base_config()
    with pytest.raises(ValueError, match='no tokenizer'):
        export.export(jitted, str(workdir), str(tmp_path))
