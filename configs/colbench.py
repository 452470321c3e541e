"""ColBench: an agent asks a collaborator what his function should do, then writes it; its code runs in a sandbox.

Run:       python launch/train.py --config=configs/colbench.py
Setting:   generated functions with three hidden values (level 2 of 3), a scripted collaborator, 8 turns, 128 rollouts a
           step, a small model from random weights. Linux only: model-written code runs behind walls (envs/sandbox.py).
Floors:    do nothing 0; random legal actions 0.07 of the calls right, success 0. A script that asks gets 1.
The comparison: --config.advantage.estimator=grpo.

The paper's setting, on the published data (CC-BY-NC, not shipped; a folder with train.jsonl and test.jsonl) with a
language model as the collaborator: a pretrained 7B model, 10 turns, prompts of 2048 and responses of 8192 tokens, and

    --config.env.data=backend_tasks --config.env.turn_limit=10 --config.user.name=openai --config.user.model=gpt-4o-mini
    --config.batch.prompts=64 --config.batch.group_size=5 --config.updates.minibatches=4 --config.optim.lr=3e-7
    --config.rollout.max_prompt_tokens=2048 --config.rollout.max_tokens=10240 --config.rollout.max_action_tokens=1024
    --config.rollout.max_feedback_tokens=256 --config.warmstart.steps=0
    --config.info.weight=0.3 --config.info.gate_temperature=0.5 --config.info.baseline=group --config.info.std_floor=0.0
    --config.info.norm=token --config.info.downscale=True
    --config.loss.kl_coef=0.0 --config.loss.entropy_coef=0.001 --config.loss.dual_clip=3.0
"""

from infopo_jax.config import base_config


def get_config():
    """Returns the ColBench run."""
    config = base_config()
    config.steps = 300

    config.env.name = 'colbench'
    config.env.kind = 'hosted'
    config.env.level = 2
    config.env.turn_limit = 8

    config.batch.prompts = 16
    config.batch.group_size = 8

    config.model.dim = 64
    config.model.num_layers = 2
    config.model.num_heads = 4
    config.model.num_kv_heads = 4
    config.model.head_dim = 16
    config.model.mlp_dim = 192
    config.model.max_vocab = 640
    config.model.rope_theta = 300.0  # contexts of 150 tokens
    config.rollout.max_prompt_tokens = 32
    config.rollout.max_action_tokens = 12
    config.rollout.max_feedback_tokens = 24
    config.rollout.max_tokens = 160

    config.info.weight = 0.3  # the paper's
    config.optim.lr = 1e-3
    config.warmstart.steps = 400
    config.warmstart.batch = 64
    config.warmstart.lr = 3e-3
    config.eval.interval = 25
    return config
