"""The update: score, credit, clipped loss, and one guarded step of the optimizer.

With one update per batch the weights that sampled are the weights that are updated: the ratio is 1, and the gain rides
on the update's own forward pass. With several, or with microbatches, one scoring pass comes first and gives both the
gain and old_logp; with microbatches of one update and no gain (GRPO), nobody needs it.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from infopo_jax import info_gain, losses, metrics as metrics_lib, score, sharding, state as state_lib
from infopo_jax.state import TrainState
from infopo_jax.types import Credit, Signals, Turns, pytree_dataclass


@dataclasses.dataclass(frozen=True)
class UpdateRule:
    """The static part of an update: functions and scalars, no arrays."""

    graphdef: Any  # of the model
    optimizer: optax.GradientTransformation
    estimator: Any  # from estimators.get
    hyper: dict[str, Any]  # keyword arguments of the estimator
    needs_gain: bool  # False skips the counterfactual (GRPO)
    group_size: int
    placeholder: tuple[int, ...]
    horizon: int | str = 1
    gain_kind: str = 'log_ratio'
    mask_errors: bool = True
    temperature: float = 1.0
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    unit: str = 'token'
    kl: str = 'k3'
    kl_coef: float = 0.0
    entropy_coef: float = 0.0
    importance_cap: float = 0.0
    epochs: int = 1
    minibatches: int = 1
    microbatches: int = 1
    branch_len: int | None = None  # static bounds; see packing.pack
    target_len: int | None = None
    mesh: jax.sharding.Mesh | None = None  # of the update: its rows, and the state by the names in it

    base_graphdef: Any = None  # of the model without adapters, where only these train

    def model(self, weights: Any) -> Any:
        """Returns the model of the whole policy's parameters, to be run over rows."""
        return sharding.merge(self.graphdef, weights, self.mesh)

    def reference_model(self, reference: Any, frozen: Any) -> Any:
        """Returns the reference, to be run over rows: with adapters it is their base, and there is no copy."""
        if frozen is None:
            return sharding.merge(self.graphdef, reference, self.mesh)
        return sharding.merge(self.base_graphdef, frozen, self.mesh)

    @property
    def single(self) -> bool:
        """Whether a batch is used by one forward and backward pass only, on which the gain can ride.

        With microbatches it cannot: credit compares the rollouts of a group, or of the batch; a microbatch cuts both.
        """
        return self.epochs == self.minibatches == self.microbatches == 1

    @property
    def needs_scores(self) -> bool:
        """Whether credit or ratios need the scores of a whole batch before its update."""
        return self.needs_gain or self.epochs * self.minibatches > 1


@pytree_dataclass
class Batch:
    """Turns with what an update needs beside them."""

    turns: Turns
    advantage: jax.Array | None = None  # [N, L]; None: comes from the update's own forward pass
    loss_mask: jax.Array | None = None  # [N, L] bool, the estimator's; None as above
    old_logp: jax.Array | None = None  # [N, L]; None: the policy's own, as are importance weights
    weight: jax.Array | None = None  # [N, L] importance weights


def update(
    rule: UpdateRule, state: TrainState, turns: Turns, key: jax.Array
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Learns from one batch of rollouts.

    Args:
        rule: functions and scalars.
        state: before the step; donate it.
        turns: N rollouts, whole groups.
        key: for estimators that draw (the placebo) and for the order of minibatches.

    Returns:
        the state after the step and scalar metrics. An update whose loss or gradient is not finite leaves parameters
        and optimizer as they were and counts in ``state.bad_updates``.
    """
    estimate_key, order_key = jax.random.split(key)
    turns = sharding.rows(turns, rule.mesh)
    if rule.single:
        batch = Batch(turns)
        state, metrics = _apply(rule, state, batch, estimate_key)
    else:
        if rule.needs_scores:
            batch, metrics = _score_batch(rule, rule.model(state.weights), turns, estimate_key, state.step)
        else:
            batch, metrics = _credit_batch(rule, turns, estimate_key, state.step)
        state, more = _passes(rule, state, batch, order_key)
        metrics = metrics | more
    metrics = metrics | metrics_lib.rollout_metrics(turns)
    return dataclasses.replace(state, step=state.step + 1), metrics


def credit(rule: UpdateRule, scores: score.Scores | None, turns: Turns, key: jax.Array, step: jax.Array):
    """Turns scores into credit.

    Args:
        rule: functions and scalars.
        scores: of the turns; None where the rule needs no gain.
        turns: N rollouts, whole groups.
        key: for estimators that draw.
        step: training steps done.

    Returns:
        Credit, gain [N, T], gain_mask [N, T] and scalar metrics.
    """
    num_turns = turns.turn_reward.shape[1]
    shape = turns.turn_reward.shape
    errors = jnp.zeros(shape, bool) if turns.turn_error is None else turns.turn_error
    metrics = {}
    if rule.needs_gain:
        gain, exists = info_gain.info_gain(
            scores.token_gain,
            turns.turn,
            turns.action_mask & turns.valid[:, None],
            turns.feedback_mask & turns.valid[:, None],
            num_turns=num_turns,
        )
        metrics = metrics_lib.gain_metrics(gain, exists, errors)
        gain_mask = exists & ~errors if rule.mask_errors else exists
        gain = jnp.where(gain_mask, gain, 0.0)
    else:
        gain, gain_mask = jnp.zeros(shape, jnp.float32), jnp.zeros(shape, bool)
    signals = Signals(
        turn=turns.turn,
        action_mask=turns.action_mask,
        outcome=turns.outcome,
        turn_reward=turns.turn_reward,
        valid=turns.valid,
        num_turns=turns.num_turns,
        gain=gain,
        gain_mask=gain_mask,
        update=step,
    )
    out = rule.estimator(jax.lax.stop_gradient(signals), group_size=rule.group_size, key=key, **rule.hyper)
    measured = {name: x for name, x in out.metrics.items() if rule.needs_gain or not name.startswith('gain')}
    return jax.lax.stop_gradient(out), gain, gain_mask, metrics | measured


def score_turns(rule: UpdateRule, model: Any, turns: Turns, *, paired: bool, reference: Any = None) -> score.Scores:
    """Scores a batch as the rule says, with or without the counterfactual."""
    return score.score(
        model,
        turns,
        jnp.asarray(rule.placeholder, jnp.int32) if paired else None,
        horizon=rule.horizon,
        temperature=rule.temperature,
        kind=rule.gain_kind,
        branch_len=rule.branch_len if paired else None,
        target_len=rule.target_len,
        reference=reference,
        mesh=rule.mesh,
    )


def _score_batch(rule, model, turns, key, step):
    """One pass with the sampling weights: gains, credit and old_logp of a batch that is used several times."""

    def part(turns):
        return jax.lax.stop_gradient(score_turns(rule, model, turns, paired=rule.needs_gain))

    k = rule.minibatches * rule.microbatches  # no more rows at once than the update holds
    if k == 1:
        scores = part(turns)
    else:
        scores = jax.lax.map(part, _split_rows(turns, k, rule.mesh))
        scores = sharding.rows(jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), scores), rule.mesh)
    out, _, _, metrics = credit(rule, scores, turns, key, step)
    metrics = metrics | {'sampler_gap': metrics_lib.sampler_gap(scores.logp, turns.sampled_logp, out.loss_mask)}
    weight = None
    if rule.importance_cap:
        weight = losses.importance_weight(scores.logp, turns.sampled_logp, out.loss_mask, cap=rule.importance_cap)
    return Batch(turns, advantage=out.advantage, loss_mask=out.loss_mask, old_logp=scores.logp, weight=weight), metrics


def _credit_batch(rule, turns, key, step):
    """Credit that no score decides; the update's own passes give old_logp, as the policy is the one that sampled."""
    out, _, _, metrics = credit(rule, None, turns, key, step)
    return Batch(turns, advantage=out.advantage, loss_mask=out.loss_mask), metrics


def _passes(rule, state, batch, key):
    """Runs epochs over shuffled minibatches of whole groups."""
    groups = batch.turns.outcome.shape[0] // rule.group_size

    def one(state, order):
        rows = (order[:, None] * rule.group_size + jnp.arange(rule.group_size)).reshape(-1)
        minibatch = jax.tree.map(lambda a: a[rows], batch)
        return _apply(rule, state, sharding.rows(minibatch, rule.mesh), key)

    orders = jax.vmap(lambda k: jax.random.permutation(k, groups))(jax.random.split(key, rule.epochs))
    orders = orders.reshape(rule.epochs * rule.minibatches, groups // rule.minibatches)
    state, metrics = jax.lax.scan(one, state, orders)
    by_update = {name: jnp.mean(metrics[name]) for name in ('loss', 'policy_loss', 'grad_norm')}
    counts = {'skipped': jnp.sum(metrics['skipped']), 'bad_updates': metrics['bad_updates'][-1]}
    return state, _over_parts(metrics) | by_update | counts


def _over_parts(metrics):
    """Returns metrics of all parts of a batch, each [K]: means over tokens as of one part, maxima as maxima."""
    tokens = metrics['loss_tokens']
    share = tokens / jnp.maximum(jnp.sum(tokens), 1)
    whole = {name: jnp.sum(jnp.where(tokens > 0, share * values, 0)) for name, values in metrics.items()}
    return whole | {'ratio_max': jnp.max(metrics['ratio_max']), 'loss_tokens': jnp.sum(tokens)}


def _split_rows(tree, num_parts, mesh):
    """Returns the rows [N, ...] in parts [num_parts, N / num_parts, ...], each of them over the whole mesh."""
    parts = jax.tree.map(lambda a: a.reshape(num_parts, a.shape[0] // num_parts, *a.shape[1:]), tree)
    return sharding.rows(parts, mesh, axis=1)


def _apply(rule, state, batch, key):
    """Takes one optimizer step on a (mini)batch, in microbatches, unless something is not finite."""
    # Microbatches divide by the whole minibatch's weight, so that their sum is the large batch's loss.
    denominator = None if batch.loss_mask is None else _denominator(_unit_weight(rule, batch.turns, batch.loss_mask))
    grad_fn = jax.grad(functools.partial(_loss, rule), has_aux=True)

    def part(micro):
        grads, metrics = grad_fn(state.params, state.frozen, state.reference, micro, denominator, key, state.step)
        return sharding.by_name(grads, rule.mesh), metrics

    k = rule.microbatches
    if k == 1:
        grads, metrics = part(batch)
    else:
        micros = _split_rows(batch, k, rule.mesh)
        zeros = jax.tree.map(jnp.zeros_like, state.params)

        def add(total, item):
            grads, metrics = part(item)
            return jax.tree.map(jnp.add, total, grads), metrics

        grads, metrics = jax.lax.scan(add, zeros, micros)
        metrics = _over_parts(metrics) | {name: jnp.sum(metrics[name]) for name in ('loss', 'policy_loss')}
    return _guarded_step(rule, state, grads, metrics)


def _unit_weight(rule, turns, mask):
    """Returns [N, L] what a token weighs in the loss."""
    return losses.token_weight(turns.turn, mask, unit=rule.unit, num_turns=turns.turn_reward.shape[1])


def _denominator(unit):
    return jnp.maximum(jnp.sum(unit), 1.0)


def _guarded_step(rule, state, grads, metrics):
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm) & jnp.isfinite(metrics['loss'])
    updates, opt_state = rule.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)

    def keep(new, old):
        return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

    bad = jnp.where(finite, 0, state.bad_updates + 1)
    state = dataclasses.replace(
        state, params=keep(params, state.params), opt_state=keep(opt_state, state.opt_state), bad_updates=bad
    )
    metrics = metrics | {'grad_norm': norm, 'skipped': 1.0 - finite, 'bad_updates': bad}
    return sharding.by_name(state, rule.mesh), metrics


def _loss(rule, params, frozen, reference, batch, denominator, key, step):
    """Returns the loss of a microbatch, its share of the whole batch's, and metrics."""
    model = rule.model(state_lib.join(params, frozen))
    ref_model = rule.reference_model(reference, frozen) if rule.kl_coef else None
    turns = batch.turns
    fused = batch.advantage is None
    scores = score_turns(rule, model, turns, paired=fused and rule.needs_gain, reference=ref_model)
    metrics, advantage, mask, old_logp, importance = (
        {}, batch.advantage, batch.loss_mask, batch.old_logp, batch.weight
    )  # fmt: skip
    if fused:
        out, _, _, metrics = credit(rule, scores, turns, key, step)
        advantage, mask = out.advantage, out.loss_mask
    if old_logp is None:
        old_logp = jax.lax.stop_gradient(scores.logp)
        metrics = metrics | {'sampler_gap': metrics_lib.sampler_gap(old_logp, turns.sampled_logp, mask)}
        if rule.importance_cap:
            importance = losses.importance_weight(old_logp, turns.sampled_logp, mask, cap=rule.importance_cap)
    unit = _unit_weight(rule, turns, mask)
    denominator = _denominator(unit) if fused else denominator
    policy_loss, clip = losses.clipped_policy_loss(
        scores.logp, old_logp, advantage, mask,
        clip_low=rule.clip_low, clip_high=rule.clip_high, dual_clip=rule.dual_clip,
        denominator=denominator, weight=unit if importance is None else unit * importance,
    )  # fmt: skip
    entropy = losses.entropy_bonus(scores.entropy, mask, denominator=denominator, weight=unit)
    loss = policy_loss - rule.entropy_coef * entropy
    if rule.kl_coef:
        kl = losses.kl_penalty(
            scores.logp, scores.ref_logp, mask,
            kind=rule.kl, denominator=denominator, weight=unit, full_kl=scores.ref_kl,
        )  # fmt: skip
        loss = loss + rule.kl_coef * kl
        metrics = metrics | {
            'kl': losses.kl_penalty(scores.logp, scores.ref_logp, mask, kind=rule.kl, full_kl=scores.ref_kl),
            'kl_k1': losses.masked_mean(scores.logp - scores.ref_logp, mask),
        }
    metrics = metrics | clip | {
        'loss': loss, 'policy_loss': policy_loss, 'entropy': losses.masked_mean(scores.entropy, mask),
        'loss_tokens': jnp.sum(mask, dtype=jnp.float32),
    }  # fmt: skip
    return loss, jax.lax.stop_gradient(metrics)


__all__ = ['Batch', 'Credit', 'UpdateRule', 'credit', 'score_turns', 'update']
