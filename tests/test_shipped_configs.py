"""The configs that ship train: three updates of each with a tiny model (test_usergym_runs.py has those of the gyms)."""

import sys

import pytest
from three_updates import check_three_updates

LINUX = pytest.mark.skipif(sys.platform != 'linux', reason='the sandbox is for Linux')
RUNS = {
    'sokoban': ('sokoban', {'env__turn_limit': 2}),  # each turn is compiled for itself
    'sokoban_text': (
        'sokoban',
        {
            'env__name': 'sokoban_text', 'env__kind': 'hosted', 'rollout__max_prompt_tokens': 160,
            'rollout__max_action_tokens': 12, 'rollout__max_feedback_tokens': 64, 'rollout__max_tokens': 512,
        },
    ),
    'taubench': ('taubench', {}),
    'webshop': ('webshop', {}),
    'colbench': ('colbench', {}),
}  # fmt: skip


@pytest.mark.parametrize('run', [pytest.param(run, marks=LINUX if run == 'colbench' else ()) for run in RUNS])
def test_config_trains(run, tmp_path):
    name, fields = RUNS[run]
    check_three_updates(name, tmp_path, **fields)
