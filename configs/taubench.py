"""Retail: customer support in the spirit of tau-bench; the agent asks, looks things up by tools, then acts.

Run:       python launch/train.py --config=configs/taubench.py
Setting:   text environment with a scripted user, 128 rollouts a step, a small model from scratch.
Expected:  held-out success rises well above its value after the warm start.
The comparison: --config.advantage.estimator=grpo.
"""

from infopo_jax.config import base_config


def get_config():
    """Returns the retail run."""
    config = base_config()
    config.steps = 200

    config.env.name = 'retail'
    config.env.kind = 'hosted'
    config.env.level = 1

    config.batch.prompts = 16
    config.batch.group_size = 8

    config.model.dim = 96
    config.model.head_dim = 24
    config.model.mlp_dim = 256
    config.rollout.max_prompt_tokens = 160
    config.rollout.max_tokens = 400

    config.warmstart.steps = 600
    config.warmstart.batch = 64
    return config
