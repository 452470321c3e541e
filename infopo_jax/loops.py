"""The two ways to run a step behind one face: environments inside XLA, and hosted text environments.

``train`` calls ``check_trainable``, ``over_seeds``, ``warm_start``, ``step``, ``evaluate``, ``stop`` and ``decode``.
"""

import contextlib
import dataclasses
import functools
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from infopo_jax import evaluate as evaluate_lib, sharding, update as update_lib, warmstart
from infopo_jax.rollout import batches, hosted, jitted
from infopo_jax.state import TrainState

Progress = Callable[[int, float], None]

Stopped = hosted.RolloutsStopped
ROLLOUT, UPDATE = 0, 1  # what a step's key is folded with


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much to roll out."""

    num_prompts: int  # P
    group_size: int  # G
    eval_groups: int
    look_groups: int  # groups of the evaluation that are scored for the report, at least 1
    temperature: float
    eval_temperature: float
    max_bad_actions: int
    eval_truncation: Mapping[str, float] = dataclasses.field(
        default_factory=dict
    )  # top_k, top_p, min_p; training: none


class JittedLoop:
    """Steps of an array environment: prompts, sampling, feedback, scoring and update are one XLA program.

    Args:
        env: an ``envs.array.ArrayEnv``.
        rule: the update; its static bounds are set here.
        sizes: how much to roll out.
        num_seeds: runs trained side by side by vmap; 1 adds no axis.
    """

    needs_reference = False  # beside what the update needs

    def __init__(self, env: Any, rule: update_lib.UpdateRule, sizes: Sizes, *, num_seeds: int = 1):
        lay = jitted.Layout.of(env)
        horizon = lay.turns - 1 if rule.horizon in ('all', 0) else rule.horizon
        self.rule = dataclasses.replace(
            rule, branch_len=lay.branches(len(rule.placeholder), horizon), target_len=lay.targets
        )
        control = lay.branch(lay.feedback, horizon)  # one branch, whose feedback stays
        self._looks = dataclasses.replace(self.rule, branch_len=max(self.rule.branch_len, control))
        self.env, self.sizes, self.num_seeds = env, sizes, num_seeds
        self._step = jax.jit(self.over_seeds(self.one_step), donate_argnums=0)
        self._evaluate = jax.jit(self.over_seeds(self.one_evaluation))

    def check_trainable(self) -> None:
        """Array environments can always be trained on."""

    def over_seeds(self, function):
        """Maps a function over the leading seed axis of all its arguments."""
        return jax.vmap(function) if self.num_seeds > 1 else function

    def warm_start(self, params: Any, key: jax.Array, *, steps: int, batch: int, lr: float, progress: Progress) -> Any:
        """Returns warm-started parameters; ``progress`` is called with the steps done and the loss."""
        tx, rule = warmstart.optimizer(lr, steps), self.rule
        init = functools.partial(warmstart.init_optimizer, tx, mesh=rule.mesh)
        opt_state = jax.jit(self.over_seeds(init))(params)
        stretch = max(1, steps // 10)

        @functools.cache
        def stretch_of(size):
            run = warmstart.array_steps(
                rule.base_graphdef or rule.graphdef, self.env, tx, steps=size, batch=batch, mesh=rule.mesh
            )
            run = jax.vmap(run, in_axes=(0, 0, 0, None)) if self.num_seeds > 1 else run
            return jax.jit(run, donate_argnums=(0, 1))

        for start in range(0, steps, stretch):
            size = min(stretch, steps - start)
            params, opt_state, losses = stretch_of(size)(params, opt_state, key, start)
            progress(start + size, float(losses.mean()))
        return params

    def one_step(self, state: TrainState):
        """One whole training step of one seed; traceable."""
        key = jax.random.fold_in(state.key, state.step)
        turns = self._rollout(
            state.weights,
            jax.random.fold_in(key, ROLLOUT),
            num_prompts=self.sizes.num_prompts,
            temperature=self.sizes.temperature,
        )
        return update_lib.update(self.rule, state, turns, jax.random.fold_in(key, UPDATE))

    def step(self, state: TrainState):
        """Returns the state after one step, metrics and {'seconds': ...}; the state is donated."""
        start = time.perf_counter()
        state, metrics = self._step(state)
        metrics = jax.device_get(metrics)
        seconds = time.perf_counter() - start
        rollouts = self.sizes.num_prompts * self.sizes.group_size * self.num_seeds
        speed = float(metrics['length'].mean()) * rollouts / seconds
        return state, metrics, {'seconds': seconds, 'tokens_per_second': speed}

    def one_evaluation(self, params: Any, key: jax.Array, step: jax.Array):
        """Held-out metrics, and a look at the first groups; traceable."""
        size = self.sizes.group_size
        turns = self._rollout(
            params,
            key,
            num_prompts=self.sizes.eval_groups,
            split='test',
            temperature=self.sizes.eval_temperature,
            **self.sizes.eval_truncation,
        )
        metrics = evaluate_lib.eval_metrics(turns, group_size=size)
        first = jax.tree.map(lambda a: a[: self.sizes.look_groups * size], turns)
        rows = evaluate_lib.with_controls(self.rule, first)
        look = evaluate_lib.look(self._looks, self.rule.model(params), rows, key, step)
        return metrics | _noise_of(look, self.rule), look

    def evaluate(self, params: Any, key: jax.Array, step: jax.Array, *, reference: Any = None):
        """Returns held-out metrics and a ``Look`` (of the first seed)."""
        del reference  # nobody plays in XLA
        metrics, look = jax.device_get(self._evaluate(params, key, step))
        if self.num_seeds > 1:
            look = jax.tree.map(lambda a: a[0], look)
        return metrics, look

    def stop(self) -> None:
        """Nothing can be broken off: a step is one call."""

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ids."""
        return self.env.decode(ids)

    def _rollout(self, params, key, **settings):
        mesh = self.rule.mesh  # one program, one mesh
        return jitted.rollout(
            nnx.merge(self.rule.graphdef, sharding.publish(params, mesh)),
            self.env,
            key,
            group_size=self.sizes.group_size,
            max_bad_actions=self.sizes.max_bad_actions,
            rollout_mesh=mesh,
            **settings,
        )


class HostedLoop:
    """Steps of a text environment: rollouts on host and device, then scoring and update as one XLA program.

    Args:
        make_env: returns a fresh text environment.
        chat: renders its messages.
        rule: the update; its static bounds are set per batch from a ladder.
        sizes: how much to roll out.
        engine: plays the rollouts.
        seed: of the host's randomness: which tasks, which wording.
        max_failed_fraction: more failed rollouts than this share of a batch stop the run.
        user: who answers in place of the environment's script; what it counts is logged. One that has ``publish`` and
            ``withdraw`` (``users.policy``) plays with the weights that they bring and take away around each batch.
    """

    num_seeds = 1

    def __init__(self, make_env, chat, rule, sizes: Sizes, engine, *, seed: int, max_failed_fraction: float, user=None):
        self.make_env, self.chat, self.rule, self.sizes, self.engine = make_env, chat, rule, sizes, engine
        self.seed, self.max_failed_fraction, self.user = seed, max_failed_fraction, user
        self.needs_reference = getattr(user, 'needs_reference', False)
        self.ladder = batches.Ladder.of(engine.limits, num_placeholder=len(rule.placeholder), horizon=rule.horizon)
        env = make_env()
        self.tasks = {split: list(env.tasks(split)) for split in ('train', 'test')}
        for split, tasks in self.tasks.items():
            if not tasks:
                name = type(env).__name__
                raise ValueError(f'the environment ({name}) has no tasks of split {split!r}; see config.env')
        self._update = jax.jit(self._update_one, donate_argnums=0, static_argnames=('branch_len', 'target_len'))
        self._metrics = jax.jit(functools.partial(evaluate_lib.eval_metrics, group_size=sizes.group_size))
        self._with_controls = jax.jit(functools.partial(evaluate_lib.with_controls, rule))
        self._look = jax.jit(self._look_one, static_argnames=('branch_len', 'target_len'))

    def check_trainable(self) -> None:
        """Raises ValueError where the chat's rows are not what was sampled."""
        self.chat.check_trainable()

    def over_seeds(self, function):
        """Hosted runs have no seed axis."""
        return function

    def warm_start(self, params: Any, key: jax.Array, *, steps: int, batch: int, lr: float, progress: Progress) -> Any:
        """Returns warm-started parameters; ``progress`` is called with the steps done and the loss."""
        del key  # the examples come from the host's randomness
        return warmstart.run_text(
            self.rule.base_graphdef or self.rule.graphdef, params, self.make_env(), self.chat,
            seed=self.seed, steps=steps, batch=batch, lr=lr,
            max_len=self.engine.limits.max_tokens, max_targets=self.engine.limits.max_action_tokens,
            progress=progress, mesh=self.rule.mesh,
        )  # fmt: skip

    def step(self, state: TrainState):
        """Returns the state after one step, metrics and the clock; the state is donated."""
        start = time.perf_counter()
        step = int(state.step)
        key = jax.random.fold_in(state.key, state.step)
        rng = random.Random(f'tasks {self.seed} {step}')
        tasks = rng.choices(self.tasks['train'], k=self.sizes.num_prompts)
        turns, clock = self._rollout(
            state.weights,
            jax.random.fold_in(key, ROLLOUT),
            tasks,
            rng.getrandbits(31),
            reference=state.start,
            temperature=self.sizes.temperature,
        )
        rolled = time.perf_counter()
        (branch_len, target_len), turns = self.ladder.fit(turns, self.rule.placeholder, self.rule.horizon)
        turns = sharding.rows(turns, self.rule.mesh)
        state, metrics = self._update(
            state, turns, jax.random.fold_in(key, UPDATE), branch_len=branch_len, target_len=target_len
        )
        metrics = jax.device_get(metrics)
        end = time.perf_counter()
        tokens = float(metrics['length']) * turns.outcome.shape[0]
        return state, metrics, {
            'seconds': end - start,
            'tokens_per_second': tokens / (end - start),
            'tokens_per_second_sampled': clock.sampled / max(clock.decode, 1e-9),
            'tokens_per_second_fed': clock.fed / max(clock.extend, 1e-9),
            'tokens_per_second_update': tokens / (end - rolled),
            'seconds_rollout': rolled - start,
            'seconds_decode': clock.decode,
            'seconds_extend': clock.extend,
            'seconds_env': clock.env,
            'seconds_wait': clock.wait,
            'seconds_update': end - rolled,
            **self._failures(clock),
        }  # fmt: skip

    def evaluate(self, params: Any, key: jax.Array, step: jax.Array, *, reference: Any = None):
        """Returns held-out metrics and a ``Look``; ``reference`` is the policy before training, for a user."""
        rng = random.Random(f'eval {self.seed}')
        tasks = rng.sample(self.tasks['test'], min(self.sizes.eval_groups, len(self.tasks['test'])))
        draw = {'temperature': self.sizes.eval_temperature, **self.sizes.eval_truncation}
        turns, clock = self._rollout(params, key, tasks, rng.getrandbits(31), reference=reference, **draw)
        metrics = self._metrics(turns)
        first = jax.tree.map(lambda a: a[: self.sizes.look_groups * self.sizes.group_size], turns)
        rows = jax.tree.map(np.concatenate, jax.device_get(self._with_controls(first)))
        (branch_len, target_len), rows = self.ladder.fit(rows, self.rule.placeholder, self.rule.horizon)
        rows = jax.tree.map(lambda a: a.reshape(-1, len(first.outcome), *a.shape[1:]), rows)
        look = self._look(params, rows, key, step, branch_len=branch_len, target_len=target_len)
        metrics = metrics | _noise_of(look, self.rule)
        return jax.device_get(metrics) | self._failures(clock), jax.device_get(look)

    def stop(self) -> None:
        """Has a batch that is being played, and all later ones, raise ``Stopped``; from a signal handler, too."""
        self.engine.stop()

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ids."""
        return self.chat.decode(ids)

    def _failures(self, clock) -> dict[str, float]:
        """Returns how many rollouts of a batch failed, and what the user has counted since the start."""
        counters = {} if self.user is None else self.user.counters()
        failures = {'retried': clock.retried, 'masked': clock.masked}
        return failures | {f'user_{name}': count for name, count in counters.items()}

    def _rollout(self, params, key, tasks, seed, *, reference=None, **draw):
        with _published(self.user, params, reference):
            size = self.sizes.group_size
            dialogues, clock = self.engine.rollout(params, key, tasks, group_size=size, seed=seed, **draw)
        failed = [d for d in dialogues if not d.valid]
        if len(failed) > self.max_failed_fraction * len(dialogues):
            raise hosted.RolloutsFailed(
                f'{len(failed)} of {len(dialogues)} rollouts failed, more than config.rollout.max_failed_fraction = '
                f'{self.max_failed_fraction}; the first, task {failed[0].task!r}: {failed[0].error_text}'
            )
        if clock.failures:
            print(f'{len(clock.failures)} rollouts failed; the first: {clock.failures[0]}', file=sys.stderr, flush=True)
        limits = self.engine.limits
        return batches.to_turns(dialogues, limits.max_tokens, limits.max_turns), clock

    def _update_one(self, state, turns, key, *, branch_len, target_len):
        rule = dataclasses.replace(self.rule, branch_len=branch_len, target_len=target_len)
        return update_lib.update(rule, state, turns, key)

    def _look_one(self, params, rows, key, step, *, branch_len, target_len):
        rule = dataclasses.replace(self.rule, branch_len=branch_len, target_len=target_len)
        return evaluate_lib.look(rule, rule.model(params), rows, key, step)


def _noise_of(look, rule):
    return {'gain_noise': look.gain_noise} if rule.needs_gain else {}


@contextlib.contextmanager
def _published(user, params, reference):
    """Lends weights to a user who plays with them."""
    if not hasattr(user, 'publish'):
        yield
        return
    user.publish(params, reference)
    try:
        yield
    finally:
        user.withdraw()


def seed_keys(seed: int, num_seeds: int) -> jax.Array:
    """Returns the run's key, or [S] keys of seeds seed, seed + 1, ... where several run side by side."""
    if num_seeds == 1:
        return jax.random.key(seed)
    return jax.vmap(jax.random.key)(jnp.arange(seed, seed + num_seeds))
