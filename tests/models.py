"""Tiny random models for tests, whatever way the package initialises its own."""

import jax
from flax import nnx

from infopo_jax.lm.config import LMConfig
from infopo_jax.lm.transformer import Transformer


def tiny_model(vocab_size, *, seed=0, head=1.0, **fields):
    """Returns a model with normal kernels, and norms and biases that are not at their initial values.

    Args:
        vocab_size: V.
        seed: of its weights.
        head: scale of the rows that score the next token: how sure the model is.
        **fields: of LMConfig.
    """
    sizes = {'dim': 16, 'num_layers': 1, 'num_heads': 4, 'num_kv_heads': 2, 'head_dim': 4, 'mlp_dim': 24}
    graphdef, params = nnx.split(Transformer(LMConfig(vocab_size=vocab_size, **sizes | fields), nnx.Rngs(0)))
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    drawn = []
    for key, (path, leaf) in zip(jax.random.split(jax.random.key(seed), len(leaves)), leaves, strict=True):
        name, noise = jax.tree_util.keystr(path), jax.random.normal(key, leaf.shape)
        if 'scale' in name or 'bias' in name:
            drawn.append(('scale' in name) + 0.2 * noise)
        else:
            fan_in = leaf.shape[-2] if 'kernel' in name else leaf.shape[-1]
            drawn.append(noise * fan_in**-0.5 * (1.0 if 'kernel' in name else head))
    return nnx.merge(graphdef, jax.tree.unflatten(structure, drawn))


def often_stopping(model, stop_id, value):
    """Makes an untied model stop now and then: a channel that is always on adds about 2 * value to that logit."""
    model.embed[...] = model.embed[...].at[:, 0].set(2.0)
    for layer in (model.blocks.o, model.blocks.down):
        layer.kernel[...] = layer.kernel[...].at[..., 0].set(0.0)
    model.final_norm.scale[...] = model.final_norm.scale[...].at[0].set(1.0)
    model.head[...] = model.head[...].at[:, 0].set(0.0).at[stop_id, 0].set(value)
    return model
