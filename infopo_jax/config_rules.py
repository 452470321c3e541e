"""What the values of a config must satisfy, as tables over flat fields; ``config.validate`` applies them."""

import difflib
import math
from collections.abc import Iterator
from typing import Any

Fields = dict[str, Any]  # {'optim.lr': 3e-4, ...}

CHOICES: dict[str, tuple[str, ...]] = {
    'env.kind': ('jitted', 'hosted'),
    'model.dtype': ('float32', 'bfloat16'),
    'model.param_dtype': ('float32', 'bfloat16'),
    'rollout.cache_dtype': ('float32', 'bfloat16', 'int8'),
    'user.name': ('scripted', 'openai', 'policy'),
    'user.weights': ('current', 'frozen'),
    'chat.tool_format': ('auto', 'hermes', 'llama3', 'mistral', 'text'),
    'info.baseline': ('group', 'turn', 'none'),
    'info.norm': ('turn', 'token'),
    'info.kind': ('log_ratio', 'kl'),
    'advantage.estimator': ('infopo', 'grpo', 'info_only', 'raw_gain', 'shuffled_gain'),
    'loss.unit': ('token', 'turn'),
    'loss.kl': ('k3', 'k2', 'full'),
    'optim.decay': ('constant', 'cosine'),
}

# user -> its fields of config.user; users.knobs(name) are the same, but to ask for them imports JAX
USER_FIELDS: dict[str, tuple[str, ...]] = {
    'scripted': (),
    'openai': (
        'model', 'base_url', 'api_key_env', 'temperature', 'max_tokens', 'timeout', 'retries', 'patience',
        'concurrency', 'requests_per_minute', 'cache_dir', 'prompt_price', 'completion_price', 'send_seed',
    ),
    'policy': (
        'weights', 'path', 'temperature', 'max_tokens', 'max_prompt_tokens', 'concurrency', 'retries', 'patience',
    ),
}  # fmt: skip

# (interval, fields); a square bracket includes the bound, a round one does not. None as a value is never checked.
RANGES: tuple[tuple[str, str], ...] = (
    ('[0, 4294967295]', 'seed'),  # keys have 32 bits of it
    ('[0, inf]', 'steps profile info.horizon rollout.slots warmstart.steps eval.interval log.rollouts'),
    ('[0, inf]', 'eval.top_k updates.microbatches'),
    ('[1, inf]', 'num_seeds batch.prompts batch.group_size warmstart.batch eval.episodes log.interval'),
    ('[1, inf]', 'updates.epochs updates.minibatches updates.max_bad_updates checkpoint.interval'),
    ('[1, inf]', 'model.dim model.num_layers model.num_heads model.num_kv_heads model.head_dim model.mlp_dim'),
    ('[1, inf]', 'rollout.max_action_tokens rollout.max_feedback_tokens rollout.max_prompt_tokens rollout.max_tokens'),
    ('[1, inf]', 'rollout.max_bad_actions rollout.chunk env.turn_limit model.max_vocab'),
    ('[1, inf]', 'rollout.workers env.num_tasks env.num_products env.max_steps env.page_size'),
    ('[2, inf]', 'env.num_goals'),
    ('[-inf, inf]', 'env.success_at'),
    ('[-1, inf]', 'rollout.aside'),
    ('[0, inf]', 'rollout.retries lora.rank user.retries user.requests_per_minute'),
    ('[1, inf]', 'user.max_tokens user.max_prompt_tokens user.concurrency'),
    ('[0, inf)', 'user.temperature user.prompt_price user.completion_price'),
    ('[-1, inf]', 'mesh.data mesh.fsdp mesh.tensor'),
    ('[0, 1]', 'rollout.max_failed_fraction eval.min_p'),
    ('(0, 1]', 'eval.top_p'),
    ('[0, 1)', 'optim.b1 optim.b2'),
    ('(0, 1]', 'loss.clip_low'),
    ('[0, inf)', 'info.weight info.weight_decay info.std_floor loss.kl_coef loss.entropy_coef'),
    ('[0, inf)', 'updates.importance_cap optim.weight_decay optim.warmup_steps eval.temperature'),
    ('(0, inf)', 'rollout.temperature info.gate_temperature model.rope_theta model.norm_eps'),
    ('(0, inf)', 'optim.lr optim.eps warmstart.lr rollout.call_seconds lora.alpha user.timeout env.outcome_range'),
    ('(0, inf)', 'user.patience'),
    ('(0, inf]', 'loss.clip_high optim.clip_norm'),  # infinity switches the clip off
    ('(1, inf]', 'loss.dual_clip'),
)


def problems(fields: Fields, *, training: bool = True) -> list[str]:
    """Returns one line per value that breaks a rule: field, value, constraint.

    Args:
        fields: every field of ``base_config``, flat, of the declared types.
        training: False leaves out what only an update needs, where a run is merely looked at.
    """
    single = [*_bad_choices(fields), *_bad_ranges(fields)]
    updates = [_bad_batch, _bad_rest] if training else []
    together = (*updates, _bad_model, _bad_mesh, _bad_rollout, _bad_user)
    return single or [line for check in together for line in check(fields)]


def _line(fields: Fields, field: str, constraint: str) -> str:
    return f'config.{field} = {fields[field]!r}: {constraint}'


def _bad_choices(fields: Fields) -> Iterator[str]:
    for field, names in CHOICES.items():
        if fields[field] is not None and fields[field] not in names:
            nearest = difflib.get_close_matches(fields[field], names, n=1, cutoff=0.0)[0]
            yield _line(fields, field, f'did you mean {nearest!r}? One of {", ".join(names)}')


def _bad_ranges(fields: Fields) -> Iterator[str]:
    for interval, names in RANGES:
        low, high = (float(bound) for bound in interval[1:-1].split(','))
        for field in names.split():
            value = fields[field]
            if value is None:
                continue
            above = low <= value if interval[0] == '[' else low < value
            below = value <= high if interval[-1] == ']' else value < high
            if not (above and below):  # NaN is neither
                words = f'at least {low:g}' if interval[0] == '[' else f'above {low:g}'
                if math.isfinite(high):
                    words += f' and {"at most" if interval[-1] == "]" else "below"} {high:g}'
                yield _line(fields, field, f'must be {words}' + (' and finite' if interval.endswith('inf)') else ''))


def _bad_batch(fields: Fields) -> Iterator[str]:
    prompts, group = fields['batch.prompts'], fields['batch.group_size']
    minibatches, microbatches = fields['updates.minibatches'], fields['updates.microbatches']
    estimator, baseline = fields['advantage.estimator'], fields['info.baseline']
    one_will_do = estimator == 'raw_gain' or (estimator == 'info_only' and baseline != 'turn')
    if group < 2 and not one_will_do:
        yield _line(fields, 'batch.group_size', 'must be at least 2, rollouts are compared with their group')
    if prompts % minibatches:
        yield _line(
            fields,
            'updates.minibatches',
            f'must divide config.batch.prompts = {prompts}, a minibatch holds whole groups',
        )
    elif microbatches and (prompts // minibatches * group) % microbatches:
        rows = prompts // minibatches * group
        yield _line(
            fields,
            'updates.microbatches',
            f'must divide the {rows} rollouts of a minibatch (prompts / minibatches * group_size)',
        )


def _bad_model(fields: Fields) -> Iterator[str]:
    if fields['model.path'] is not None and fields['env.kind'] == 'jitted':
        yield _line(fields, 'model.path', "needs config.env.kind = 'hosted': others have their own words")
    heads = fields['model.num_heads']
    if heads % fields['model.num_kv_heads']:
        yield _line(fields, 'model.num_kv_heads', f'must divide config.model.num_heads = {heads}')
    if fields['model.head_dim'] % 2:
        yield _line(fields, 'model.head_dim', 'must be even, rotary embeddings turn pairs')


def _bad_mesh(fields: Fields) -> Iterator[str]:
    """What needs no devices to be seen; the rest is checked when the mesh is made."""
    axes = ('mesh.data', 'mesh.fsdp', 'mesh.tensor')
    filled = [axis for axis in axes if fields[axis] == -1]
    for axis in axes:
        if fields[axis] == 0:
            yield _line(fields, axis, 'must be at least 1, or -1 for what the other axes leave')
        elif axis in filled[1:]:
            yield _line(fields, axis, f'config.{filled[0]} is -1 already; one axis takes what the others leave')


def _bad_rollout(fields: Fields) -> Iterator[str]:
    if fields['env.kind'] == 'jitted':
        return
    if fields['num_seeds'] > 1:
        yield _line(fields, 'num_seeds', "must be 1 unless config.env.kind = 'jitted'")
    room = fields['rollout.max_tokens'] - fields['rollout.max_prompt_tokens']
    if room < fields['rollout.max_action_tokens']:
        yield _line(
            fields,
            'rollout.max_tokens',
            'must be at least max_prompt_tokens + max_action_tokens = '
            f'{fields["rollout.max_prompt_tokens"] + fields["rollout.max_action_tokens"]}',
        )


def _bad_user(fields: Fields) -> Iterator[str]:
    most = fields['rollout.call_seconds']
    for field in ('user.patience', 'user.timeout'):
        if fields[field] is not None and fields[field] >= most:
            yield _line(fields, field, f'must be below config.rollout.call_seconds = {most:g}, or raise that')
    model = fields['user.model']
    name = fields['user.name'] or ('scripted' if model is None else 'openai')
    for field, value in fields.items():
        section, _, knob = field.partition('.')
        if section == 'user' and knob not in ('name', *USER_FIELDS[name]) and value is not None:
            others = [repr(other) for other, knobs in USER_FIELDS.items() if knob in knobs]
            needed = ' and config.user.model' if others == ["'openai'"] and model is None else ''
            yield _line(
                fields, field, f'is for config.user.name = {" or ".join(others)}; set that{needed}, or leave it away'
            )
    if name == 'openai' and model is None:
        yield _line(fields, 'user.model', "must be the model's name at the endpoint for config.user.name = 'openai'")
    if name == 'policy' and fields['user.path'] is not None and fields['user.weights'] == 'current':
        yield _line(fields, 'user.weights', "must be 'frozen' or None: what config.user.path names does not train")


def _bad_rest(fields: Fields) -> Iterator[str]:
    updates = fields['steps'] * fields['updates.epochs'] * fields['updates.minibatches']
    if fields['optim.decay'] == 'cosine' and fields['optim.warmup_steps'] >= updates:
        yield _line(fields, 'optim.warmup_steps', f'must be below the {updates} updates of the run for a cosine decay')
    if fields['info.placeholder'] == '':
        yield _line(fields, 'info.placeholder', "must not be empty; None takes the environment's own")
