"""What a config describes, built: environment, chat, model, update rule, and the loop that holds them."""

import functools
from typing import Any

import jax
import optax
from flax import nnx

from infopo_jax import config as config_lib, envs, estimators, loops, update as update_lib
from infopo_jax.lm.chat import Chat
from infopo_jax.lm.config import LMConfig
from infopo_jax.lm.tokenizer import train_tokenizer
from infopo_jax.lm.transformer import Transformer
from infopo_jax.rollout.dialogue import Limits
from infopo_jax.rollout.hosted import HostedRollout
from infopo_jax.state import TrainState, fresh_state

INIT, WARM_START, TRAIN, EVAL = range(4)  # what the run's key is folded with


def make_loop(config: Any) -> tuple[Any, LMConfig]:
    """Returns the loop of a config's environment and kind of rollout, and the model's architecture."""
    knobs = config_lib.env_knobs(config)
    group_size = config.batch.group_size
    sizes = loops.Sizes(
        num_prompts=config.batch.prompts,
        group_size=group_size,
        eval_groups=max(1, config.eval.episodes // group_size),
        look_groups=-(-config.log.rollouts // group_size),
        temperature=config.rollout.temperature,
        eval_temperature=config.eval.temperature,
        max_bad_actions=config.rollout.max_bad_actions,
    )
    env = envs.make(config.env.name, **knobs)
    if config.env.kind == 'jitted':
        model_config = make_model_config(config, vocab_size=len(env.vocab))
        shown = config.info.placeholder
        placeholder = tuple(env.placeholder if shown is None else env.encode(shown))
        rule = make_rule(config, graph_of(model_config), placeholder=placeholder, outcome_range=env.outcome_range)
        return loops.JittedLoop(env, rule, sizes, num_seeds=config.num_seeds), model_config
    chat = Chat(train_tokenizer(env.corpus(), env.special_tokens(), vocab_size=config.model.max_vocab))
    model_config = make_model_config(config, vocab_size=chat.vocab_size)
    placeholder = tuple(chat.encode(config.info.placeholder or env.placeholder))
    rule = make_rule(config, graph_of(model_config), placeholder=placeholder, outcome_range=env.outcome_range)
    return _hosted_loop(config, functools.partial(envs.make, config.env.name, **knobs), chat, rule, sizes), model_config


def _hosted_loop(config, make_env, chat, rule, sizes) -> loops.HostedLoop:
    roll = config.rollout
    limits = Limits(
        max_turns=make_env().max_turns,
        max_tokens=roll.max_tokens,
        max_prompt_tokens=roll.max_prompt_tokens,
        max_action_tokens=roll.max_action_tokens,
        max_feedback_tokens=roll.max_feedback_tokens,
        max_bad_actions=roll.max_bad_actions,
    )
    slots = roll.slots or sizes.num_prompts * sizes.group_size
    engine = HostedRollout(make_env, chat, rule.graphdef, limits, num_slots=slots, chunk=roll.chunk)
    return loops.HostedLoop(
        make_env, chat, rule, sizes, engine, seed=config.seed, max_failed_fraction=roll.max_failed_fraction
    )


def make_model_config(config: Any, *, vocab_size: int) -> LMConfig:
    """Returns the architecture that a config describes."""
    fields = config.model.to_dict()
    fields.pop('max_vocab')
    return LMConfig(vocab_size=vocab_size, **fields)


def graph_of(model_config: LMConfig) -> Any:
    """Returns the static part of a model, without allocating its parameters."""
    return nnx.split(nnx.eval_shape(lambda: Transformer(model_config, nnx.Rngs(0))))[0]


def make_rule(
    config: Any, graphdef: Any, *, placeholder: tuple[int, ...], outcome_range: float
) -> update_lib.UpdateRule:
    """Returns the update that a config describes."""
    info, loss, updates = config.info, config.loss, config.updates
    return update_lib.UpdateRule(
        graphdef=graphdef,
        optimizer=make_optimizer(config),
        estimator=estimators.get(config.advantage.estimator),
        hyper=dict(
            info_weight=info.weight,
            weight_decay=info.weight_decay,
            gate_temperature=info.gate_temperature,
            outcome_range=outcome_range,
            std_floor=info.std_floor,
            baseline=info.baseline,
            norm=info.norm,
            downscale=info.downscale,
        ),
        needs_gain=config.advantage.estimator != 'grpo',
        group_size=config.batch.group_size,
        placeholder=placeholder,
        horizon=info.horizon,
        gain_kind=info.kind,
        mask_errors=info.mask_errors,
        temperature=config.rollout.temperature,
        clip_low=loss.clip_low,
        clip_high=loss.clip_high,
        dual_clip=loss.dual_clip,
        unit=loss.unit,
        kl=loss.kl,
        kl_coef=loss.kl_coef,
        entropy_coef=loss.entropy_coef,
        importance_cap=updates.importance_cap,
        epochs=updates.epochs,
        minibatches=updates.minibatches,
        microbatches=updates.microbatches,
    )


def make_optimizer(config: Any) -> optax.GradientTransformation:
    """Returns AdamW behind global-norm clipping, with a linear warm-up and a constant or cosine rate."""
    optim = config.optim
    total = config.steps * config.updates.epochs * config.updates.minibatches
    if optim.decay == 'cosine':
        rate = optax.warmup_cosine_decay_schedule(0.0, optim.lr, optim.warmup_steps, max(total, optim.warmup_steps + 1))
    else:
        rate = optax.linear_schedule(0.0, optim.lr, optim.warmup_steps) if optim.warmup_steps else optim.lr
    return optax.chain(
        optax.clip_by_global_norm(optim.clip_norm),
        optax.adamw(rate, b1=optim.b1, b2=optim.b2, eps=optim.eps, weight_decay=optim.weight_decay),
    )


def make_state(loop: Any, model_config: LMConfig, key: jax.Array) -> TrainState:
    """Returns the state of a run before its warm start."""

    def init(key):
        model = Transformer(model_config, nnx.Rngs(jax.random.fold_in(key, INIT)))
        params, run_key = nnx.split(model)[1], jax.random.fold_in(key, TRAIN)
        return fresh_state(loop.rule.optimizer, params, run_key, keep_reference=bool(loop.rule.kl_coef))

    return jax.jit(loop.over_seeds(init))(key)


def state_template(loop: Any, model_config: LMConfig, key: jax.Array) -> TrainState:
    """Returns the state's shapes, without allocating it."""
    return jax.eval_shape(lambda k: make_state(loop, model_config, k), key)
