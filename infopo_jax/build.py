"""What a config describes, built: environment, chat, model, update rule, and the loop that holds them."""

import functools
from typing import Any

import jax
import optax
from flax import nnx

from infopo_jax import (
    build_mesh,
    build_user,
    config as config_lib,
    envs,
    estimators,
    loops,
    sharding,
    update as update_lib,
)  # fmt: skip
from infopo_jax.lm import hf, hub, lora
from infopo_jax.lm.chat import Chat
from infopo_jax.lm.config import LMConfig
from infopo_jax.lm.tokenizer import train_tokenizer
from infopo_jax.lm.transformer import Transformer
from infopo_jax.rollout.dialogue import Limits
from infopo_jax.rollout.hosted import HostedRollout


def make_loop(config: Any, *, trained: Any = None) -> tuple[Any, LMConfig]:
    """Returns the loop of a config's environment and kind of rollout, and the model's architecture.

    Args:
        config: of the run, or of an evaluation.
        trained: the config that the model was trained with, where that may be another: its words are those.
    """
    knobs = config_lib.env_knobs(config) | build_user.make_user(config)
    if 'call_timeout' in envs.knobs(config.env.name):  # an environment with a limit of its own; its user fails first
        knobs['call_timeout'] = build_user.PATIENCE * config.rollout.call_seconds
    sizes = make_sizes(config)
    mesh = build_mesh.make_mesh(config, sizes, training=trained is None)
    env = envs.make(config.env.name, **knobs)
    if config.env.kind == 'jitted':
        model_config = make_model_config(config, vocab_size=len(env.vocab))
        sharding.check_model(mesh, model_config)
        shown = config.info.placeholder
        placeholder = tuple(env.placeholder if shown is None else _encoded(env, shown))
        rule = make_rule(config, model_config, placeholder=placeholder, outcome_range=env.outcome_range, mesh=mesh)
        return loops.JittedLoop(env, rule, sizes, num_seeds=config.num_seeds), model_config
    same = trained is None or trained.env == config.env or config.model.path is not None
    chat = make_chat(config, env if same else envs.make(trained.env.name, **config_lib.env_knobs(trained)))
    model_config = make_model_config(config, vocab_size=chat.vocab_size)
    sharding.check_model(mesh, model_config)
    _check_fit(config, chat, model_config)
    chat.num_rows = model_config.vocab_size
    shown = {'role': 'user', 'content': config.info.placeholder or env.placeholder}
    placeholder = tuple(chat.content(shown))  # as feedback would be fed
    rule = make_rule(config, model_config, placeholder=placeholder, outcome_range=env.outcome_range, mesh=mesh)
    build_user.bind_user(config, knobs.get('user'), chat, rule)
    make_env = functools.partial(envs.make, config.env.name, **knobs)
    return _hosted_loop(config, make_env, chat, rule, sizes, knobs.get('user')), model_config


def _encoded(env, text):
    """Returns the ids of ``config.info.placeholder`` in an array environment."""
    try:
        return env.encode(text)
    except ValueError as error:
        raise ValueError(f'config.info.placeholder = {text!r}: {error}') from None


def _check_fit(config, chat, model_config):
    """Raises ValueError where tokenizer or limits go beyond what a checkpoint's weights are for."""
    if config.model.path is None:
        return
    if config.rollout.max_tokens > model_config.max_position:
        raise ValueError(
            f'config.rollout.max_tokens = {config.rollout.max_tokens}: {config.model.path} was made for contexts of '
            f'{model_config.max_position} tokens (max_position_embeddings); lower it'
        )
    if max(chat.stop_ids) >= model_config.vocab_size:
        raise ValueError(
            f'{config.model.path}: its tokenizer ends turns with id {max(chat.stop_ids)}, its embedding has '
            f'{model_config.vocab_size} rows: they do not belong together'
        )


def make_sizes(config: Any) -> loops.Sizes:
    """Returns how much a run rolls out."""
    group_size = config.batch.group_size
    return loops.Sizes(
        num_prompts=config.batch.prompts,
        group_size=group_size,
        eval_groups=max(1, config.eval.episodes // group_size),
        look_groups=max(1, -(-config.log.rollouts // group_size)),  # no program takes none
        temperature=config.rollout.temperature,
        eval_temperature=config.eval.temperature,
        eval_truncation={name: config.eval[name] for name in ('top_k', 'top_p', 'min_p')},
        max_bad_actions=config.rollout.max_bad_actions,
    )


def make_chat(config: Any, env: Any) -> Chat:
    """Returns the chat of a checkpoint's own tokenizer, or of one trained on the environment's text.

    Raises:
        ValueError: there is no such checkpoint or tokenizer, its template cannot be used, or the environment has no
            text to train one on.
    """
    if config.model.path is not None:
        tokenizer = hub.load_tokenizer(config.model.path)
    elif hasattr(env, 'corpus'):
        try:
            tokenizer = train_tokenizer(env.corpus(), env.special_tokens(), vocab_size=config.model.max_vocab)
        except ValueError as error:
            raise ValueError(f'config.model.max_vocab = {config.model.max_vocab}: {error}') from None
    else:
        raise ValueError(
            f'environment {config.env.name!r} teaches no words, so nothing can learn it from scratch: set '
            'config.model.path to a checkpoint'
        )
    return Chat(
        tokenizer,
        keep_thinking=config.chat.keep_thinking,
        enable_thinking=config.chat.enable_thinking,
        tool_format=config.chat.tool_format,
    )


def _hosted_loop(config, make_env, chat, rule, sizes, user) -> loops.HostedLoop:
    roll = config.rollout
    limits = Limits(
        max_turns=make_env().max_turns,
        max_tokens=roll.max_tokens,
        max_prompt_tokens=roll.max_prompt_tokens,
        max_action_tokens=roll.max_action_tokens,
        max_feedback_tokens=roll.max_feedback_tokens,
        max_bad_actions=roll.max_bad_actions,
    )
    slots, aside = build_mesh.count_seats(config)
    engine = HostedRollout(
        make_env,
        chat,
        rule.graphdef,
        limits,
        num_slots=slots,
        num_aside=aside,
        chunk=roll.chunk,
        num_workers=roll.workers,
        call_seconds=roll.call_seconds,
        retries=roll.retries,
        rollout_mesh=rule.mesh,
        cache_dtype=roll.cache_dtype,
    )
    return loops.HostedLoop(
        make_env, chat, rule, sizes, engine, seed=config.seed, max_failed_fraction=roll.max_failed_fraction, user=user
    )


def make_model_config(config: Any, *, vocab_size: int) -> LMConfig:
    """Returns the architecture that a config describes."""
    adapters = {'lora_rank': config.lora.rank, 'lora_alpha': config.lora.alpha}
    if config.model.path is not None:
        return hf.load_config(config.model.path, **precision(config), **adapters)
    fields = {name: value for name, value in config.model.items() if name not in ('max_vocab', 'path')}
    return LMConfig(vocab_size=vocab_size, **fields, **adapters)


def precision(config: Any) -> dict[str, Any]:
    """Returns the fields of ``LMConfig`` that a run may set of any checkpoint."""
    return {name: config.model[name] for name in ('dtype', 'param_dtype', 'remat')}


def graph_of(model_config: LMConfig) -> Any:
    """Returns the static part of a model, without allocating its parameters."""
    return nnx.split(nnx.eval_shape(lambda: Transformer(model_config, nnx.Rngs(0))))[0]


def make_rule(
    config: Any,
    model_config: LMConfig,
    *,
    placeholder: tuple[int, ...],
    outcome_range: float,
    mesh: jax.sharding.Mesh | None = None,
) -> update_lib.UpdateRule:
    """Returns the update that a config describes."""
    info, loss, updates = config.info, config.loss, config.updates
    return update_lib.UpdateRule(
        graphdef=graph_of(model_config),
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
        microbatches=build_mesh.count_microbatches(config, mesh),
        mesh=mesh,
        base_graphdef=graph_of(lora.base_of(model_config)) if config.lora.rank else None,
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
