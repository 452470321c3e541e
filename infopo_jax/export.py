"""A run's model as a folder that transformers loads."""

import pathlib
from typing import Any

import jax
from flax import nnx

from infopo_jax import build, train
from infopo_jax.checkpoint import FOLDER
from infopo_jax.lm import hf, hf_adapter, lora
from infopo_jax.logger import METRICS_FILE
from infopo_jax.state import step_of


def export(
    config: Any, workdir: str, out: str, *, best: bool = False, dtype: str | None = None, adapter: bool = False
) -> int:
    """Writes the model of a checkpoint of the run in workdir: safetensors, config.json and tokenizer.

    Args:
        config: the run's own.
        workdir: folder of the run; nothing is written there.
        out: folder to write to, which is neither a run's nor config.model.path; a checkpoint in it is replaced.
        best: takes the checkpoint with the highest held-out success instead of the newest.
        dtype: 'float32' or 'bfloat16'; None takes what the run computed in.
        adapter: writes the LoRA adapter alone, in the peft library's layout; otherwise it is merged into its base.

    Returns:
        The checkpoint's step.

    Raises:
        ValueError: out is a folder that must stay as it is, there is no checkpoint, the run's world has no tokenizer,
            there is no adapter, or transformers has no architecture with the model's switches.
    """
    _check_out(config, workdir, out)
    if config.env.kind == 'jitted':
        raise ValueError(
            f'the model of environment {config.env.name!r} speaks in ids of that world and has no tokenizer, which '
            "a folder for transformers needs: export runs of config.env.kind = 'hosted'"
        )
    if adapter and not config.lora.rank:
        raise ValueError('the run has config.lora.rank = 0 and so no adapter: export it without --adapter')
    if adapter and (config.model.path is None or config.warmstart.pretrained):
        raise ValueError("the adapter's base was made by this run and stands nowhere else: export without --adapter")
    loop, model_config, state = train.open_run(config, workdir, best=best)
    if adapter:
        hf_adapter.save_adapter(state.params, model_config, out, base=config.model.path)
    else:
        base_config, weights = lora.base_of(model_config), state.params
        if state.frozen is not None:
            merge = jax.jit(lambda low, base: lora.merged(low, base, model_config), donate_argnums=1)
            weights = merge(state.params, state.frozen)
        model = nnx.merge(build.graph_of(base_config), weights)
        hf.save(model, out, dtype=dtype or config.model.dtype, fields=_special_ids(loop.chat))
    loop.chat.tokenizer.save_pretrained(out)
    return step_of(state)


def _check_out(config: Any, workdir: str, out: str) -> None:
    """Raises ValueError for a folder in which an export would overwrite what runs live on."""
    folder, source = _resolved(out), config.model.path
    is_run = (folder / FOLDER).is_dir() or (folder / METRICS_FILE).exists()
    if is_run or folder == _resolved(workdir):
        raise ValueError(
            f'out = {out!r} is the folder of a run, whose config.json would be overwritten: name another one, such as '
            f'{str(pathlib.Path(out) / "exported")!r}'
        )
    if source is not None and folder.is_dir() and folder == _resolved(source):
        raise ValueError(
            f'out = {out!r} is config.model.path, the checkpoint that the run began with and is opened with: '
            'name another folder'
        )


def _resolved(path: str) -> pathlib.Path:
    return pathlib.Path(path).expanduser().resolve()


def _special_ids(chat) -> dict[str, Any]:
    """Returns the entries of config.json by which transformers knows where a text ends."""
    stops = list(chat.stop_ids)
    ids = {'eos_token_id': stops[0] if len(stops) == 1 else stops}
    for name in ('bos_token_id', 'pad_token_id'):
        if getattr(chat.tokenizer, name) is not None:
            ids[name] = getattr(chat.tokenizer, name)
    return ids
