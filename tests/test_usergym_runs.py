"""Runs in our own gyms by the config that ships."""

import pathlib
import runpy

import pytest
from three_updates import check_three_updates
from usergym_play import GYMS, LEVELS

from infopo_jax import config as config_lib

ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_default_config_trains(tmp_path):
    check_three_updates('usergym', tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('level', LEVELS)
@pytest.mark.parametrize('gym', GYMS)
def test_every_gym_trains(tmp_path, gym, level):
    check_three_updates('usergym', tmp_path, env__gym=gym, env__level=level)


def test_functiongym_itself_trains(tmp_path):
    pytest.importorskip('functiongym', reason='pip install -e UserRL/gyms/FunctionGym')
    sizes = {'max_prompt_tokens': 320, 'max_action_tokens': 16, 'max_feedback_tokens': 48, 'max_tokens': 640}
    sizes = {f'rollout__{name}': size for name, size in sizes.items()}
    check_three_updates('usergym', tmp_path, env__gym='FunctionGym', env__level=None, env__turn_limit=4, **sizes)


def test_paper_setting_is_the_papers():
    config = runpy.run_path(str(ROOT / 'configs' / 'usergym.py'))['get_config']('paper')
    config_lib.validate(config)
    assert (config.batch.prompts, config.batch.group_size, config.optim.lr) == (64, 5, 3e-7)
    assert (config.env.turn_limit, config.info.weight, config.info.gate_temperature) == (16, 0.5, 0.5 / 3)
    assert (config.info.baseline, config.info.norm, config.info.std_floor) == ('group', 'token', 0.0)
    assert config.info.downscale and not config.info.mask_errors  # as in the released code
    with pytest.raises(ValueError, match='the setting must be one of small, pretrained, paper'):
        runpy.run_path(str(ROOT / 'configs' / 'usergym.py'))['get_config']('large')
