"""ColBench: an agent asks a collaborator what his function should do, then writes it; its code runs in a sandbox.

Run:       python launch/train.py --config=configs/colbench.py
Setting:   generated functions with three hidden values (level 2 of 3), a scripted collaborator, 8 turns, 128 rollouts a
           step, a small model from random weights. Linux only: model-written code runs behind walls (envs/sandbox.py).
Floors:    do nothing 0; random legal actions 0.07 of the calls right, success 0. A script that asks gets 1.
The comparison: --config.advantage.estimator=grpo.

A pretrained model on the same functions (setting 'pretrained'): --config.model.path=Qwen/Qwen2.5-7B-Instruct

The paper's setting ('paper', which --config.env.data calls for), on the published data (CC-BY-NC, not shipped; a folder
with train.jsonl and test.jsonl) with a language model as the collaborator::

    python launch/train.py --config=configs/colbench.py:paper --config.model.path=Qwen/Qwen2.5-7B-Instruct \
        --config.env.data=backend_tasks --config.user.name=openai --config.user.model=gpt-4o-mini
"""

from infopo_jax import presets
from infopo_jax.config import base_config


def get_config(setting: str = 'small'):
    """Returns the run: 'small' from random weights or 'pretrained', or 'paper', published data and pretrained."""
    config = base_config()
    config.env.name = 'colbench'
    config.env.kind = 'hosted'
    config.info.weight = 0.3  # the paper's
    return presets.choose(config, setting, small=_small, pretrained=_pretrained, paper=_paper)


def setting_for(fields):
    """Returns the setting that fields on the command line call for where it names none; None: the default."""
    if 'env.data' in fields:
        return 'paper'
    return 'pretrained' if 'model.path' in fields else None


def _small(config):
    config.steps = 200
    config.env.level = 2
    config.env.turn_limit = 8

    config.batch.prompts = 16
    config.batch.group_size = 8

    config.model.max_vocab = 640
    config.model.rope_theta = 300.0  # contexts of 150 tokens
    config.rollout.max_prompt_tokens = 32
    config.rollout.max_action_tokens = 12
    config.rollout.max_feedback_tokens = 24
    config.rollout.max_tokens = 160

    config.optim.lr = 1e-3
    config.warmstart.steps = 600
    config.warmstart.batch = 64
    config.warmstart.lr = 5e-3
    config.eval.interval = 25


def _pretrained(config):
    presets.pretrained(config)
    config.env.level = 2
    config.env.brief = False


def _paper(config):
    presets.paper(config)
    config.env.turn_limit = 10

    config.batch.prompts = 64
    config.updates.minibatches = 4  # of 16 prompts
    config.rollout.max_prompt_tokens = 2048
    config.rollout.max_feedback_tokens = 256
    config.rollout.max_tokens = 2048 + 8192

    config.info.gate_temperature = 0.5
    config.optim.lr = 3e-7
