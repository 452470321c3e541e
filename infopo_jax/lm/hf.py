"""Checkpoints of transformers: loaded straight onto devices, and written back.

model = hf.load('Qwen/Qwen2.5-7B-Instruct', dtype='bfloat16')
logits = model(tokens)  # [B, L] int32 -> [B, L, V]
hf.save(model, 'out')
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, Sharding

from infopo_jax.lm import hf_config, hf_names, hf_placing, tensor_files
from infopo_jax.lm.config import LMConfig
from infopo_jax.lm.hub import find_folder
from infopo_jax.lm.transformer import Transformer

ShardingOf = Callable[[str, tuple[int, ...]], Sharding]  # (parameter name 'blocks/q/kernel', shape) -> sharding
SAVED_DTYPES = ('float32', 'bfloat16')


def load_config(path: str, **overrides: Any) -> LMConfig:
    """Returns the architecture of a checkpoint.

    Args:
        path: a folder, or a repository on the hub ('Qwen/Qwen2.5-7B-Instruct').
        **overrides: fields of LMConfig, such as dtype or remat.

    Raises:
        ValueError: there is no such checkpoint, or naming the field or architecture that is not supported.
    """
    return _read_config(find_folder(path), overrides)


def load(
    path: str,
    *,
    dtype: str | None = None,
    param_dtype: str | None = None,
    mesh: Mesh | None = None,
    sharding_of: ShardingOf | None = None,
    **overrides: Any,
) -> Transformer:
    """Loads a checkpoint, tensor by tensor straight onto the devices.

    The host holds one layer's tensor at a time. Layers are written into their stacked, sharded buffer in place.

    Args:
        path: a folder with config.json and safetensors files, or a repository on the hub.
        dtype: 'float32' or 'bfloat16' to compute in; None takes the checkpoint's (float16 becomes bfloat16).
        param_dtype: of the parameters; None takes ``dtype``.
        mesh: devices to lay the parameters on, each split along its longest axis that divides; None: one device.
        sharding_of: (parameter name such as 'blocks/q/kernel', shape) -> its sharding; replaces the rule for ``mesh``.
        **overrides: further fields of LMConfig, such as remat.

    Returns:
        A Transformer with the parameter tree of ``Transformer(config, rngs)``.

    Raises:
        ValueError: there is no such checkpoint; or naming the field or architecture that is not supported, or tensors
            that are missing, unexpected, damaged or of another shape.
    """
    folder = find_folder(path)
    config = _read_config(folder, overrides)
    entries = {hf_names.plain(name): entry for name, entry in tensor_files.scan(folder).items()}
    dtype = dtype or _stored_dtype(entries)
    for name, value in (('dtype', dtype), ('param_dtype', param_dtype or dtype)):
        if value not in SAVED_DTYPES:
            raise ValueError(f'{name} must be one of {SAVED_DTYPES}, got {value!r}')
    config = dataclasses.replace(config, dtype=dtype, param_dtype=param_dtype or dtype)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(0))))
    leaves = {'/'.join(map(str, at)): leaf for at, leaf in nnx.to_flat_state(state)}
    table = hf_names.sources(config)
    if unknown := set(leaves) - set(table):
        raise ValueError(f'no checkpoint of transformers holds {tensor_files.listed(sorted(unknown))}; add them after')
    _check(folder, entries, table, leaves, config)
    place = sharding_of or (lambda name, shape: hf_placing.default_sharding(mesh, name, shape))
    # Parameters outside the stack first: an embedding table may be the largest tensor, and little else is there yet.
    arrays = {}
    for name in sorted(table, key=lambda name: table[name].stacked):
        shape, kind = leaves[name].shape, leaves[name].dtype
        arrays[name] = hf_placing.load_parameter(table[name], entries, shape, kind, place(name, shape))
    filled = [(at, leaf.replace(arrays['/'.join(map(str, at))])) for at, leaf in nnx.to_flat_state(state)]
    return nnx.merge(graphdef, nnx.from_flat_state(filled))


def save(
    model: Transformer,
    path: str,
    *,
    dtype: str | None = None,
    fields: Mapping[str, Any] | None = None,
    shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes safetensors files and a config.json that transformers loads.

    The host holds one layer's tensor at a time.

    Args:
        model: its LMConfig decides the architecture: Llama, Qwen2, Qwen3, Qwen3-MoE, Mistral, Gemma 2 or Gemma 3.
        path: folder to write to; made where it does not exist, an earlier checkpoint in it is replaced.
        dtype: 'float32' or 'bfloat16'; None keeps the parameters' own.
        fields: further entries of config.json, such as eos_token_id.
        shard_bytes: most bytes of a file.

    Raises:
        ValueError: no architecture of transformers has the model's combination of switches; names them.
    """
    config = model.config
    dtype = dtype or config.param_dtype
    if dtype not in SAVED_DTYPES:
        raise ValueError(f'dtype must be one of {SAVED_DTYPES}, got {dtype!r}')
    raw = hf_config.write(config) | {'dtype': dtype, 'torch_dtype': dtype} | dict(fields or {})
    leaves = {'/'.join(map(str, at)): leaf[...] for at, leaf in nnx.to_flat_state(nnx.state(model))}
    if not all(leaf.is_fully_addressable for leaf in leaves.values()):
        raise ValueError('hf.save needs all parameters on this host: gather them first')
    tensors = []
    for name, source in hf_names.sources(config).items():
        tensors += _tensors(leaves[name], source, np.dtype(dtype))
    folder = pathlib.Path(path).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    tensor_files.write(folder, tensors, shard_bytes=shard_bytes)
    tensor_files.write_json(folder / 'config.json', raw)


def _read_config(folder, overrides):
    path = folder / 'config.json'
    if not path.exists():
        raise ValueError(f'{folder} has no config.json: is it a checkpoint of transformers?')
    try:
        raw = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as e:
        raise ValueError(f'{path} does not parse: {e}') from None
    config = hf_config.read(raw)
    unknown = sorted(set(overrides) - {f.name for f in dataclasses.fields(config)})
    if unknown:
        raise ValueError(f'{", ".join(unknown)}: no field of LMConfig')
    return dataclasses.replace(config, **overrides)


def _stored_dtype(entries):
    entry = entries.get('model.embed_tokens.weight')
    return 'float32' if entry is not None and entry.dtype == 'F32' else 'bfloat16'


def _check(folder, entries, table, leaves, config):
    """Compares the tensors that are there with those that the config needs, before anything is allocated."""
    wanted = {name for source in table.values() for layer in source.names for name in layer}
    if missing := sorted(wanted - set(entries)):
        raise ValueError(f'{folder} lacks tensors that its config.json needs: {tensor_files.listed(missing)}')
    extra = {name for name in set(entries) - wanted if not hf_names.SKIPPED.fullmatch(name)}
    if config.tie_embeddings:
        extra.discard('lm_head.weight')  # a copy of the embedding table, which is what transformers uses
    if extra:
        raise ValueError(
            f'{folder} has tensors that its config.json has no place for: {tensor_files.listed(sorted(extra))}'
        )
    for ours, source in table.items():
        shape = _stored_shape(source, leaves[ours].shape)
        for name in (name for layer in source.names for name in layer):
            if entries[name].shape != shape:
                raise ValueError(
                    f'{folder}: tensor {name} has shape {list(entries[name].shape)}, config.json means {list(shape)}'
                )


def _stored_shape(source, shape):
    """Returns the shape of each of a parameter's tensors in the file."""
    shape = shape[source.stacked + source.experts :]
    return (*shape[:-2], shape[-1], shape[-2]) if source.transpose else shape


@functools.partial(jax.jit, static_argnames=('stacked', 'transpose', 'dtype'))
def _layer(leaf, i, *, stacked, transpose, dtype):
    part = jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False) if stacked else leaf
    return (part.swapaxes(-1, -2) if transpose else part).astype(dtype)


def _tensors(leaf, source, dtype):
    """Returns what a parameter becomes in the files; values are fetched from the devices when they are written."""
    shape = _stored_shape(source, leaf.shape)
    kind = dict(stacked=source.stacked, transpose=source.transpose, dtype=dtype)
    last = [None, None]  # the layer fetched last: its experts are written one after the other

    def read(i, e):
        if last[0] != i:
            last[:] = i, np.asarray(_layer(leaf, i, **kind))
        return last[1][e] if source.experts else last[1]

    return [
        tensor_files.Tensor(name, shape, dtype, functools.partial(read, i, e))
        for i, names in enumerate(source.names)
        for e, name in enumerate(names)
    ]
