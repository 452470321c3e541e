"""Every field of a run: its default and, behind it, the comment that ``--help`` shows; units stand there."""

from ml_collections import config_dict


def base_config() -> config_dict.ConfigDict:
    """Returns the locked config tree with every field and its default; units stand in the comments."""
    c = config_dict.ConfigDict()
    c.seed = 0  # of every random key: weights, prompts, sampling, shuffling
    c.num_seeds = 1  # more than 1: jitted rollouts train that many runs in one program
    c.steps = 200  # training steps; each samples, scores and updates once
    c.profile = 0  # steps to profile with jax.profiler

    c.env = config_dict.ConfigDict()
    c.env.name = 'intent'  # the world: a name in infopo_jax.envs.ENVIRONMENTS
    c.env.kind = 'jitted'  # 'jitted': array environments inside XLA | 'hosted': text environments
    # Knobs: None leaves the environment's own default; one that the environment does not have is an error.
    c.env.num_slots = config_dict.placeholder(int)  # intent: slots of a request
    c.env.num_values = config_dict.placeholder(int)  # intent: values a slot can take
    c.env.num_hidden = config_dict.placeholder(int)  # intent: slots that the prompt does not tell; webshop: wishes
    c.env.ask_fraction = config_dict.placeholder(float)  # intent: share of asks among warm-start targets
    c.env.turn_limit = config_dict.placeholder(int)  # actions before the rollout is cut
    c.env.reward = config_dict.placeholder(str)  # 'sparse', 'share' of what was right, sokoban: 'ragen'
    c.env.turn_cost = config_dict.placeholder(float)  # taken from the outcome for each turn
    c.env.probe = config_dict.placeholder(str)  # probe: which of the known-answer worlds
    c.env.level = config_dict.placeholder(int)  # difficulty
    c.env.brief = config_dict.placeholder(bool)  # retail, colbench: a system prompt of a few lines, for tiny models
    c.env.user_style = config_dict.placeholder(str)  # how scripted users talk, 'terse' and others: users/styles.py
    c.env.gym = config_dict.placeholder(str)  # usergym: which gym; gymnasium: an id, or 'module:name'
    c.env.data = config_dict.placeholder(str)  # usergym, colbench: path of published tasks; webshop_server: address
    c.env.reward_line = config_dict.placeholder(bool)  # usergym, UserRL's gyms: show rewards in replies (a leak)
    c.env.actions = config_dict.placeholder(str)  # gymnasium: action string of a call, see envs/gymnasium.py
    c.env.prompt = config_dict.placeholder(str)  # gymnasium: what the agent is told first
    c.env.num_goals = config_dict.placeholder(int)  # webshop_server: goals of the server at env.data, as it prints them
    c.env.num_products = config_dict.placeholder(int)  # webshop_server: products that the package loads; None: all
    c.env.num_tasks = config_dict.placeholder(int)  # gymnasium: seeds of training, and a quarter as many of evaluation
    c.env.success_at = config_dict.placeholder(float)  # gymnasium: sum of rewards from which an episode succeeded
    c.env.outcome_range = config_dict.placeholder(float)  # gymnasium: largest minus smallest sum of rewards
    c.env.domain = config_dict.placeholder(str)  # tau2: 'airline' | 'retail' | 'telecom' | 'telecom-solo'
    c.env.solo = config_dict.placeholder(bool)  # tau2, telecom: the agent has the user's tools too, nobody to talk to
    c.env.evaluation = config_dict.placeholder(str)  # tau2: 'all', or 'env' where no judge is at hand
    c.env.python = config_dict.placeholder(str)  # tau2: interpreter that has the package; None: TAU2_PYTHON
    c.env.data_dir = config_dict.placeholder(str)  # tau2: its data; None: TAU2_DATA_DIR
    c.env.max_steps = config_dict.placeholder(int)  # tau2: messages of a talk, of all sides together
    c.env.page_size = config_dict.placeholder(int)  # webshop: products of a page of results
    c.env.judge_model = config_dict.placeholder(str)  # tau2: language model that judges what cannot be computed
    c.user = config_dict.ConfigDict()  # who answers in place of an environment's script; None leaves a knob's default
    c.user.name = config_dict.placeholder(str)  # 'scripted' | 'openai' | 'policy'; None: 'openai' if model is set
    c.user.model = config_dict.placeholder(str)  # openai: the model's name there
    c.user.base_url = config_dict.placeholder(str)  # openai: the endpoint, up to and with its version
    c.user.api_key_env = config_dict.placeholder(str)  # openai: environment variable that holds the key; '' sends none
    c.user.weights = config_dict.placeholder(str)  # policy: 'current' | 'frozen', as the policy was before training
    c.user.path = config_dict.placeholder(str)  # policy: folder or hub id of another checkpoint that plays, frozen
    c.user.max_prompt_tokens = config_dict.placeholder(int)  # policy: of a talk; None: as the model allows
    c.user.temperature = config_dict.placeholder(float)  # openai, policy: of sampling
    c.user.max_tokens = config_dict.placeholder(int)  # openai, policy: of an answer
    c.user.timeout = config_dict.placeholder(float)  # openai: seconds that a request may take
    c.user.retries = config_dict.placeholder(int)  # openai: requests after a failed one; policy: of empty answers
    c.user.concurrency = config_dict.placeholder(int)  # openai: requests under way at once; policy: rows decoded
    c.user.patience = config_dict.placeholder(float)  # seconds for an answer in all; None: 0.9 of call_seconds
    c.user.requests_per_minute = config_dict.placeholder(float)  # openai: 0 is no limit
    c.user.cache_dir = config_dict.placeholder(str)  # openai: folder for replays
    c.user.prompt_price = config_dict.placeholder(float)  # openai: of a million tokens, for the count of cost
    c.user.completion_price = config_dict.placeholder(float)  # openai: likewise
    c.user.send_seed = config_dict.placeholder(bool)  # openai: False for endpoints that refuse the field
    c.batch = config_dict.ConfigDict()
    c.batch.prompts = 32  # P, prompts per step
    c.batch.group_size = 8  # G, rollouts per prompt

    c.model = config_dict.ConfigDict()
    c.model.path = config_dict.placeholder(str)  # hosted: folder or hub id of a checkpoint; it then gives every size
    c.model.dim = 64  # width of the residual stream
    c.model.num_layers = 2  # decoder blocks
    c.model.num_heads = 8  # query heads
    c.model.num_kv_heads = 8  # key and value heads; divides num_heads
    c.model.head_dim = 16  # width of a head; even
    c.model.mlp_dim = 192  # hidden width of SwiGLU
    c.model.rope_theta = 10000.0  # base of the rotary frequencies
    c.model.norm_eps = 1e-6  # of RMSNorm
    c.model.tie_embeddings = True  # the output head is the embedding table
    c.model.qk_norm = True  # RMSNorm on queries and keys (Qwen3): small models learn to copy sooner
    c.model.dtype = 'float32'  # compute dtype: 'float32' | 'bfloat16'
    c.model.param_dtype = 'float32'  # of weights that train; bfloat16 loses small updates
    c.model.remat = False  # recompute layers in the backward pass: less memory, a third more time
    c.model.max_vocab = 512  # hosted, from scratch: largest vocabulary of the tokenizer trained on the world's text

    c.lora = config_dict.ConfigDict()
    c.lora.rank = 0  # above 0: only adapters of this rank train, and the base without them is the reference
    c.lora.alpha = 16.0  # adapters are scaled by alpha / rank
    c.chat = config_dict.ConfigDict()
    c.chat.keep_thinking = True  # later turns see earlier thoughts, token for token; False is for evaluation and chat
    c.chat.enable_thinking = config_dict.placeholder(bool)  # what the template is told; None leaves it to the template
    c.chat.tool_format = 'auto'  # of calls: 'auto' (the template's) | 'hermes' | 'llama3' | 'mistral' | 'text'

    c.mesh = config_dict.ConfigDict()  # devices along each axis; -1 takes what the others leave
    c.mesh.data = -1  # copies of the weights; rows are divided over data and fsdp
    c.mesh.fsdp = 1  # weights, gradients and optimizer state are split over it, and whole where they are used
    c.mesh.tensor = 1  # splits heads, MLP and vocabulary; divides num_kv_heads

    c.rollout = config_dict.ConfigDict()
    c.rollout.temperature = 1.0  # of sampling; scores use the same
    c.rollout.max_action_tokens = 32  # hosted: per turn
    c.rollout.max_feedback_tokens = 64  # hosted: longer feedback is cut with a marker
    c.rollout.max_prompt_tokens = 256  # hosted: a longer prompt is an error that names the task
    c.rollout.max_tokens = 512  # hosted: L, trunk tokens per rollout
    c.rollout.max_bad_actions = 3  # malformed actions in a row that end a rollout with BAD_ACTION
    c.rollout.slots = 0  # hosted: rows decoded at once, at most the rollouts of a step; 0 means all of them
    c.rollout.aside = -1  # hosted: rollouts that wait on the device beside the slots, each a row of cache; -1: as many
    c.rollout.chunk = 8  # hosted: decode steps per dispatch
    c.rollout.cache_dtype = config_dict.placeholder(str)  # hosted: of keys and values, 'int8' too; None: model.dtype
    c.rollout.workers = 16  # hosted: environments that are asked at once
    c.rollout.call_seconds = 120.0  # hosted: most that a call to an environment may take
    c.rollout.retries = 1  # hosted: new tries of a failed rollout; same keys: same words, unless the answers differ
    c.rollout.max_failed_fraction = 0.2  # more failed rollouts than this share of a batch stops the run

    c.info = config_dict.ConfigDict()
    c.info.weight = 0.5  # of the info advantage beside the outcome advantage
    c.info.weight_decay = 0.0  # weight * exp(-weight_decay * update)
    c.info.gate_temperature = 0.05  # in units of the environment's outcome range
    c.info.std_floor = 0.1  # smallest std that gains are divided by, nats
    c.info.baseline = 'turn'  # 'group' (paper) | 'turn' | 'none'
    c.info.norm = 'turn'  # statistics over 'turn's (paper) or 'token's (release)
    c.info.downscale = False  # the release's down-scaling of the info advantage
    c.info.horizon = 1  # later actions a gain looks at; 0 means all
    c.info.kind = 'log_ratio'  # 'log_ratio' | 'kl'
    c.info.placeholder = config_dict.placeholder(str)  # None: the environment's own
    c.info.mask_errors = True  # feedback that is marked as an error earns no gain

    c.advantage = config_dict.ConfigDict()
    c.advantage.estimator = 'infopo'  # 'infopo' | 'grpo' | 'info_only' | 'raw_gain' | 'shuffled_gain'
    c.loss = config_dict.ConfigDict()
    c.loss.clip_low = 0.2  # the probability ratio is clipped below 1 - clip_low
    c.loss.clip_high = 0.2  # and above 1 + clip_high
    c.loss.dual_clip = config_dict.placeholder(float)  # above 1: bounds the loss of negative advantages; None is off
    c.loss.unit = 'token'  # 'token' | 'turn': a token of a_t weighs 1 / len(a_t)
    c.loss.kl = 'k3'  # 'k3' | 'k2' | 'full'
    c.loss.kl_coef = 0.01  # 0 skips the reference and its pass
    c.loss.entropy_coef = 0.0  # bonus for entropy
    c.updates = config_dict.ConfigDict()  # (a ConfigDict's own method takes the name 'update')
    c.updates.epochs = 1  # passes over a batch
    c.updates.minibatches = 1  # whole groups each
    c.updates.microbatches = 1  # gradient accumulation; 0: parts of at most 8 rollouts, or of mesh.data * mesh.fsdp
    c.updates.importance_cap = 0.0  # truncated importance weights against sampler mismatch; 0 is off
    c.updates.max_bad_updates = 10  # non-finite updates in a row that stop the run

    c.optim = config_dict.ConfigDict()
    c.optim.lr = 3e-4  # learning rate of AdamW
    c.optim.warmup_steps = 5  # updates over which the rate rises from 0
    c.optim.decay = 'constant'  # 'constant' | 'cosine'
    c.optim.b1 = 0.9  # decay of the gradient mean
    c.optim.b2 = 0.95  # decay of the gradient square
    c.optim.eps = 1e-8  # added to its root
    c.optim.weight_decay = 0.0  # decoupled from the gradient
    c.optim.clip_norm = 1.0  # largest global gradient norm
    c.warmstart = config_dict.ConfigDict()
    c.warmstart.steps = 300  # supervised steps before step 0 (syntax, never strategy); 0 skips them
    c.warmstart.pretrained = False  # also for a model that comes from model.path
    c.warmstart.batch = 128  # examples per supervised step
    c.warmstart.lr = 2e-3  # its learning rate
    c.eval = config_dict.ConfigDict()
    c.eval.interval = 20  # steps; 0: only before and after training
    c.eval.episodes = 256  # held-out episodes per evaluation
    c.eval.temperature = 1.0  # 0 is greedy
    c.eval.top_k = 0  # the likeliest tokens that are kept; 0 keeps all (training always does)
    c.eval.top_p = 1.0  # keeps the fewest likeliest tokens that add up to this
    c.eval.min_p = 0.0  # keeps tokens this many times as likely as the likeliest

    c.log = config_dict.ConfigDict()
    c.log.interval = 5  # steps between console lines; metrics.jsonl has every step
    c.log.rollouts = 4  # sample rollouts written at each evaluation
    c.log.tensorboard = True  # also write TensorBoard files
    c.checkpoint = config_dict.ConfigDict()
    c.checkpoint.interval = 20  # steps
    return c.lock()
