"""Every field of a run, declared once; files under configs/ edit what ``base_config`` returns."""

from ml_collections import config_dict


def base_config() -> config_dict.ConfigDict:
    """Returns the locked config tree with every field and its default; units stand in the comments."""
    c = config_dict.ConfigDict()
    c.seed = 0
    c.num_seeds = 1  # more than 1: jitted rollouts train that many runs in one program
    c.steps = 200  # training steps; each samples, scores and updates once
    c.profile = 0  # steps to profile with jax.profiler

    c.env = config_dict.ConfigDict()
    c.env.name = 'intent'
    c.env.kind = 'jitted'  # 'jitted': array environments inside XLA | 'hosted': text environments
    # Knobs: None leaves the environment's own default; one that the environment does not have is an error.
    c.env.num_slots = config_dict.placeholder(int)
    c.env.num_values = config_dict.placeholder(int)
    c.env.num_hidden = config_dict.placeholder(int)
    c.env.turn_limit = config_dict.placeholder(int)
    c.env.reward = config_dict.placeholder(str)
    c.env.turn_cost = config_dict.placeholder(float)
    c.env.probe = config_dict.placeholder(str)
    c.env.level = config_dict.placeholder(int)

    c.batch = config_dict.ConfigDict()
    c.batch.prompts = 32  # P
    c.batch.group_size = 8  # G

    c.model = config_dict.ConfigDict()  # path to a checkpoint comes with real checkpoints
    c.model.dim = 64
    c.model.num_layers = 2
    c.model.num_heads = 4
    c.model.num_kv_heads = 2
    c.model.head_dim = 16
    c.model.mlp_dim = 192
    c.model.rope_theta = 10000.0
    c.model.norm_eps = 1e-6
    c.model.tie_embeddings = True
    c.model.qk_norm = False
    c.model.dtype = 'float32'  # compute dtype

    c.rollout = config_dict.ConfigDict()
    c.rollout.temperature = 1.0
    c.rollout.max_action_tokens = 32  # hosted: per turn
    c.rollout.max_feedback_tokens = 64  # hosted: longer feedback is cut with a marker
    c.rollout.max_prompt_tokens = 256  # hosted: a longer prompt is an error that names the task
    c.rollout.max_tokens = 512  # hosted: L, trunk tokens per rollout
    c.rollout.max_bad_actions = 3  # malformed actions in a row that end a rollout with BAD_ACTION
    c.rollout.slots = 0  # hosted: rows decoded at once; 0 means all rollouts of a step
    c.rollout.chunk = 8  # hosted: decode steps per dispatch
    c.rollout.max_failed_fraction = 0.2  # more failed rollouts than this share of a batch stops the run

    c.info = config_dict.ConfigDict()
    c.info.weight = 0.5
    c.info.weight_decay = 0.0  # weight * exp(-weight_decay * update)
    c.info.gate_temperature = 0.05  # in units of the environment's outcome range
    c.info.std_floor = 0.1
    c.info.baseline = 'turn'  # 'group' (paper) | 'turn' | 'none'
    c.info.norm = 'turn'  # statistics over 'turn's (paper) or 'token's (release)
    c.info.downscale = False  # the release's down-scaling of the info advantage
    c.info.horizon = 1  # later actions a gain looks at; 0 means all
    c.info.kind = 'log_ratio'  # 'log_ratio' | 'kl'
    c.info.placeholder = config_dict.placeholder(str)  # None: the environment's own
    c.info.mask_errors = True  # feedback that is marked as an error earns no gain

    c.advantage = config_dict.ConfigDict()
    c.advantage.estimator = 'infopo'

    c.loss = config_dict.ConfigDict()
    c.loss.clip_low = 0.2
    c.loss.clip_high = 0.2
    c.loss.dual_clip = config_dict.placeholder(float)
    c.loss.unit = 'token'  # 'token' | 'turn': a token of a_t weighs 1 / len(a_t)
    c.loss.kl = 'k3'  # 'k3' | 'k2' | 'full'
    c.loss.kl_coef = 0.01  # 0 skips the reference and its pass
    c.loss.entropy_coef = 0.0

    c.updates = config_dict.ConfigDict()  # (a ConfigDict's own method takes the name 'update')
    c.updates.epochs = 1
    c.updates.minibatches = 1  # whole groups each
    c.updates.microbatches = 1  # gradient accumulation inside a minibatch
    c.updates.importance_cap = 0.0  # truncated importance weights against sampler mismatch; 0 is off
    c.updates.max_bad_updates = 10  # non-finite updates in a row that stop the run

    c.optim = config_dict.ConfigDict()
    c.optim.lr = 3e-4
    c.optim.warmup_steps = 5
    c.optim.decay = 'constant'  # 'constant' | 'cosine'
    c.optim.b1 = 0.9
    c.optim.b2 = 0.95
    c.optim.eps = 1e-8
    c.optim.weight_decay = 0.0
    c.optim.clip_norm = 1.0

    c.warmstart = config_dict.ConfigDict()
    c.warmstart.steps = 300
    c.warmstart.batch = 128
    c.warmstart.lr = 2e-3

    c.eval = config_dict.ConfigDict()
    c.eval.interval = 20  # steps; 0: only before and after training
    c.eval.episodes = 256
    c.eval.temperature = 1.0  # 0 is greedy

    c.log = config_dict.ConfigDict()
    c.log.interval = 5  # steps between console lines; metrics.jsonl has every step
    c.log.rollouts = 4  # sample rollouts written at each evaluation
    c.log.tensorboard = True

    c.checkpoint = config_dict.ConfigDict()
    c.checkpoint.interval = 20  # steps
    return c.lock()
