"""What a run begins with, and what it is read back into: weights, optimizer, key."""

from typing import Any

import jax
from flax import nnx

from infopo_jax import build, sharding
from infopo_jax.lm import hf, lora
from infopo_jax.lm.config import LMConfig
from infopo_jax.lm.transformer import Transformer
from infopo_jax.state import TrainState, fresh_state

INIT, WARM_START, TRAIN, EVAL = range(4)  # what the run's key is folded with


def make_state(loop: Any, model_config: LMConfig, key: jax.Array, *, base: Any = None) -> TrainState:
    """Returns the state of a run before its warm start.

    Args:
        loop: the run's.
        model_config: of the model, adapters included.
        key: of the run; [S] keys of several seeds.
        base: nnx.State of a checkpoint (see ``load_base``) in place of random weights; donated.
    """
    rule = loop.rule

    def init(key, base):
        model = Transformer(model_config, nnx.Rngs(jax.random.fold_in(key, INIT)))
        params, frozen = nnx.split(model)[1], None
        if model_config.lora_rank:
            params, frozen = lora.split(params)
            frozen = frozen if base is None else base
        elif base is not None:
            params = base
        run_key = jax.random.fold_in(key, TRAIN)
        keep = bool(rule.kl_coef) or loop.needs_reference
        state = fresh_state(rule.optimizer, params, run_key, keep_reference=keep, frozen=frozen)
        return sharding.by_name(state, rule.mesh)

    return jax.jit(loop.over_seeds(init), donate_argnums=1)(key, base)


def load_base(config: Any, loop: Any) -> Any:
    """Returns nnx.State of the checkpoint that a config names, laid out on the run's mesh; None where it names none.

    A base under adapters does not train, so it is kept in the dtype that it computes in.

    Raises:
        ValueError: there is no such checkpoint, or it is not one that can be loaded.
    """
    if config.model.path is None:
        return None
    place = None if loop.rule.mesh.size == 1 else sharding.sharding_of(loop.rule.mesh)
    precision = build.precision(config)
    if config.lora.rank and not config.warmstart.pretrained:
        precision['param_dtype'] = precision['dtype']
    return nnx.split(hf.load(config.model.path, sharding_of=place, **precision))[1]


def state_template(loop: Any, model_config: LMConfig, key: jax.Array) -> TrainState:
    """Returns the state's shapes and where they lie, without allocating it."""
    return sharding.template(jax.eval_shape(lambda k: make_state(loop, model_config, k), key), loop.rule.mesh)
