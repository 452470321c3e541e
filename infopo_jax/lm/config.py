"""The architecture of a decoder as one frozen dataclass."""

import dataclasses

ROPE_SCALINGS = ('llama3', 'linear')
ACTIVATIONS = ('silu', 'gelu_tanh')


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Frequency scaling of rotary embeddings.

    'llama3' divides long wavelengths by the factor, keeps short ones and interpolates between; 'linear' divides all.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0  # these three: 'llama3' only
    high_freq_factor: float = 4.0
    original_max_position: int = 8192
    kind: str = 'llama3'

    def __post_init__(self):
        if self.kind not in ROPE_SCALINGS:
            raise ValueError(f'rope_scaling.kind must be one of {ROPE_SCALINGS}, got {self.kind!r}')
        if self.factor <= 0:
            raise ValueError(f'rope_scaling.factor must be positive, got {self.factor}')
        if self.kind == 'llama3' and self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f'rope_scaling.low_freq_factor ({self.low_freq_factor}) must be below rope_scaling.high_freq_factor '
                f'({self.high_freq_factor})'
            )


@dataclasses.dataclass(frozen=True)
class LMConfig:
    """Sizes and switches of a decoder; covers Qwen2, Qwen3, Qwen3-MoE, Llama 3, Mistral, Gemma 2 and Gemma 3 (text).

    Raises:
        ValueError: for sizes that do not fit each other.
    """

    vocab_size: int
    dim: int  # width of the residual stream
    num_layers: int
    num_heads: int
    num_kv_heads: int  # grouped-query attention: num_heads / num_kv_heads queries share a key
    head_dim: int
    mlp_dim: int  # width of the gated hidden layer; with experts, of one expert's
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-6
    tie_embeddings: bool = True
    qkv_bias: bool = False  # Qwen2
    qk_norm: bool = False  # Qwen3, Gemma 3: RMSNorm of queries and keys per head
    sliding_window: int | None = None  # keys further back than this many positions are invisible
    dtype: str = 'float32'  # compute dtype; parameters keep their own
    param_dtype: str = 'float32'
    remat: bool = False  # recompute layers in the backward pass
    sliding_layers: tuple[bool, ...] | None = None  # which layers have the window; None: all
    rope_theta_local: float | None = None  # of layers with the window, without scaling; None: as the other layers
    o_bias: bool = False  # bias of attention's output projection
    mlp_bias: bool = False
    activation: str = 'silu'  # of the gate; Gemma: 'gelu_tanh'
    norm_plus_one: bool = False  # Gemma: RMSNorm multiplies by 1 + scale
    post_norms: bool = False  # Gemma: RMSNorm of what attention and MLP add to the residual stream
    scale_embed: bool = False  # Gemma: embeddings are multiplied by sqrt(dim)
    query_scalar: float | None = None  # scores are divided by its square root; None: head_dim
    attn_soft_cap: float | None = None  # Gemma 2: scores become cap * tanh(scores / cap)
    final_soft_cap: float | None = None  # the same for logits
    num_experts: int = 0  # Qwen3-MoE; 0: a dense MLP
    experts_per_token: int = 0
    norm_expert_weights: bool = True  # the chosen experts' weights are divided by their sum
    lora_rank: int = 0  # of adapters beside attention's and the dense MLP's projections; 0: none
    lora_alpha: float = 16.0  # adapters are scaled by lora_alpha / lora_rank
    max_position: int = 32768  # longest context the weights were made for; written to exports, not enforced here

    def __post_init__(self):
        for name in ('vocab_size', 'dim', 'num_layers', 'num_heads', 'num_kv_heads', 'head_dim', 'mlp_dim'):
            if getattr(self, name) < 1:
                raise ValueError(f'model.{name} must be at least 1, got {getattr(self, name)}')
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f'model.num_heads ({self.num_heads}) must be a multiple of model.num_kv_heads ({self.num_kv_heads})'
            )
        if self.head_dim % 2:
            raise ValueError(f'model.head_dim must be even for rotary embeddings, got {self.head_dim}')
        if self.activation not in ACTIVATIONS:
            raise ValueError(f'model.activation must be one of {ACTIVATIONS}, got {self.activation!r}')
        for name in ('sliding_window', 'query_scalar', 'attn_soft_cap', 'final_soft_cap', 'rope_theta_local'):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f'model.{name} must be positive or None, got {value}')
        self._check_layers()

    def _check_layers(self):
        if self.sliding_window is None and (self.sliding_layers is not None or self.rope_theta_local is not None):
            raise ValueError('model.sliding_layers and model.rope_theta_local need model.sliding_window')
        if self.sliding_layers is not None and len(self.sliding_layers) != self.num_layers:
            raise ValueError(
                f'model.sliding_layers must name each of the {self.num_layers} layers, got {len(self.sliding_layers)}'
            )
        if self.num_experts and not 1 <= self.experts_per_token <= self.num_experts:
            raise ValueError(
                f'model.experts_per_token must be in [1, model.num_experts = {self.num_experts}], '
                f'got {self.experts_per_token}'
            )
        if self.lora_rank < 0 or self.lora_alpha <= 0:
            raise ValueError(
                f'lora.rank must be at least 0 and lora.alpha above 0, got {self.lora_rank} and {self.lora_alpha}'
            )
        if self.num_experts and self.mlp_bias:
            raise ValueError('model.mlp_bias is for a dense MLP, not for experts')

    def slides(self, layer: int) -> bool:
        """Whether a layer has the sliding window."""
        return self.sliding_window is not None and (self.sliding_layers is None or self.sliding_layers[layer])
