"""Customer support in the spirit of tau-bench: the agent asks, looks things up by tools, then acts.

Run:       python launch/train.py --config=configs/taubench.py
Setting:   retail, our own world, level 1: a scripted user, 128 rollouts a step, a small model from random weights.
Expected:  held-out success from about 0.09 after the warm start to 0.95 by step 125; see BENCHMARKS.md.
The comparison: --config.advantage.estimator=grpo.

A pretrained model in the same world (setting 'pretrained', which --config.model.path calls for)::

    python launch/train.py --config=configs/taubench.py --config.model.path=Qwen/Qwen2.5-7B-Instruct

The paper's settings (arXiv 2603.00656), for a pretrained model and the real tau2-bench (setting 'paper', which
--config.env.name=tau2 calls for); telecom-solo needs no language-model user::

    python launch/train.py --config=configs/taubench.py:paper --config.model.path=Qwen/Qwen2.5-7B-Instruct \
        --config.env.domain=telecom --config.env.solo=True --config.mesh.data=1 --config.mesh.fsdp=-1
    python launch/train.py --config=configs/taubench.py:paper --config.model.path=Qwen/Qwen2.5-7B-Instruct \
        --config.env.domain=retail --config.user.name=openai --config.user.model=gpt-4o-mini
"""

from infopo_jax import presets
from infopo_jax.config import base_config


def get_config(setting: str = 'small'):
    """Returns the run: retail 'small' from random weights or 'pretrained', or 'paper', tau2-bench and pretrained."""
    config = base_config()
    config.env.name = 'retail'
    config.env.kind = 'hosted'
    config.info.weight = 0.1  # the paper's for tau2: larger ones are paid for talk that informs but does not serve
    return presets.choose(config, setting, small=_small, pretrained=_pretrained, paper=_paper)


def setting_for(fields):
    """Returns the setting that fields on the command line call for where it names none; None: the default."""
    if fields.get('env.name') == 'tau2':
        return 'paper'
    return 'pretrained' if 'model.path' in fields else None


def _small(config):
    config.steps = 150

    config.batch.prompts = 16
    config.batch.group_size = 8

    config.model.rope_theta = 300.0  # contexts of 150 tokens
    config.rollout.max_prompt_tokens = 64
    config.rollout.max_action_tokens = 16
    config.rollout.max_feedback_tokens = 40
    config.rollout.max_tokens = 192

    config.optim.lr = 1e-3
    config.warmstart.steps = 300
    config.warmstart.batch = 64
    config.warmstart.lr = 5e-3
    config.eval.interval = 25


def _pretrained(config):
    presets.pretrained(config)
    config.env.brief = False


def _paper(config):
    presets.paper(config)
    config.env.name = 'tau2'  # telecom, solo, unless env.domain and user.model say otherwise

    config.batch.prompts = 32
    config.updates.minibatches = 2  # of 16 prompts
    config.rollout.max_prompt_tokens = 12288  # telecom-solo takes some 10,000 of Qwen's
    config.rollout.max_feedback_tokens = 4096
    config.rollout.max_tokens = 12288 + 16384

    config.info.gate_temperature = 0.05
    config.optim.lr = 1e-6
