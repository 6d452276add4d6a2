"""One transformer for the Llama, Mistral, Qwen2 and Qwen3 families.

The caller passes the attention pattern in: the same forward serves padded training, cached decoding and whatever
pattern comes later, so sampling and training cannot drift apart. `attend(layer, q, k, v)` receives this pass's
queries [..., H, D] and keys and values [..., K, D], already normalised and rotated, and returns [..., H, D].

Weights of q, k, v and of gate, up are stored joined (one matrix product each); `hf.py` splits and joins them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from mull.models.config import ModelConfig
from mull.models.rope import inverse_frequencies, rotate

Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x32 = x.float()
        x32 = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * x32.to(x.dtype)


class Layer(nn.Module):
    """Pre-norm attention and SwiGLU, split at the attention so that the pattern stays outside."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = c.num_heads, c.num_kv_heads, c.head_dim
        self.attention_norm = RMSNorm(c.hidden_size, c.norm_eps)
        self.qkv = nn.Linear(c.hidden_size, (c.num_heads + 2 * c.num_kv_heads) * c.head_dim, bias=c.qkv_bias)
        self.q_norm = RMSNorm(c.head_dim, c.norm_eps) if c.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(c.head_dim, c.norm_eps) if c.qk_norm else nn.Identity()
        self.out = nn.Linear(c.num_heads * c.head_dim, c.hidden_size, bias=c.o_bias)
        self.mlp_norm = RMSNorm(c.hidden_size, c.norm_eps)
        self.gate_up = nn.Linear(c.hidden_size, 2 * c.intermediate_size, bias=c.mlp_bias)
        self.down = nn.Linear(c.intermediate_size, c.hidden_size, bias=c.mlp_bias)

    def before(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, ...]:
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (-1, self.head_dim))
        q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), dim=-2)
        return rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin), v

    def after(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        x = x + self.out(attended.flatten(-2))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Transformer(nn.Module):
    """Parameters are kept in one dtype (`self.dtype`); norms, rotations and log-probabilities compute in float32."""

    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.num_layers)])
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        if not config.tied:
            self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        inv_freq, factor = inverse_frequencies(config)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.rope_factor = factor

    def _apply(self, fn: Callable, recurse: bool = True) -> Transformer:
        # A move to bf16 (or to memory without values) must not round or lose the frequencies.
        super()._apply(fn, recurse)
        self.inv_freq = inverse_frequencies(self.config)[0].to(self.device)
        return self

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def head_weight_VE(self) -> torch.Tensor:
        return self.embedding.weight if self.config.tied else self.head.weight

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        """Final hidden states [..., E] of tokens[...] at positions[...] (int64)."""
        angles = positions[..., None, None].float() * self.inv_freq
        cos, sin = angles.cos() * self.rope_factor, angles.sin() * self.rope_factor
        x = F.embedding(tokens, self.embedding.weight)
        for i, layer in enumerate(cast("list[Layer]", self.layers)):
            q, k, v = layer.before(x, cos, sin)
            x = layer.after(x, attend(i, q, k, v))
        return self.norm(x)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Float32 logits [..., V]."""
        return F.linear(hidden, self.head_weight_VE).float()
