"""The shape of a model: what `config.json` of a Hugging Face folder says, in one dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Family = Literal["llama", "mistral", "qwen2", "qwen3"]


@dataclass(frozen=True)
class ModelConfig:
    """Dense decoder-only transformer with grouped-query attention and SwiGLU.

    `sliding_window[i]` is layer i's attention window in tokens, None for full attention.
    """

    family: Family
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    rope_theta: float = 10_000.0
    rope_scaling: Mapping[str, Any] = field(default_factory=dict)  # Hugging Face's rope parameters, "rope_type" in it
    norm_eps: float = 1e-6
    qk_norm: bool = False  # Qwen3: RMSNorm over each head of q and k, before the rotation
    qkv_bias: bool = False  # Qwen2
    o_bias: bool = False
    mlp_bias: bool = False
    tied: bool = True  # the output head is the embedding
    sliding_window: tuple[int | None, ...] = ()  # empty: full attention everywhere

    @property
    def matmul_params(self) -> int:
        """Parameters that take part in a matrix product per token: all but embeddings looked up, norms and biases."""
        e, d = self.hidden_size, self.head_dim
        attention = e * d * (self.num_heads + 2 * self.num_kv_heads) + self.num_heads * d * e
        return self.num_layers * (attention + 3 * e * self.intermediate_size) + self.vocab_size * e
