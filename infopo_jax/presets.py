"""What several files under configs/ set alike."""

from collections.abc import Callable

from ml_collections import config_dict

Setting = Callable[[config_dict.ConfigDict], None]  # edits


def choose(config: config_dict.ConfigDict, setting: str, **settings: Setting) -> config_dict.ConfigDict:
    """Returns the config as one of ``settings`` edits it; ``--config=configs/NAME.py:SETTING`` says which.

    Where a command line does not, ``setting_for`` of the file may: see launch/command_line.py.

    Raises:
        ValueError: there is no such setting.
    """
    if setting not in settings:
        raise ValueError(f'--config=...py:{setting}: the setting must be one of {", ".join(settings)}')
    settings[setting](config)
    return config


def paper(config: config_dict.ConfigDict) -> None:
    """Sets what the released code (arXiv 2603.00656) has in common on its three benchmarks, for a pretrained model.

    The model's dtype and recomputation, microbatches, slots and chunks are ours, so that a 7B model fits.
    """
    config.batch.group_size = 5
    config.info.std_floor = 0.0
    config.info.baseline = 'group'
    config.info.norm = 'token'
    config.info.downscale = True
    config.info.mask_errors = False
    config.loss.kl_coef = 0.0
    config.loss.entropy_coef = 0.001
    config.loss.dual_clip = 3.0
    config.warmstart.steps = 0
    config.eval.episodes = 200

    config.model.dtype = 'bfloat16'
    config.model.remat = True
    config.updates.microbatches = 0  # of 8 rollouts, or as many as the mesh divides rows in
    config.rollout.max_action_tokens = 1024
    config.rollout.slots = 32
    config.rollout.chunk = 32


def pretrained(config: config_dict.ConfigDict) -> None:
    """Sets what ``paper`` does, and room for a checkpoint's own words in an embedded world."""
    paper(config)
    config.batch.prompts = 16
    config.rollout.max_prompt_tokens = 2048
    config.rollout.max_feedback_tokens = 512
    config.rollout.max_tokens = 2048 + 6144
    config.optim.lr = 1e-6
