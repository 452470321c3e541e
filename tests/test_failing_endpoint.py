"""A whole run against an endpoint of whose answers a third are failures: nothing is lost, all is accounted for."""

import random
import re

import pytest

pytest.importorskip('httpx', reason="the openai user needs httpx: pip install 'infopo_jax[users]'")

from endpoint import Endpoint

from infopo_jax import config as config_lib, train
from infopo_jax.logger import read_jsonl
from infopo_jax.users import limits

FAILURES = (
    (429, {'Retry-After': '0.01'}, '{"error": "slow down"}'),
    (500, {}, 'oops'),
    (200, {}, '{"choices": [{"mess'),
    (200, {}, '{"choices": []}'),
    'DROP',
)
PROMPTS, GROUP, EPISODES = 4, 4, 8


class Unsteady:
    """Answers two requests of three, by their number; remembers how many it failed."""

    def __init__(self):
        self.failed = 0

    def __call__(self, number, request):
        rng = random.Random(number)
        if rng.random() >= 1 / 3:
            return 'order_17, I think.'
        self.failed += 1
        return rng.choice(FAILURES)


def make_config(url):
    config = config_lib.base_config()
    config.update_from_flattened_dict({
        'steps': 3, 'env.name': 'retail', 'env.kind': 'hosted', 'env.level': 1, 'batch.prompts': PROMPTS,
        'batch.group_size': GROUP, 'model.dim': 16, 'model.num_layers': 1, 'model.num_heads': 2,
        'model.num_kv_heads': 1, 'model.head_dim': 8, 'model.mlp_dim': 16, 'warmstart.steps': 40,
        'warmstart.batch': 16, 'warmstart.lr': 1e-2, 'eval.episodes': EPISODES, 'eval.interval': 0, 'log.interval': 2,
        'log.tensorboard': False, 'log.rollouts': 2, 'rollout.max_prompt_tokens': 100, 'rollout.max_tokens': 200,
        'rollout.max_action_tokens': 8, 'rollout.max_feedback_tokens': 12, 'rollout.workers': 8,
        'rollout.max_failed_fraction': 1.0, 'user.name': 'openai', 'user.model': 'tiny', 'user.base_url': url,
        'user.api_key_env': '', 'user.retries': 1, 'user.timeout': 5.0,
    })  # fmt: skip
    config_lib.validate(config)
    return config


def test_a_run_with_a_third_of_all_calls_failing_accounts_for_every_rollout(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(limits, 'BACKOFF', 0.01)
    plan = Unsteady()
    with Endpoint(plan) as endpoint:
        train.main(make_config(endpoint.url), str(tmp_path))
    rows = read_jsonl(tmp_path / 'metrics.jsonl')
    assert [(row['step'], row['phase'][0]) for row in rows] == [(0, 'e'), (1, 't'), (2, 't'), (3, 't'), (3, 'e')]
    for row in rows:
        size = EPISODES if row['phase'] == 'eval' else PROMPTS * GROUP
        ends = {name: round(share * size) for name, share in row.items() if name.startswith('end_')}
        assert sum(ends.values()) == size
        assert row['masked'] == round(row['failed'] * size) == ends['end_user_error'] and ends['end_env_error'] == 0
        assert row.get('skipped', 0) == 0

    counts = rows[-1]['time']
    assert counts['user_requests'] == len(endpoint.requests) > 60
    assert counts['user_retries'] + counts['user_failed_calls'] == plan.failed > 20
    retried, masked = (sum(row[name] for row in rows) for name in ('retried', 'masked'))
    assert retried + masked == counts['user_failed_calls'] and retried > masked > 0
    told = capsys.readouterr().out
    assert [sum(map(int, re.findall(rf'{name} (\d+)', told))) for name in ('retried', 'masked')] == [retried, masked]
