"""Sokoban by RAGEN's rules: 6x6, one box, at most 5 moves a turn, 5 turns, 10 moves; each turn shows the new board.

Run:       python launch/train.py --config=configs/sokoban.py
Setting:   environment inside XLA, boards that at most 6 moves solve (env.level=2), 256 rollouts a step, a two-layer
           model from scratch. Held-out success of random moves 0.2, of a solver 1.0.
Expected:  see BENCHMARKS.md.
The comparison: --config.advantage.estimator=grpo. All that ten moves solve: --config.env.level=3.

With a real model the board is drawn as text, in RAGEN's setting (arXiv 2504.20073: Qwen2.5-0.5B, 8 prompts x 16
rollouts, 200 steps, clip 0.2 / 0.28, no KL; setting 'paper', which --config.model.path calls for)::

    python launch/train.py --config=configs/sokoban.py --config.model.path=Qwen/Qwen2.5-0.5B-Instruct
"""

from infopo_jax import presets
from infopo_jax.config import base_config


def get_config(setting: str = 'small'):
    """Returns the Sokoban run: 'small', inside XLA from random weights, or 'paper', as text and pretrained."""
    config = base_config()
    config.info.weight = 0.1  # a board that follows from the last one tells a good player little
    return presets.choose(config, setting, small=_small, paper=_paper)


def setting_for(fields):
    """Returns the setting that fields on the command line call for where it names none; None: the default."""
    return 'paper' if 'model.path' in fields else None


def _small(config):
    config.steps = 400

    config.env.name = 'sokoban'
    config.env.kind = 'jitted'
    config.env.level = 2
    # RAGEN's own rewards (reward='ragen') charge ten moves in vain more than saying nothing: -1.0 against -0.1 a turn.
    # With them this model had stopped moving after 15 steps and never solved a board again.
    config.env.reward = 'sparse'

    config.batch.prompts = 32
    config.batch.group_size = 8

    config.loss.kl_coef = 0.01
    config.optim.lr = 1e-3
    config.model.rope_theta = 100.0  # contexts of 80 tokens
    config.warmstart.steps = 600
    config.warmstart.lr = 5e-3


def _paper(config):
    presets.paper(config)
    config.env.name = 'sokoban_text'
    config.env.kind = 'hosted'
    config.env.level = 3
    config.env.reward = 'ragen'

    config.batch.prompts = 8
    config.batch.group_size = 16
    config.loss.clip_high = 0.28
    config.rollout.max_prompt_tokens = 512
    config.rollout.max_action_tokens = 400
    config.rollout.max_feedback_tokens = 128
    config.rollout.max_tokens = 3072
    config.optim.lr = 1e-6
