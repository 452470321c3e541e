"""WebShop in the embedded shop: search, read, choose options, buy; the published reward in [0, 1] at the purchase.

Run:       python launch/train.py --config=configs/webshop.py
Setting:   text environment, 300 generated products, wishes of one attribute, one option and a price (env.level=1),
           9 turns, 64 rollouts a step, a small model from random weights. Held-out reward of random actions 0.11,
           of doing nothing 0, of an expert 1.0.
Expected:  see BENCHMARKS.md.
The comparison: --config.advantage.estimator=grpo. Wishes of twice as much: --config.env.level=2.
A customer who leaves things out until asked: --config.env.num_hidden=1.

The real shop (arXiv 2207.01206; 9 turns as in RAGEN) with a real model, against a server that WebShop's run_dev.sh
started, or without ``env.data`` in this process, where the package web_agent_site is installed::

    python launch/train.py --config=configs/webshop.py --config.env.name=webshop_server \
        --config.env.data=http://127.0.0.1:3000 --config.model.path=Qwen/Qwen2.5-7B-Instruct \
        --config.warmstart.steps=0 --config.batch.prompts=16 --config.batch.group_size=8 --config.optim.lr=1e-6 \
        --config.rollout.max_prompt_tokens=1024 --config.rollout.max_action_tokens=512 \
        --config.rollout.max_feedback_tokens=1024 --config.rollout.max_tokens=12288
"""

from infopo_jax.config import base_config


def get_config():
    """Returns the run in the embedded shop."""
    config = base_config()
    config.steps = 125

    config.env.name = 'webshop'
    config.env.kind = 'hosted'

    config.batch.prompts = 8
    config.batch.group_size = 8

    config.model.rope_theta = 500.0  # contexts of 250 tokens
    config.model.max_vocab = 640
    config.rollout.max_prompt_tokens = 96
    config.rollout.max_action_tokens = 12
    config.rollout.max_feedback_tokens = 64
    config.rollout.max_tokens = 384

    config.info.weight = 0.1
    config.optim.lr = 1e-3
    config.warmstart.steps = 400
    config.warmstart.batch = 64
    config.warmstart.lr = 5e-3
    config.eval.interval = 25
    return config
