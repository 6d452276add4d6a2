"""Rotary position embedding with the scaling variants of the supported families.

Su et al. 2021 (2104.09864) in the "rotate half" layout of Hugging Face checkpoints. Scaling: `linear` (positions
divided), `dynamic` (NTK, base grows with the context; here evaluated at the configured maximum, see below), `llama3`
(wavelength-dependent, Llama 3.1), `yarn` (Peng et al. 2309.00071).
"""

from __future__ import annotations

import math

import torch

from mull.errors import UserError
from mull.models.config import ModelConfig


def inverse_frequencies(config: ModelConfig) -> tuple[torch.Tensor, float]:
    """(inverse frequencies [D/2] in float32, factor on cos and sin)."""
    d, theta, scaling = config.head_dim, config.rope_theta, config.rope_scaling
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    exponents = torch.arange(0, d, 2, dtype=torch.int64).float() / d
    inv_freq = 1.0 / theta**exponents
    if kind == "default":
        return inv_freq, 1.0
    factor = float(scaling.get("factor", 1.0))
    if kind == "linear":
        return inv_freq / factor, 1.0
    if kind == "dynamic":
        # transformers rescales the base as soon as a sequence outgrows the trained length, which would change the
        # keys already in a cache. Within the trained length, which the engine enforces, the base is untouched.
        return inv_freq, 1.0
    if kind == "llama3":
        low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
        old_length = float(scaling["original_max_position_embeddings"])
        wavelength = 2 * math.pi / inv_freq
        smooth = (old_length / wavelength - low) / (high - low)
        blended = (1 - smooth) * inv_freq / factor + smooth * inv_freq
        scaled = torch.where(wavelength > old_length / low, inv_freq / factor, inv_freq)
        medium = (wavelength <= old_length / low) & (wavelength >= old_length / high)
        return torch.where(medium, blended, scaled), 1.0
    if kind == "yarn":
        return _yarn(config, inv_freq, factor)
    raise UserError(
        f"rope scaling {kind!r} is not supported; supported are default, linear, dynamic, llama3 and yarn:"
        " convert the model's rope_scaling or use another model"
    )


def _yarn(config: ModelConfig, inv_freq: torch.Tensor, factor: float) -> tuple[torch.Tensor, float]:
    scaling, d, theta = config.rope_scaling, config.head_dim, config.rope_theta
    old_length = float(scaling.get("original_max_position_embeddings") or config.max_positions)

    def dimension_of(rotations: float) -> float:
        return d * math.log(old_length / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = dimension_of(float(scaling.get("beta_fast") or 32))
    high = dimension_of(float(scaling.get("beta_slow") or 1))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, d - 1)
    ramp = ((torch.arange(d // 2).float() - low) / max(high - low, 0.001)).clamp(0, 1)

    def magnitude(scale: float, weight: float = 1.0) -> float:
        return 1.0 if scale <= 1 else 0.1 * weight * math.log(scale) + 1.0

    attention = scaling.get("attention_factor")
    if attention is None:
        mscale, mscale_all = scaling.get("mscale"), scaling.get("mscale_all_dim")
        attention = (
            magnitude(factor, mscale) / magnitude(factor, mscale_all) if mscale and mscale_all else magnitude(factor)
        )
    return inv_freq / factor * ramp + inv_freq * (1 - ramp), float(attention)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x[..., heads, D] rotated by cos, sin[..., 1, D/2] (float32), in float32, back in x's type."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)
