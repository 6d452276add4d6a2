"""Every bad model folder gets one sentence that says what, where and what to do."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mull.chat import Chat
from mull.errors import UserError
from mull.models import hf, nano
from mull.models.nano import nano_config, write_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path / "model")
    hf.save(hf.init(nano_config(), seed=0), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def refused(folder: Path | str, *says: str) -> None:
    with pytest.raises(UserError) as caught:
        hf.load(folder)
    message = str(caught.value)
    assert "\n" not in message and str(folder) in message, message
    for part in says:
        assert part in message, message


def edit(folder: Path, **changes) -> None:
    raw = json.loads((folder / "config.json").read_text())
    raw |= changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v != "DROP"}))


def edit_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_the_fixture_is_good(folder: Path):
    hf.load(folder)
    Chat.load(folder)


def test_not_a_folder(tmp_path: Path):
    refused("Qwen/Qwen3-0.6B", "not a folder", "downloads nothing")
    refused(tmp_path / "missing", "not a folder")
    refused(__file__, "not a folder")


def test_no_config(folder: Path):
    (folder / "config.json").unlink()
    refused(folder, "has no config.json")


@pytest.mark.parametrize("text", ["", "{", '{"a": 1', "[1]", "\xff"])
def test_broken_config(folder: Path, text: str):
    (folder / "config.json").write_text(text, encoding="latin-1")
    refused(folder, "config.json is not", "download the model again")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}, ["GPT2LMHeadModel", "Qwen3ForCausalLM"]),
        ({"architectures": None, "model_type": "mamba"}, ["mamba", "LlamaForCausalLM"]),
        ({"architectures": "DROP", "model_type": "DROP"}, ["not supported"]),
        ({"architectures": ["Qwen2ForSequenceClassification"]}, ["Qwen2ForSequenceClassification"]),
        ({"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 128}, ["mixture of experts", "Qwen3Moe"]),
        ({"architectures": ["MixtralForCausalLM"], "num_local_experts": 8}, ["mixture of experts"]),
        ({"quantization_config": {"quant_method": "gptq"}}, ["quantised"]),
        ({"hidden_size": "DROP"}, ["has no hidden_size"]),
        ({"hidden_size": "big"}, ["hidden_size = 'big'"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers = 0"]),
        ({"num_key_value_heads": 3}, ["multiple"]),
        ({"hidden_act": "gelu"}, ["gelu"]),
        ({"rope_scaling": {"rope_type": "longrope"}}, ["longrope", "yarn"]),
        ({"rope_scaling": {"rope_type": "linear"}}, ["'linear'", "factor = None"]),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, ["low_freq_factor"]),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, ["per layer type"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor"]),
        ({"use_sliding_window": True, "sliding_window": 4, "layer_types": ["full_attention"]}, ["layer_types"]),
        ({"rope_theta": "many", "rope_parameters": "DROP"}, ["rope_theta = 'many'"]),
        ({"rope_parameters": ["default"]}, ["rope"]),
        ({"rms_norm_eps": None}, ["rms_norm_eps = None"]),
    ],
)
def test_config_that_mull_cannot_run(folder: Path, changes: dict, says: list[str]):
    edit(folder, **changes)
    refused(folder, *says)


def test_no_weights(folder: Path):
    (folder / "model.safetensors").unlink()
    refused(folder, "has no model.safetensors")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.gguf"])
def test_weights_of_another_format(folder: Path, name: str):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"weights")
    refused(folder, name, "convert them to safetensors")


def test_missing_tensors(folder: Path):
    edit_weights(folder, lambda w: [w.pop(f"model.layers.{i}.self_attn.k_proj.weight") for i in (1, 2)])
    refused(folder, "lacks 2 tensor(s), first model.layers.1.self_attn.k_proj.weight")


def test_unexpected_tensors(folder: Path):
    edit_weights(folder, lambda w: w.update({"v_head.weight": torch.zeros(2), "v_head.bias": torch.zeros(1)}))
    refused(folder, "has unexpected 2 tensor(s), first v_head.")


def test_a_biased_checkpoint_of_an_unbiased_config(folder: Path):
    """The silent version of this bug loads the model and drops the biases."""
    edit_weights(folder, lambda w: w.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(128)}))
    refused(folder, "has unexpected 1 tensor(s), first model.layers.0.self_attn.q_proj.bias")


@pytest.mark.parametrize("shape", [(64, 127), (1, 128), (128,), (65, 128)])
def test_misshaped_tensor(folder: Path, shape: tuple[int, ...]):
    """(1, 128) and (128,) would broadcast without a word."""
    name = "model.layers.3.self_attn.v_proj.weight"
    edit_weights(folder, lambda w: w.update({name: torch.zeros(shape)}))
    refused(folder, name, str(list(shape)), "[64, 128]")


@pytest.mark.parametrize("keep", [0, 3, 100, -1, -5000])
def test_truncated_weights(folder: Path, keep: int):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refused(folder, "model.safetensors is truncated", "download it again")


def test_weights_that_are_a_pointer_file(folder: Path):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n")
    refused(folder, "model.safetensors is truncated or is not a safetensors file")


def test_shards(folder: Path):
    model = hf.load(folder)
    hf.save(model, folder, max_shard_bytes=400_000)
    hf.load(folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    second = sorted(set(index["weight_map"].values()))[1]
    whole = (folder / second).read_bytes()
    (folder / second).write_bytes(whole[:-10])
    refused(folder, second, "truncated")
    (folder / second).unlink()
    refused(folder, "lacks 1 weight file(s)", second)
    (folder / second).write_bytes(whole)
    first_name = next(iter(index["weight_map"]))
    index["weight_map"][first_name] = second
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, second, f"no readable tensor {first_name}")
    (folder / "model.safetensors.index.json").write_text("{}")
    refused(folder, "has no weight_map")


def test_no_tokenizer(folder: Path):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=re.escape(str(folder)) + ".*has no tokenizer.json"):
        Chat.load(folder)
    with pytest.raises(UserError, match=r"not a folder.*downloads nothing"):
        Chat.load("Qwen/Qwen3-0.6B")


@pytest.mark.parametrize("text", ["", "{}", '{"version": "1.0"', "\xff"])
def test_broken_tokenizer(folder: Path, text: str):
    (folder / "tokenizer.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"tokenizer\.json cannot be read"):
        Chat.load(folder)


def test_broken_tokenizer_config(folder: Path):
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer_config\.json is not valid JSON"):
        Chat.load(folder)


def test_nano_not_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(nano, "files", lambda package: tmp_path)
    with pytest.raises(UserError, match="reinstall"):
        nano.shipped_folder()
    (tmp_path / "nano").mkdir()
    (tmp_path / "nano" / "config.json").write_text("{}")
    assert nano.shipped_folder() == tmp_path / "nano"
