"""A training run: warm start, then rollout, score, credit, update, log, checkpoint, evaluate."""

import dataclasses
import functools
import json
import pathlib
import signal
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from infopo_jax import config as config_lib, envs, estimators, loops, report, samples, update as update_lib
from infopo_jax.checkpoint import Checkpointer
from infopo_jax.lm.chat import Chat
from infopo_jax.lm.config import LMConfig
from infopo_jax.lm.tokenizer import train_tokenizer
from infopo_jax.lm.transformer import Transformer
from infopo_jax.logger import Logger
from infopo_jax.rollout.dialogue import Limits
from infopo_jax.rollout.hosted import HostedRollout

INIT, WARM_START, TRAIN, EVAL = range(4)  # what the run's key is folded with


class TrainingStopped(ValueError):
    """The run cannot go on; the last checkpoint is whole."""


def main(config: Any, workdir: str) -> dict[str, Any]:
    """Trains as a config says, or resumes the run that stands in workdir.

    Args:
        config: a validated config tree.
        workdir: an existing folder for metrics, checkpoints and the report.

    Returns:
        The metrics of the last evaluation.

    Raises:
        ValueError: the config does not match the checkpoint in workdir.
        TrainingStopped: too many non-finite updates in a row, or too many failed rollouts.
    """
    # --- Build: environment, model, update rule, one loop for its kind of rollout.
    loop, model_config = build_loop(config)
    key = loops.seed_keys(config.seed, config.num_seeds)
    checkpointer = Checkpointer(workdir)
    logger = Logger(workdir, interval=config.log.interval, total_steps=config.steps, tensorboard=config.log.tensorboard)
    with logger:
        state, fresh = _restore(config, workdir, loop, model_config, key, checkpointer)
        _header(logger, config, loop, model_config, state)

        # --- Warm start: syntax and copying; the reference policy is what comes out of it.
        if fresh:
            state = _warm_start(config, loop, state, key)
            metrics = _evaluate(config, loop, state, key, logger)
            _save(checkpointer, config, loop, state, metrics)
        else:
            logger.truncate(step_of(state))
            metrics = {}

        # --- Train. Until here there was nothing to save; from here on SIGTERM saves.
        step = step_of(state)
        profile = _Profile(workdir, first=step + 2, count=config.profile)
        with _Terminated() as terminated:
            while step < config.steps and not terminated.asked:
                profile.before(step + 1)
                state, step_metrics, clock = loop.step(state)  # rollout, score, credit, update
                step += 1
                profile.after(step)
                logger.log(step, step_metrics | clock)
                _stop_if_broken(config, step, step_metrics)
                if _due(step, config.eval.interval) or step == config.steps:
                    metrics = _evaluate(config, loop, state, key, logger)
                    _save(checkpointer, config, loop, state, metrics)
                elif _due(step, config.checkpoint.interval):
                    _save(checkpointer, config, loop, state, None)
            if terminated.asked:
                _save(checkpointer, config, loop, state, None)
                print(f'terminated: saved step {step}; the same command with --workdir={workdir} goes on')
        checkpointer.close()
    print(f'report: {report.write_report(workdir)}')
    return metrics


def evaluate(config: Any, workdir: str, *, best: bool = False) -> dict[str, Any]:
    """Evaluates a checkpoint of the run in workdir on held-out tasks, as the run itself does.

    Args:
        config: the run's own; ``eval``, ``batch`` and ``seed`` (which episodes) may differ.
        workdir: folder of the run; nothing is written there.
        best: takes the checkpoint with the highest held-out success instead of the newest.

    Returns:
        {'step': its step} and the metrics; one value per seed where the run trained several.

    Raises:
        ValueError: there is no checkpoint, or another field differs from it.
    """
    checkpointer = Checkpointer(workdir)
    saved = checkpointer.config()
    if saved is None:
        raise ValueError(f'{workdir} holds no checkpoint; pass the --workdir of a run that finished its warm start')
    free = {name: config_lib.to_dict(config)[name] for name in ('batch', 'seed')}
    config_lib.check_resume(saved | free, config)
    loop, model_config = build_loop(config)
    key = loops.seed_keys(config.seed, config.num_seeds)
    template = _template(loop, model_config, key)
    state = nnx_state((checkpointer.restore_best if best else checkpointer.restore)(pure(template))[0], template)
    metrics, _ = loop.evaluate(state.params, _eval_keys(loop, key), state.step)
    return {'step': step_of(state)} | metrics


def build_loop(config: Any) -> tuple[Any, LMConfig]:
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
        model_config = build_model_config(config, vocab_size=len(env.vocab))
        shown = config.info.placeholder
        placeholder = tuple(env.placeholder if shown is None else env.encode(shown))
        rule = build_rule(config, graph_of(model_config), placeholder=placeholder, outcome_range=env.outcome_range)
        return loops.JittedLoop(env, rule, sizes, num_seeds=config.num_seeds), model_config
    chat = Chat(train_tokenizer(env.corpus(), env.special_tokens(), vocab_size=config.model.max_vocab))
    model_config = build_model_config(config, vocab_size=chat.vocab_size)
    placeholder = tuple(chat.encode(config.info.placeholder or env.placeholder))
    rule = build_rule(config, graph_of(model_config), placeholder=placeholder, outcome_range=env.outcome_range)
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


def build_model_config(config: Any, *, vocab_size: int) -> LMConfig:
    """Returns the architecture that a config describes."""
    fields = config.model.to_dict()
    fields.pop('max_vocab')
    return LMConfig(vocab_size=vocab_size, **fields)


def graph_of(model_config: LMConfig) -> Any:
    """Returns the static part of a model, without allocating its parameters."""
    return nnx.split(nnx.eval_shape(lambda: Transformer(model_config, nnx.Rngs(0))))[0]


def build_rule(
    config: Any, graphdef: Any, *, placeholder: tuple[int, ...], outcome_range: float
) -> update_lib.UpdateRule:
    """Returns the update that a config describes."""
    info, loss, updates = config.info, config.loss, config.updates
    return update_lib.UpdateRule(
        graphdef=graphdef,
        optimizer=build_optimizer(config),
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


def build_optimizer(config: Any) -> optax.GradientTransformation:
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


def step_of(state: update_lib.TrainState) -> int:
    """Returns the steps done; all seeds agree."""
    return int(np.max(jax.device_get(state.step)))


def init_state(loop: Any, model_config: LMConfig, key: jax.Array) -> update_lib.TrainState:
    """Returns the state of a run before its warm start."""

    def init(key):
        model = Transformer(model_config, nnx.Rngs(jax.random.fold_in(key, INIT)))
        return update_lib.init_state(loop.rule, nnx.split(model)[1], jax.random.fold_in(key, TRAIN))

    return jax.jit(loop.over_seeds(init))(key)


def _template(loop, model_config, key) -> update_lib.TrainState:
    """Returns the state's shapes, without allocating it."""
    return jax.eval_shape(lambda k: init_state(loop, model_config, k), key)


def _restore(config, workdir, loop, model_config, key, checkpointer):
    """Returns the state in workdir, or a fresh one, and whether it is fresh."""
    saved = checkpointer.config()
    if saved is not None:
        config_lib.check_resume(saved, config)
        template = _template(loop, model_config, key)
        return nnx_state(checkpointer.restore(pure(template))[0], template), False
    for name in ('metrics.jsonl', 'rollouts.jsonl'):  # a run that died before its first checkpoint
        (pathlib.Path(workdir) / name).unlink(missing_ok=True)
    path = pathlib.Path(workdir) / 'config.json'
    path.write_text(json.dumps(config_lib.to_dict(config), indent=2) + '\n', encoding='utf-8')
    return init_state(loop, model_config, key), True


def pure(state: update_lib.TrainState) -> dict[str, Any]:
    """Returns the state as nested dicts of arrays, under names that do not depend on Flax's classes."""
    leaves = {
        'params': nnx.to_pure_dict(state.params),
        'opt_state': jax.tree.map(_unwrap, state.opt_state, is_leaf=_is_state),
        'key': state.key,
        'step': state.step,
        'bad_updates': state.bad_updates,
    }
    return leaves | ({} if state.reference is None else {'reference': nnx.to_pure_dict(state.reference)})


def nnx_state(values: dict[str, Any], template: update_lib.TrainState) -> update_lib.TrainState:
    """Undoes ``pure``: leaves stand in the same order in both."""
    leaves = pure(template)
    assert jax.tree.structure(leaves) == jax.tree.structure(values)
    fields = {}
    for name, value in values.items():
        fields[name] = jax.tree.unflatten(jax.tree.structure(getattr(template, name)), jax.tree.leaves(value))
    return dataclasses.replace(template, **fields)


def _is_state(node) -> bool:
    return isinstance(node, nnx.State)


def _unwrap(node):
    return nnx.to_pure_dict(node) if _is_state(node) else node


def _warm_start(config, loop, state, key):
    warm = config.warmstart
    if not warm.steps:
        return state
    start = time.perf_counter()

    def progress(done, loss):
        seconds = time.perf_counter() - start
        left = seconds / done * (warm.steps - done)
        print(
            f'warm start {done}/{warm.steps}  loss {loss:.3f} nats per token  {seconds:.0f} s  eta {left:.0f} s',
            flush=True,
        )

    keys = loop.over_seeds(lambda k: jax.random.fold_in(k, WARM_START))(key)
    params = loop.warm_start(state.params, keys, steps=warm.steps, batch=warm.batch, lr=warm.lr, progress=progress)
    reference = None if state.reference is None else jax.tree.map(jnp.copy, params)
    return dataclasses.replace(state, params=params, reference=reference)


def _evaluate(config, loop, state, key, logger) -> dict[str, Any]:
    step = step_of(state)
    start = time.perf_counter()
    metrics, look = loop.evaluate(state.params, _eval_keys(loop, key), state.step)
    logger.log(step, metrics | {'seconds': time.perf_counter() - start}, phase='eval')
    if config.log.rollouts:
        rows = samples.sample_rows(
            look.turns, look.token_gain, look.gain, look.gain_mask, look.advantage,
            decode=loop.decode, group_size=config.batch.group_size, phase='eval',
        )  # fmt: skip
        logger.rollouts(step, rows[: config.log.rollouts])
    return metrics


def _eval_keys(loop, key):
    return loop.over_seeds(lambda k: jax.random.fold_in(k, EVAL))(key)  # the same episodes every time


def _save(checkpointer, config, loop, state, metrics):
    metric = None if metrics is None else float(np.mean(metrics['success']))
    checkpointer.save(step_of(state), pure(state), config_dict=config_lib.to_dict(config), metric=metric)


def _due(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0


def _stop_if_broken(config, step, metrics):
    bad = int(np.max(metrics['bad_updates']))
    if bad >= config.updates.max_bad_updates:
        names = ('loss', 'grad_norm', 'gain_mean', 'kl', 'entropy')
        causes = ', '.join(f'{n} {np.asarray(metrics[n])}' for n in names if n in metrics)
        raise TrainingStopped(
            f'step {step}: {bad} updates in a row were not finite and were refused ({causes}). '
            'Lower config.optim.lr, or look at the last rows of metrics.jsonl; the last checkpoint is whole.'
        )


def _header(logger, config, loop, model_config, state):
    params = sum(x.size for x in jax.tree.leaves(state.params)) // config.num_seeds
    logger.header(
        num_params=params,
        environment=f'{config.env.name} ({config.env.kind})',
        estimator=config.advantage.estimator,
        batch=f'{config.batch.prompts} prompts x {config.batch.group_size} rollouts',
        seeds=config.num_seeds,
    )


class _Terminated:
    """Notes SIGTERM, so that the step in flight ends and is saved."""

    asked = False

    def __enter__(self):
        try:
            self._before = signal.signal(signal.SIGTERM, self._note)
        except ValueError:  # not the main thread
            self._before = None
        return self

    def _note(self, *_):
        self.asked = True

    def __exit__(self, *_):
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)


class _Profile:
    """Traces ``count`` steps from ``first`` on into workdir/profile."""

    def __init__(self, workdir: str, *, first: int, count: int):
        self._folder, self._first, self._last = pathlib.Path(workdir) / 'profile', first, first + count - 1

    def before(self, step: int):
        if self._first <= self._last and step == self._first:
            jax.profiler.start_trace(str(self._folder))

    def after(self, step: int):
        if self._first <= self._last and step == self._last:
            jax.profiler.stop_trace()
            print(f'profile of steps {self._first} to {self._last}: {self._folder}')
