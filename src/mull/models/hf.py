"""Hugging Face folders: config.json and safetensors to `Transformer` and back. Nothing here touches the network.

transformers keeps q, k, v and gate, up apart; `Transformer` joins each group into one matrix. `_parts` is the one list
of which rows of which parameter every checkpoint tensor is, for loading and for saving.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mull.errors import UserError
from mull.files import read_object
from mull.models.config import ModelConfig
from mull.models.device import device_of
from mull.models.hf_config import config_from_hf, config_to_hf
from mull.models.transformer import Transformer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
# Old Llama checkpoints hold this buffer, which config.json determines.
_IGNORED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


@dataclass(frozen=True)
class _Part:
    """Rows [start, start + shape[0]) of one of our parameters, as a checkpoint names them."""

    hf_name: str
    name: str
    start: int
    shape: tuple[int, ...]


# --- loading


def read_config(folder: Path | str) -> ModelConfig:
    """The shape of the model in `folder`, from its config.json alone."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: mull loads models from folders and downloads nothing")
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} has no config.json: give the folder of a Hugging Face model")
    return config_from_hf(read_object(path), str(path))


def load(folder: Path | str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Transformer:
    """The model in `folder`, its weights in `dtype` on `device`.

    Memory: the parameters themselves and one checkpoint tensor at a time, which is read through the page cache.
    UserError when the folder is not a model that mull can run exactly, or this machine has no such device.
    """
    folder, device = Path(folder), device_of(device)
    config = read_config(folder)
    file_of = _tensor_files(folder)
    head = "lm_head.weight"
    if config.tied and head in file_of:
        # Some checkpoints hold the tied head once more, and some say tied while theirs differs: the tensors decide,
        # as in transformers 5.
        pair = [_read_tensor(file_of, name) for name in (head, "model.embed_tokens.weight") if name in file_of]
        config = config if len(pair) == 2 and torch.equal(*pair) else replace(config, tied=False)
    parts = _parts(config)
    _check_names(parts, file_of, folder, config)
    model = _empty(config, dtype, device)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        # In the order of the files, so that each is opened once and read forwards.
        for file, group in _by_file(parts, file_of):
            with _opened(file) as tensors:
                for part in group:
                    tensor = _tensor(tensors, part.hf_name, file)
                    if tuple(tensor.shape) != part.shape:
                        raise UserError(
                            f"{file} holds {part.hf_name} of shape {list(tensor.shape)} where config.json asks for"
                            f" {list(part.shape)}: config and weights are not of one model, download it again"
                        )
                    parameters[part.name][part.start : part.start + part.shape[0]].copy_(tensor)
    return model


def init(
    config: ModelConfig, seed: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Transformer:
    """A random model: normal(0.02), matrices that write to the residual stream divided by sqrt(2 layers) as in GPT-2.

    Norms are one and biases zero. The same seed gives the same weights on every device. UserError when this machine has
    no such device.
    """
    model = _empty(config, dtype, device_of(device))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.dim() == 1:
                parameter.fill_(1.0)
            else:
                std = 0.02 / math.sqrt(2 * config.num_layers) if name.endswith(("out.weight", "down.weight")) else 0.02
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return model


# --- saving


def save(
    model: Transformer,
    folder: Path | str,
    source: Path | str | None = None,
    max_shard_bytes: int = 4 * 10**9,
    extra: Mapping[str, bytes] | None = None,
) -> None:
    """Writes a folder that `load`, transformers and vLLM read: config, weights in the model's dtype, tokenizer files.

    Tokenizer, chat template, generation config and the rest of config.json (end tokens …) are copied from the folder
    `source`, or from `folder` itself where it exists. Everything is written beside `folder` and renamed into place.
    `extra` are files by name that stand beside the model's (a scorer's head). UserError when `folder` holds files that
    neither a model folder nor `extra` has (they would be lost), or when writing fails.
    """
    folder, extra = Path(folder), extra or {}
    if folder.exists():
        _refuse_foreign_files(folder, extra)
    source = Path(source) if source is not None else folder
    if source != folder and not source.is_dir():
        raise UserError(f"{source} is not a folder: give the model folder to copy the tokenizer from")
    temporary: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(folder, "tmp")
        _write_config(model, temporary / "config.json", source / "config.json")
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, temporary / name)
        _write_weights(model, temporary, max_shard_bytes)
        for name, content in extra.items():
            (temporary / name).write_bytes(content)
        _replace_folder(temporary, folder)
    except (OSError, SafetensorError) as e:
        raise UserError(f"cannot write the model to {folder} ({e}): free some space or save it elsewhere") from e
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _write_config(model: Transformer, path: Path, source: Path) -> None:
    raw = read_object(source)
    # Of the source only what says nothing about the shape is kept: another family's fields would confuse a reader.
    kept = {k: v for k, v in raw.items() if k.endswith("token_id") or k == "use_cache"}
    dtype = str(model.dtype).removeprefix("torch.")
    content = {"bos_token_id": None, "eos_token_id": None, **kept, **config_to_hf(model.config), "dtype": dtype}
    content["torch_dtype"] = dtype  # transformers 4 calls it so
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_weights(model: Transformer, folder: Path, max_shard_bytes: int) -> None:
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    width = model.embedding.weight.element_size()
    shards: list[list[_Part]] = [[]]
    size = total = 0
    for part in _parts(model.config):
        part_bytes = math.prod(part.shape) * width
        if shards[-1] and size + part_bytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(part)
        size, total = size + part_bytes, total + part_bytes
    weight_map = {}
    for i, shard in enumerate(shards):
        name = WEIGHTS if len(shards) == 1 else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        tensors = {p.hf_name: parameters[p.name][p.start : p.start + p.shape[0]].cpu() for p in shard}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        (folder / name).chmod((folder / "config.json").stat().st_mode)  # safetensors shuts others out
        weight_map |= {part.hf_name: name for part in shard}
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _replace_folder(new: Path, folder: Path) -> None:
    """Renames `new` to `folder`; a folder of that name is moved aside first and removed last."""
    if not folder.exists():
        new.rename(folder)
        return
    aside = _beside(folder, "old")
    folder.rename(aside / folder.name)
    new.rename(folder)
    shutil.rmtree(aside, ignore_errors=True)


def _refuse_foreign_files(folder: Path, extra: Mapping[str, bytes]) -> None:
    known = {"config.json", INDEX, *TOKENIZER_FILES, *extra}
    if not folder.is_dir():
        raise UserError(f"{folder} is a file: give a folder to save the model in")
    foreign = sorted(p.name for p in folder.iterdir() if p.name not in known and p.suffix != ".safetensors")
    if foreign:
        raise UserError(
            f"{folder} holds {foreign[0]}, which is no part of a model, and saving replaces the folder: save elsewhere"
        )


def _beside(folder: Path, suffix: str) -> Path:
    """A new folder on the same disk as `folder`; unlike tempfile's, others may read it as the umask says."""
    path = folder.with_name(f".{folder.name}.{os.getpid()}-{os.urandom(4).hex()}.{suffix}")
    path.mkdir()
    return path


# --- names and files


def _parts(c: ModelConfig) -> list[_Part]:
    """Every tensor of the checkpoint, in the order in which it is saved."""
    e, q, kv, f = c.hidden_size, c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim, c.intermediate_size
    parts = [_Part("model.embed_tokens.weight", "embedding.weight", 0, (c.vocab_size, e))]
    for i in range(c.num_layers):
        theirs, ours = f"model.layers.{i}.", f"layers.{i}."
        linears = [  # (their name, ours, first row, rows, columns, bias)
            ("self_attn.q_proj", "qkv", 0, q, e, c.qkv_bias),
            ("self_attn.k_proj", "qkv", q, kv, e, c.qkv_bias),
            ("self_attn.v_proj", "qkv", q + kv, kv, e, c.qkv_bias),
            ("self_attn.o_proj", "out", 0, e, q, c.o_bias),
            ("mlp.gate_proj", "gate_up", 0, f, e, c.mlp_bias),
            ("mlp.up_proj", "gate_up", f, f, e, c.mlp_bias),
            ("mlp.down_proj", "down", 0, e, f, c.mlp_bias),
        ]
        norms = [("input_layernorm", "attention_norm", e), ("post_attention_layernorm", "mlp_norm", e)]
        norms += [(f"self_attn.{n}", n, c.head_dim) for n in ("q_norm", "k_norm") if c.qk_norm]
        for hf_name, name, start, rows, columns, bias in linears:
            parts.append(_Part(f"{theirs}{hf_name}.weight", f"{ours}{name}.weight", start, (rows, columns)))
            if bias:
                parts.append(_Part(f"{theirs}{hf_name}.bias", f"{ours}{name}.bias", start, (rows,)))
        parts += [_Part(f"{theirs}{a}.weight", f"{ours}{b}.weight", 0, (width,)) for a, b, width in norms]
    parts.append(_Part("model.norm.weight", "norm.weight", 0, (e,)))
    if not c.tied:
        parts.append(_Part("lm_head.weight", "head.weight", 0, (c.vocab_size, e)))
    return parts


def _empty(config: ModelConfig, dtype: torch.dtype, device: torch.device | str) -> Transformer:
    """A model whose parameters have memory of their final type and place, and no values yet."""
    with torch.device("meta"):
        model = Transformer(config)
    return model.to(dtype).to_empty(device=device)


def _tensor_files(folder: Path) -> dict[str, Path]:
    """The file of every tensor of the checkpoint."""
    if (folder / WEIGHTS).is_file():
        with _opened(folder / WEIGHTS) as tensors:
            return dict.fromkeys(tensors.keys(), folder / WEIGHTS)
    if (folder / INDEX).is_file():
        weight_map = read_object(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict):
            raise UserError(f"{folder / INDEX} has no weight_map: download the model again")
        file_of = {name: folder / str(file) for name, file in weight_map.items()}
        absent = sorted({file.name for file in file_of.values() if not file.is_file()})
        if absent:
            raise UserError(f"{folder} lacks {len(absent)} weight file(s), first {absent[0]}: download the model again")
        return file_of
    other = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".gguf"))
    if other:
        raise UserError(
            f"{folder} has its weights in {other[0]}: convert them to safetensors, for example with transformers'"
            " save_pretrained"
        )
    raise UserError(f"{folder} has no {WEIGHTS}: download the model again")


def _check_names(parts: list[_Part], file_of: dict[str, Path], folder: Path, config: ModelConfig) -> None:
    wanted = {part.hf_name for part in parts}
    for what, names in (
        ("lacks", [part.hf_name for part in parts if part.hf_name not in file_of]),
        (
            "has unexpected",
            [n for n in file_of if n not in wanted and not _IGNORED.fullmatch(n) and not _tied(n, config)],
        ),
    ):
        if names:
            raise UserError(
                f"the checkpoint in {folder} {what} {len(names)} tensor(s), first {names[0]}: its config.json and its"
                " weights are not of one model, download it again"
            )


def _tied(name: str, config: ModelConfig) -> bool:
    return config.tied and name == "lm_head.weight"


def _by_file(parts: list[_Part], file_of: dict[str, Path]) -> Iterator[tuple[Path, list[_Part]]]:
    groups: dict[Path, list[_Part]] = {}
    for part in parts:
        groups.setdefault(file_of[part.hf_name], []).append(part)
    yield from groups.items()


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError, ValueError) as e:
        raise UserError(f"{file} is truncated or is not a safetensors file ({e}): download it again") from e


def _tensor(tensors: Any, name: str, file: Path) -> torch.Tensor:
    try:
        return tensors.get_tensor(name)
    except SafetensorError as e:
        raise UserError(f"{file} has no readable tensor {name} ({e}): download the model again") from e


def _read_tensor(file_of: dict[str, Path], name: str) -> torch.Tensor:
    with _opened(file_of[name]) as tensors:
        return _tensor(tensors, name, file_of[name])
