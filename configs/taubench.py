"""Retail: customer support in the spirit of tau-bench; the agent asks, looks things up by tools, then acts.

Run:       python launch/train.py --config=configs/taubench.py
Setting:   text environment with a scripted user, level 1, 128 rollouts a step, a small model from random weights.
Expected:  held-out success from about 0.04 after the warm start to 0.6 by step 100; see BENCHMARKS.md.
The comparison: --config.advantage.estimator=grpo.
"""

from infopo_jax.config import base_config


def get_config():
    """Returns the retail run."""
    config = base_config()
    config.steps = 250

    config.env.name = 'retail'
    config.env.kind = 'hosted'
    config.env.level = 1

    config.batch.prompts = 16
    config.batch.group_size = 8

    config.model.dim = 64
    config.model.num_layers = 2
    config.model.num_heads = 4
    config.model.num_kv_heads = 4
    config.model.head_dim = 16
    config.model.mlp_dim = 192
    config.model.rope_theta = 300.0  # contexts of 150 tokens
    config.rollout.max_prompt_tokens = 64
    config.rollout.max_action_tokens = 16
    config.rollout.max_feedback_tokens = 40
    config.rollout.max_tokens = 192

    config.info.weight = 0.1  # the paper's for tau2: larger ones are paid for talk that informs but does not serve
    config.optim.lr = 1e-3
    config.warmstart.steps = 400
    config.warmstart.batch = 64
    config.warmstart.lr = 3e-3
    config.eval.interval = 25
    return config
