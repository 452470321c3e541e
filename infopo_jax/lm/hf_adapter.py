"""Adapters in the layout of the peft library, which adds them to a model of transformers."""

import pathlib

import jax.numpy as jnp
import numpy as np
from flax import nnx

from infopo_jax.lm import hf_names, lora, tensor_files
from infopo_jax.lm.config import LMConfig

WEIGHTS, CONFIG = 'adapter_model.safetensors', 'adapter_config.json'


def save_adapter(adapters: nnx.State, config: LMConfig, path: str, *, base: str) -> None:
    """Writes adapter_model.safetensors and adapter_config.json.

        peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), path)

    Args:
        adapters: as ``lora.split`` gives them.
        config: with the adapters' rank and alpha.
        path: folder to write to; made where it does not exist.
        base: path or hub id of the model that the adapters belong to.
    """
    low = {'/'.join(map(str, at)): leaf[...] for at, leaf in nnx.to_flat_state(adapters)}
    tensors, targets = [], set()
    for name, source in hf_names.sources(lora.base_of(config)).items():
        place = name.rpartition('/')[0] + f'/{lora.NAME}'
        if not name.endswith('/kernel') or f'{place}/a' not in low:
            continue
        for layer, (theirs,) in enumerate(source.names):
            module = theirs.removesuffix('.weight')
            targets.add(module.rpartition('.')[2])
            for ours, half in (('a', 'A'), ('b', 'B')):
                values = np.asarray(low[f'{place}/{ours}'][layer], jnp.float32).T  # torch keeps [out, in]
                tensors.append(
                    tensor_files.Tensor(
                        f'base_model.model.{module}.lora_{half}.weight',
                        values.shape,
                        values.dtype,
                        lambda values=values: values,
                    )
                )
    folder = pathlib.Path(path).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    tensor_files.write_file(folder / WEIGHTS, tensors)
    fields = {
        'peft_type': 'LORA',
        'task_type': 'CAUSAL_LM',
        'base_model_name_or_path': base,
        'r': config.lora_rank,
        'lora_alpha': config.lora_alpha,
        'lora_dropout': 0.0,
        'bias': 'none',
        'fan_in_fan_out': False,
        'inference_mode': True,
        'target_modules': sorted(targets),
    }
    tensor_files.write_json(folder / CONFIG, fields)
