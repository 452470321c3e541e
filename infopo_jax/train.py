"""A training run: warm start, then rollout, score, credit, update, log, checkpoint, evaluate."""

import dataclasses
import json
import pathlib
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infopo_jax import build, build_state, config as config_lib, loops, report, samples, sharding
from infopo_jax.checkpoint import Checkpointer
from infopo_jax.lm.config import LMConfig
from infopo_jax.logger import METRICS_FILE, ROLLOUTS_FILE, Logger, read_jsonl
from infopo_jax.profiling import Profile
from infopo_jax.state import TrainState, is_whole, nnx_state, pure, step_of
from infopo_jax.termination import Terminated


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
        ValueError: the config does not match the checkpoint in workdir, or a run stands there that has lost its own.
        TrainingStopped: the warm start diverged, or too many non-finite updates in a row.
        hosted.RolloutsFailed: too many rollouts of a batch failed; the steps before are saved.
    """
    # --- Build: environment, model, update rule, one loop for its kind of rollout.
    loop, model_config = build.make_loop(config)
    loop.check_trainable()
    key = loops.seed_keys(config.seed, config.num_seeds)
    checkpointer = Checkpointer(workdir)
    logger = Logger(workdir, interval=config.log.interval, total_steps=config.steps, tensorboard=config.log.tensorboard)
    with logger, Terminated(loop.stop) as terminated:
        state, fresh = _restore(config, workdir, loop, model_config, key, checkpointer)
        _header(logger, config, loop, model_config, state)

        # --- Warm start: syntax and copying; the reference policy is what comes out of it.
        if fresh:
            try:
                state = _warm_start(config, loop, state, key, terminated)
            except loops.Stopped:
                print(f'terminated in the warm start; the same command with --workdir={workdir} begins it anew')
                return {}
            _save(checkpointer, config, loop, state, None)
        else:
            logger.truncate(step_of(state))

        # --- Train. Whatever ends it, Ctrl-C and SIGTERM too, the steps that are done are kept.
        step, metrics = step_of(state), logger.last('eval')
        with Profile(workdir, first=step + 2, count=config.profile, last=config.steps) as profile:
            try:
                if _evaluates(config, step) and not terminated.asked:  # else whoever resumes does
                    if metrics.get('step') != step:  # of a fresh run, or one that ended in its evaluation
                        metrics = _evaluate(config, loop, state, key, logger)
                    _save(checkpointer, config, loop, state, metrics)
                while step < config.steps and not terminated.asked:
                    profile.before(step + 1)
                    state, step_metrics, clock = loop.step(state)  # rollout, score, credit, update
                    logger.log(step + 1, step_metrics | clock)
                    step += 1
                    profile.after(step)
                    _stop_if_broken(config, step, step_metrics)
                    if _evaluates(config, step):
                        metrics = _evaluate(config, loop, state, key, logger)
                        _save(checkpointer, config, loop, state, metrics)
                    elif _due(step, config.checkpoint.interval):
                        _save(checkpointer, config, loop, state, None)
            except loops.Stopped:
                pass  # by SIGTERM, in the middle of a batch or an evaluation
            except BaseException as error:
                # Not if an update failed, which takes the state apart, nor before its row is written.
                if is_whole(state) and step_of(state) == step:
                    _save(checkpointer, config, loop, state, None)
                    _report(workdir)
                    if not isinstance(error, TrainingStopped):
                        print(f'saved step {step}; the same command with --workdir={workdir} goes on', file=sys.stderr)
                raise
            if terminated.asked:
                _save(checkpointer, config, loop, state, None)
                print(f'terminated: saved step {step}; the same command with --workdir={workdir} goes on')
        checkpointer.close()
    _report(workdir)
    return metrics


def evaluate(config: Any, workdir: str, *, best: bool = False) -> dict[str, Any]:
    """Evaluates a checkpoint of the run in workdir on held-out tasks, as the run itself does.

    Args:
        config: the run's own; what ``config.FREE_IN_EVALUATION`` lists may differ: which episodes, and who answers.
        workdir: folder of the run; nothing is written there.
        best: takes the checkpoint with the highest held-out success instead of the newest.

    Returns:
        {'step': its step} and the metrics; one value per seed where the run trained several.

    Raises:
        ValueError: there is no checkpoint, another field differs from it, or it lacks the weights of the user.
    """
    loop, _, state = open_run(config, workdir, best=best)
    key = loops.seed_keys(config.seed, config.num_seeds)
    metrics, _ = loop.evaluate(state.weights, _eval_keys(loop, key), state.step, reference=state.start)
    return {'step': step_of(state)} | metrics


def open_run(config: Any, workdir: str, *, best: bool = False) -> tuple[Any, LMConfig, TrainState]:
    """Returns the loop, the architecture and the state of a run's checkpoint.

    Args, Raises: see ``evaluate``.
    """
    checkpointer = Checkpointer(workdir)
    saved = checkpointer.config()
    if saved is None:
        raise ValueError(f'{workdir} holds no checkpoint; pass the --workdir of a run that finished its warm start')
    config_lib.check_resume(saved, config, free=config_lib.FREE_IN_EVALUATION)
    loop, model_config = build.make_loop(config, trained=config_lib.from_dict(saved))
    key = loops.seed_keys(config.seed, config.num_seeds)
    state = _read(config, loop, model_config, key, checkpointer, best=best)
    if loop.needs_reference and state.start is None:
        raise ValueError(
            "config.user.weights = 'frozen': the run kept no policy from before its training, which takes "
            "config.loss.kl_coef above 0 or that user; let 'current' weights play, or a checkpoint by config.user.path"
        )
    return loop, model_config, state


def _restore(config, workdir, loop, model_config, key, checkpointer):
    """Returns the state in workdir, or a fresh one, and whether it is fresh."""
    saved = checkpointer.config()
    if saved is not None:
        config_lib.check_resume(saved, config)
        _write_config(config, workdir)
        return _read(config, loop, model_config, key, checkpointer), False
    folder = pathlib.Path(workdir)
    if any(checkpointer.broken()) or any(row['phase'] == 'train' for row in read_jsonl(folder / METRICS_FILE)):
        raise ValueError(
            f'{workdir} holds a run that has trained and no whole checkpoint of it: bring its folder checkpoints back, '
            'take another --workdir, or remove this one to start anew'
        )
    for name in (METRICS_FILE, ROLLOUTS_FILE):  # of a run that died before its first checkpoint
        (folder / name).unlink(missing_ok=True)
    _write_config(config, workdir)
    return build_state.make_state(loop, model_config, key, base=build_state.load_base(config, loop)), True


def _write_config(config, workdir):
    """Writes config.json, what evaluation, export and chat begin with, whole at any moment."""
    path = pathlib.Path(workdir) / 'config.json'
    part = path.with_suffix('.part')
    part.write_text(json.dumps(config_lib.to_dict(config), indent=2) + '\n', encoding='utf-8')
    part.replace(path)


def _read(config, loop, model_config, key, checkpointer, *, best=False):
    """Returns the state that a checkpoint holds; a frozen base that it need not hold is loaded from where it came."""
    template = build_state.state_template(loop, model_config, key)
    # Whether the policy before training was kept depends on who answered then, not on who answers now.
    template = dataclasses.replace(template, reference=template.params if checkpointer.holds('reference') else None)
    restore = checkpointer.restore_best if best else checkpointer.restore
    state = nnx_state(restore(pure(template, with_frozen=_holds_base(config)))[0], template)
    if state.frozen is None or _holds_base(config):
        return state
    return dataclasses.replace(state, frozen=build_state.load_base(config, loop))


def _holds_base(config) -> bool:
    """Whether checkpoints hold the base under adapters: not if it can be loaded again as it was."""
    return config.model.path is None or config.warmstart.pretrained


def _warm_start(config, loop, state, key, terminated):
    warm = config.warmstart
    if not warm.steps or (config.model.path is not None and not warm.pretrained):
        return state
    start = time.perf_counter()

    def progress(done, loss):
        seconds = time.perf_counter() - start
        left = seconds / done * (warm.steps - done)
        print(
            f'warm start {done}/{warm.steps}  loss {loss:.3f} nats per token  {seconds:.0f} s  eta {left:.0f} s',
            flush=True,
        )
        if terminated.asked and done < warm.steps:  # else it is kept, as of step 0
            raise loops.Stopped

    keys = loop.over_seeds(lambda k: jax.random.fold_in(k, build_state.WARM_START))(key)
    settings = dict(steps=warm.steps, batch=warm.batch, lr=warm.lr, progress=progress)
    if state.frozen is not None:  # adapters learn afterwards, on what the base has learnt here
        return dataclasses.replace(state, frozen=_finite(loop.warm_start(state.frozen, keys, **settings)))
    params = _finite(loop.warm_start(state.params, keys, **settings))
    reference = None if state.reference is None else _copy(params)
    return dataclasses.replace(state, params=params, reference=reference)


def _finite(params):
    if not _is_finite(params):
        raise TrainingStopped('the warm start diverged, its weights are not finite: lower config.warmstart.lr')
    return params


@jax.jit
def _is_finite(params):
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]))


@jax.jit
def _copy(params):
    return jax.tree.map(jnp.copy, params)


def _evaluate(config, loop, state, key, logger) -> dict[str, Any]:
    step = step_of(state)
    start = time.perf_counter()
    metrics, look = loop.evaluate(state.weights, _eval_keys(loop, key), state.step, reference=state.start)
    logger.log(step, metrics | {'seconds': time.perf_counter() - start}, phase='eval')
    if config.log.rollouts:
        rows = samples.sample_rows(
            look.turns, look.token_gain, look.gain, look.gain_mask, look.advantage,
            decode=loop.decode, group_size=config.batch.group_size, phase='eval',
        )  # fmt: skip
        logger.rollouts(step, rows[: config.log.rollouts])
    return metrics


def _report(workdir):
    if read_jsonl(pathlib.Path(workdir) / METRICS_FILE):  # there is something to show
        print(f'report: {report.write_report(workdir)}')


def _eval_keys(loop, key):
    return loop.over_seeds(lambda k: jax.random.fold_in(k, build_state.EVAL))(key)  # the same episodes every time


def _save(checkpointer, config, loop, state, metrics):
    metric = None if metrics is None else float(np.mean(np.asarray(metrics['success'], float)))  # 'NaN' in a log
    values = pure(state, with_frozen=_holds_base(config))
    checkpointer.save(step_of(state), values, config_dict=config_lib.to_dict(config), metric=metric)


def _due(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0


def _evaluates(config, step: int) -> bool:
    return _due(step, config.eval.interval) or step in (0, config.steps)


def _stop_if_broken(config, step, metrics):
    bad = int(np.max(metrics['bad_updates']))
    if bad >= config.updates.max_bad_updates:
        names = ('loss', 'grad_norm', 'gain_mean', 'kl', 'entropy')
        causes = ', '.join(f'{n} {np.asarray(metrics[n])}' for n in names if n in metrics)
        raise TrainingStopped(
            f'step {step}: {bad} updates in a row were not finite and were refused ({causes}). '
            'Look at the last rows of metrics.jsonl; start again with a lower config.optim.lr in another --workdir, as '
            'this one would come to the same point again. What it has learnt until here is saved.'
        )


def _header(logger, config, loop, model_config, state):
    weights, trained = (sum(x.size for x in jax.tree.leaves(p)) for p in (state.weights, state.params))
    logger.header(
        num_params=weights // config.num_seeds,
        environment=f'{config.env.name} ({config.env.kind})',
        estimator=config.advantage.estimator,
        batch=f'{config.batch.prompts} prompts x {config.batch.group_size} rollouts',
        trained=f'{trained // config.num_seeds:,} parameters' + (' (adapters)' if state.frozen is not None else ''),
        seeds=config.num_seeds,
        mesh=sharding.describe(loop.rule.mesh),
    )
