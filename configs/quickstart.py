"""Intent: a user with four slots, three of them hidden; the agent learns to ask for them, then to book.

Run:       python launch/train.py --config=configs/quickstart.py
Setting:   environment inside XLA, 256 rollouts a step, a two-layer model from scratch, sparse reward.
Expected:  held-out success from about 0.02 after the warm start to above 0.9; see BENCHMARKS.md.
Five runs in one program: --config.num_seeds=5. The comparison: --config.advantage.estimator=grpo.
"""

from infopo_jax.config import base_config


def get_config():
    """Returns the quickstart run."""
    config = base_config()
    config.steps = 180

    config.env.name = 'intent'
    config.env.kind = 'jitted'

    config.batch.prompts = 32
    config.batch.group_size = 8

    config.info.weight = 0.5
    config.info.baseline = 'turn'

    config.loss.kl_coef = 0.01
    config.optim.lr = 1e-3
    config.model.rope_theta = 100.0  # contexts of 60 tokens
    config.warmstart.steps = 600
    config.warmstart.lr = 5e-3
    return config
