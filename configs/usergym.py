"""UserGym: a user who hides what matters; by default our own intention gym, which needs no language model.

Run:       python launch/train.py --config=configs/usergym.py
Setting:   text environment, intention at level 1 (2 of 6 details matter, 4 turns), 128 rollouts a step, a small model
           from random weights. --config.env.gym=travel | turtle | telepathy | function | persuade | search are others;
           --config.env.level=2 and 3 are harder. The limits below fit them all.

A pretrained model in the same gyms (setting 'pretrained'): --config.model.path=Qwen/Qwen2.5-7B-Instruct
The paper's settings, for UserRL's gyms with a pretrained model and gpt-4o-mini as the user (arXiv 2603.00656; setting
'paper', which a gym of UserRL's calls for):

    git clone https://github.com/SalesforceAIResearch/UserRL && pip install -e UserRL/gyms/IntentionGym pyarrow
    python launch/train.py --config=configs/usergym.py:paper --config.model.path=Qwen/Qwen2.5-7B-Instruct \
      --config.env.gym=IntentionGym --config.env.data=UserRL/data/intention_multiturn \
      --config.user.name=openai --config.user.model=gpt-4o-mini
"""

from infopo_jax import presets
from infopo_jax.config import base_config


def get_config(setting: str = 'small'):
    """Returns the run: our gyms 'small' from random weights or 'pretrained', or 'paper', UserRL's and pretrained."""
    config = base_config()
    config.env.name = 'usergym'
    config.env.kind = 'hosted'
    config.info.weight = 0.5  # the paper's
    return presets.choose(config, setting, small=_small, pretrained=presets.pretrained, paper=_paper)


def setting_for(fields):
    """Returns the setting that fields on the command line call for where it names none; None: the default."""
    if fields.get('env.gym', '').endswith('Gym'):
        return 'paper'
    return 'pretrained' if 'model.path' in fields else None


def _small(config):
    config.steps = 200
    # The reward is the share of what was right: with 'sparse', six occasions are learnt one by one from few successes,
    # 0.2 after 150 steps.

    config.batch.prompts = 16
    config.batch.group_size = 8

    config.model.rope_theta = 300.0  # contexts of 40 to 180 tokens
    config.rollout.max_prompt_tokens = 128
    config.rollout.max_action_tokens = 16
    config.rollout.max_feedback_tokens = 24
    config.rollout.max_tokens = 256

    config.optim.lr = 1e-3
    config.warmstart.steps = 600
    config.warmstart.batch = 64
    config.warmstart.lr = 5e-3
    config.eval.interval = 25


def _paper(config):
    presets.paper(config)
    config.env.gym = 'IntentionGym'
    config.env.turn_limit = 16

    config.batch.prompts = 64
    config.updates.minibatches = 4  # of 16 prompts
    config.rollout.max_prompt_tokens = 1152
    config.rollout.max_feedback_tokens = 1024
    config.rollout.max_tokens = 1152 + 8192

    config.info.gate_temperature = 0.5 / 3.0  # 0.5 on the outcomes themselves, whose range is 3 in IntentionGym
    config.optim.lr = 3e-7
