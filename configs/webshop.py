"""WebShop in the embedded shop: search, read, choose options, buy; the published reward in [0, 1] at the purchase.

Run:       python launch/train.py --config=configs/webshop.py
Setting:   text environment, 300 generated products, wishes of one attribute, one option and a price (env.level=1),
           9 turns, 64 rollouts a step, a small model from random weights. Held-out reward of random actions 0.11,
           of doing nothing 0, of an expert 1.0.
Expected:  see BENCHMARKS.md.
The comparison: --config.advantage.estimator=grpo. Wishes of twice as much: --config.env.level=2.
A customer who leaves things out until asked: --config.env.num_hidden=1.

A pretrained model in the same shop (setting 'pretrained'): --config.model.path=Qwen/Qwen2.5-7B-Instruct

The real shop (arXiv 2207.01206; 9 turns as in RAGEN; setting 'paper', which --config.env.name=webshop_server calls for)
against a server that WebShop's run_dev.sh started, or without ``env.data`` in this process, where the package
web_agent_site is installed::

    python launch/train.py --config=configs/webshop.py --config.env.name=webshop_server \
        --config.env.data=http://127.0.0.1:3000 --config.model.path=Qwen/Qwen2.5-7B-Instruct
"""

from infopo_jax import presets
from infopo_jax.config import base_config


def get_config(setting: str = 'small'):
    """Returns the run: the embedded shop 'small' from random weights or 'pretrained', or 'paper', the real shop."""
    config = base_config()
    config.env.name = 'webshop'
    config.env.kind = 'hosted'
    config.info.weight = 0.1
    return presets.choose(config, setting, small=_small, pretrained=presets.pretrained, paper=_paper)


def setting_for(fields):
    """Returns the setting that fields on the command line call for where it names none; None: the default."""
    if fields.get('env.name') == 'webshop_server':
        return 'paper'
    return 'pretrained' if 'model.path' in fields else None


def _small(config):
    config.steps = 125

    config.batch.prompts = 8
    config.batch.group_size = 8

    config.model.rope_theta = 500.0  # contexts of 250 tokens
    config.model.max_vocab = 640
    config.rollout.max_prompt_tokens = 96
    config.rollout.max_action_tokens = 12
    config.rollout.max_feedback_tokens = 64
    config.rollout.max_tokens = 384

    config.optim.lr = 1e-3
    config.warmstart.steps = 400
    config.warmstart.batch = 64
    config.warmstart.lr = 5e-3
    config.eval.interval = 25


def _paper(config):
    presets.pretrained(config)
    config.env.name = 'webshop_server'
    config.batch.group_size = 8

    config.rollout.max_prompt_tokens = 1024
    config.rollout.max_feedback_tokens = 1024
    config.rollout.max_tokens = 1024 + 11264
