"""The architecture of a decoder as one frozen dataclass."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3's frequency scaling of rotary embeddings (transformers: rope_type 'llama3')."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192


@dataclasses.dataclass(frozen=True)
class LMConfig:
    """Sizes and switches of a decoder; covers Qwen2, Qwen3 (dense) and Llama 3.

    Raises:
        ValueError: for sizes that do not fit each other.
    """

    vocab_size: int
    dim: int  # width of the residual stream
    num_layers: int
    num_heads: int
    num_kv_heads: int  # grouped-query attention: num_heads / num_kv_heads queries share a key
    head_dim: int
    mlp_dim: int  # width of the SwiGLU hidden layer
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-6
    tie_embeddings: bool = True
    qkv_bias: bool = False  # Qwen2
    qk_norm: bool = False  # Qwen3: RMSNorm of queries and keys per head
    sliding_window: int | None = None  # keys further back than this many positions are invisible
    dtype: str = 'float32'  # compute dtype; parameters keep their own
    param_dtype: str = 'float32'
    remat: bool = False  # recompute layers in the backward pass

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
