"""Worlds that come from elsewhere, three updates each by the command that a user types.

tau2-bench needs TAU2_PYTHON and TAU2_DATA_DIR, see envs/tau2.py; UserRL's FunctionGym is in test_usergym_runs.py.
"""

import json
import os
import pathlib
import runpy
import shlex
import sys

import pytest
from checkpoints import save_checkpoint
from test_gymnasium_env import Door
from test_webshop_server import address  # noqa: F401, a fixture
from three_updates import check_rows

from infopo_jax import envs, runtime
from infopo_jax.envs import remote, tau2
from infopo_jax.envs.tools import render

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'launch'))

import command_line  # noqa: E402

SIZES = """
    --config.steps=3 --config.batch.prompts=2 --config.batch.group_size=2 --config.rollout.slots=0
    --config.eval.interval=0 --config.eval.episodes=2 --config.log.rollouts=4 --config.log.tensorboard=False
    --config.model.dtype=float32
"""
TINY = '--config.model.dim=32 --config.model.num_layers=1 --config.model.mlp_dim=32 --config.warmstart.batch=16'


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """Runs a command of launch/train.py; returns the rows of metrics, and all that environments answered."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(runtime, 'silence', lambda: None)
    monkeypatch.setattr(runtime, 'enable_compilation_cache', lambda: None)
    main = runpy.run_path('launch/train.py')['main']

    def run(command):
        argv = ['launch/train.py', *shlex.split(command), *shlex.split(SIZES), f'--workdir={tmp_path}']
        assert command_line.run(main, argv, usage='') == 0
        rollouts = [json.loads(line) for line in (tmp_path / 'rollouts.jsonl').read_text().splitlines()]
        return check_rows(tmp_path), {turn['feedback'] for rollout in rollouts for turn in rollout['turns']}

    return run


def test_gymnasium_trains_from_scratch(launch):
    made = len(Door.made)
    rows, answers = launch(
        f'--config=configs/taubench.py --config.env.name=gymnasium --config.env.gym={Door.__module__}:Door '
        "--config.env.actions='turn=turn {way}; knock=knock' --config.env.prompt='Open it: knock or turn left.' "
        f'--config.env.turn_limit=3 {TINY} --config.warmstart.steps=50'
    )
    played = [door for door in Door.made[made:] if door.heard]
    assert len(played) > 4 and all(door.closed for door in played)
    assert {'You knock.'} <= answers and rows[-1]['turns'] > 1


def test_webshop_server_trains_a_checkpoint(launch, address, tmp_path_factory):  # noqa: F811
    env = envs.make('webshop_server', data=address, num_goals=600)
    says = ['search[red shirt]', 'click[b001]', 'click[red]', 'click[buy now]']
    model = save_checkpoint(tmp_path_factory.mktemp('model'), env, says=says, coarse=True)
    rows, answers = launch(
        f'--config=configs/webshop.py --config.env.name=webshop_server --config.env.data={address} '
        f'--config.env.num_goals=600 --config.model.path={model} --config.env.turn_limit=8 '
        '--config.rollout.max_bad_actions=8 --config.rollout.max_prompt_tokens=160 --config.rollout.max_tokens=512 '
        '--config.rollout.max_action_tokens=4 --config.rollout.max_feedback_tokens=64'
    )
    assert rows[-1]['turns'] > 2 and any('[SEP] B001 [SEP] Red shirt' in answer for answer in answers)


@pytest.fixture(scope='module')
def telecom_model(tmp_path_factory):
    """Returns a model that calls tools; skips unless the real package and its data are there."""
    if not os.environ.get('TAU2_PYTHON') or not os.environ.get('TAU2_DATA_DIR'):
        pytest.skip(f'TAU2_PYTHON or TAU2_DATA_DIR is not set. {tau2._HOW}')
    env = tau2.Tau2('telecom', solo=True)
    try:
        env.tasks('train')
    except ValueError as error:
        pytest.skip(str(error))
    says = [render('check_status_bar', {}), render('done', {})]
    yield save_checkpoint(tmp_path_factory.mktemp('model'), env, says=says, coarse=True)
    remote.close_all()


def test_telecom_solo_trains_by_flags_alone(launch, telecom_model):
    rows, answers = launch(
        '--config=configs/taubench.py --config.env.name=tau2 --config.env.domain=telecom --config.env.solo=True '
        f'--config.model.path={telecom_model} --config.env.turn_limit=3 --config.rollout.max_prompt_tokens=320 '
        '--config.rollout.max_action_tokens=4 --config.rollout.max_feedback_tokens=32 --config.rollout.max_tokens=384'
    )
    assert rows[-1]['end_done'] > 0 and any('Airplane Mode' in answer for answer in answers)
