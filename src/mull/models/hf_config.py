"""`config.json` of a Hugging Face folder to `ModelConfig` and back.

Reads the fields of transformers 4 (`rope_theta`, `rope_scaling`) and of transformers 5 (`rope_parameters`), and writes
both. What a file leaves out has the value that transformers gives it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mull.errors import UserError
from mull.models.config import Family, ModelConfig

ARCHITECTURES: dict[str, Family] = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
_MAX_POSITIONS: dict[Family, int] = {"llama": 2048, "mistral": 131_072, "qwen2": 32_768, "qwen3": 32_768}
_NEEDED_BY_ROPE = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}


def config_from_hf(raw: Mapping[str, Any], where: str) -> ModelConfig:
    """The model that `raw` describes; `where` names the file in errors. UserError when mull cannot run it exactly."""
    family = _family(raw, where)
    sizes = {
        key: _whole(raw, key, where)
        for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    }
    heads, layers = sizes["num_attention_heads"], sizes["num_hidden_layers"]
    default_kv = {"llama": heads, "mistral": 8}.get(family, 32) if "num_key_value_heads" not in raw else heads
    kv_heads = _whole(raw, "num_key_value_heads", where, default_kv)
    default_dim = 128 if family == "qwen3" and "head_dim" not in raw else sizes["hidden_size"] // heads
    head_dim = _whole(raw, "head_dim", where, default_dim)
    if heads % kv_heads or head_dim % 2:
        raise UserError(
            f"{where} asks for {heads} heads of width {head_dim} over {kv_heads} key/value heads: the heads must be a"
            " multiple of the key/value heads and their width even; correct the file"
        )
    if raw.get("hidden_act", "silu") not in ("silu", "swish"):
        raise UserError(f"{where} asks for the activation {raw['hidden_act']!r}: only silu is supported")
    max_positions = _whole(raw, "max_position_embeddings", where, _MAX_POSITIONS[family])
    theta, scaling = _rope(raw, max_positions, where)
    bias = bool(raw.get("attention_bias", False))
    return ModelConfig(
        family=family,
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["hidden_size"],
        intermediate_size=sizes["intermediate_size"],
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_positions=max_positions,
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=_number(raw.get("rms_norm_eps", 1e-6), "rms_norm_eps", where),
        qk_norm=family == "qwen3",
        qkv_bias=family == "qwen2" or (bias and family != "mistral"),
        o_bias=bias and family in ("llama", "qwen3"),
        mlp_bias=family == "llama" and bool(raw.get("mlp_bias", False)),
        tied=bool(raw.get("tie_word_embeddings", False)),
        sliding_window=_windows(raw, family, layers, where),
    )


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The model's part of a config.json. UserError when the family has no field for something in `config`."""
    windows = config.sliding_window or (None,) * config.num_layers
    window = next((w for w in windows if w is not None), None)
    scaling = dict(config.rope_scaling)
    scaling["rope_type"] = scaling.pop("type", None) or scaling.get("rope_type", "default")
    raw: dict[str, Any] = {
        "architectures": [name for name, family in ARCHITECTURES.items() if family == config.family],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if scaling["rope_type"] == "default" else scaling,
        "rope_parameters": {"rope_theta": config.rope_theta, **scaling},
        "tie_word_embeddings": config.tied,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
    }
    if config.family == "mistral":
        raw["sliding_window"] = window
    elif config.family in ("qwen2", "qwen3"):
        raw["use_sliding_window"] = window is not None
        raw["sliding_window"] = window
        raw["max_window_layers"] = next((i for i, w in enumerate(windows) if w is not None), config.num_layers)
        raw["layer_types"] = ["full_attention" if w is None else "sliding_attention" for w in windows]
    if config.family in ("llama", "qwen3"):
        raw["attention_bias"] = config.qkv_bias
    if config.family == "llama":
        raw["mlp_bias"] = config.mlp_bias
    # Rope parameters have several spellings of one meaning; everything else must come back as it was.
    plain = {"rope_scaling": {}, "sliding_window": config.sliding_window if window else ()}
    if replace(config_from_hf(raw, "config"), rope_scaling={}) != replace(config, **plain):
        raise UserError(
            f"no {config.family} config.json can describe this model: its biases, QK-norm or sliding windows are not"
            " those of the family; change the ModelConfig"
        )
    return raw


def _family(raw: Mapping[str, Any], where: str) -> Family:
    named = raw.get("architectures") or []
    model_type = raw.get("model_type")
    supported = f"supported are {', '.join(ARCHITECTURES)}"
    shown = ", ".join(map(str, named)) or f"model type {model_type!r}"
    if any(raw.get(key) for key in ("num_experts", "num_local_experts", "n_routed_experts")):
        raise UserError(f"{where} describes a mixture of experts ({shown}): mull runs dense models; {supported}")
    if raw.get("quantization_config"):
        raise UserError(f"{where} describes quantised weights: load the model's unquantised version")
    for name, family in ARCHITECTURES.items():
        if name in named or (not named and family == model_type):
            return family
    raise UserError(f"{where} asks for the architecture {shown}, which is not supported: {supported}")


def _whole(raw: Mapping[str, Any], key: str, where: str, default: int | None = None) -> int:
    value = raw.get(key)
    value = default if value is None else value
    if value is None:
        raise UserError(f"{where} has no {key}: download the model again")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{where} has {key} = {value!r}, which must be a positive whole number: correct the file")
    return value


def _number(value: Any, key: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        raise UserError(f"{where} has {key} = {value!r}, which must be a positive number: correct the file")
    return float(value)


def _windows(raw: Mapping[str, Any], family: Family, layers: int, where: str) -> tuple[int | None, ...]:
    """Each layer's window; () where all layers attend to everything."""
    if family == "llama" or (family != "mistral" and not raw.get("use_sliding_window", False)):
        return ()
    if raw.get("sliding_window", 4096) is None:
        return ()
    window = _whole(raw, "sliding_window", where, 4096)
    if family == "mistral":
        return (window,) * layers
    kinds = raw.get("layer_types")
    if kinds is None:
        first = raw.get("max_window_layers", 28)
        kinds = ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    if len(kinds) != layers or set(kinds) - {"sliding_attention", "full_attention"}:
        raise UserError(
            f"{where} has layer_types of {len(kinds)} layers ({', '.join(sorted(set(kinds)))}) for {layers} layers:"
            " each of them must be full_attention or sliding_attention"
        )
    windows = tuple(window if kind == "sliding_attention" else None for kind in kinds)
    return windows if any(windows) else ()


def _rope(raw: Mapping[str, Any], max_positions: int, where: str) -> tuple[float, dict[str, Any]]:
    """(theta, scaling parameters with `rope_type`; {} for none)."""
    given = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(given, Mapping):
        raise UserError(f"{where} has rope parameters {given!r}, which must be an object: correct the file")
    given = dict(given)
    if any(isinstance(value, Mapping) for value in given.values()):
        raise UserError(f"{where} has rope parameters per layer type, which is not supported: use another model")
    theta = _number(given.pop("rope_theta", None) or raw.get("rope_theta") or 10_000.0, "rope_theta", where)
    if (given.pop("partial_rotary_factor", None) or raw.get("partial_rotary_factor") or 1.0) != 1.0:
        raise UserError(f"{where} rotates only a part of each head (partial_rotary_factor), which is not supported")
    old_name = given.pop("type", None)
    kind = given.get("rope_type") or old_name or "default"
    if kind not in _NEEDED_BY_ROPE:
        raise UserError(f"{where} asks for rope scaling {kind!r}: supported are {', '.join(_NEEDED_BY_ROPE)}")
    if kind == "default":
        return theta, {}
    if "original_max_position_embeddings" in _NEEDED_BY_ROPE[kind]:
        trained = raw.get("original_max_position_embeddings") or given.get("original_max_position_embeddings")
        given["original_max_position_embeddings"] = trained or max_positions
    if kind == "yarn" and given.get("factor") is None:
        given["factor"] = max_positions / given["original_max_position_embeddings"]
    for key in _NEEDED_BY_ROPE[kind]:
        _number(given.get(key), key, f"{where}, which asks for rope scaling {kind!r},")
    return theta, {**given, "rope_type": kind}
