"""Logits agree with transformers, in both directions, for every family and every rope variant."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mull.errors import UserError
from mull.models import hf
from mull.models.attention import causal
from mull.models.config import ModelConfig
from mull.models.hf_config import config_from_hf, config_to_hf
from mull.models.nano import nano_config, write_tokenizer
from mull.models.rope import inverse_frequencies

os.environ["HF_HUB_OFFLINE"] = "1"
SMALL = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # large enough that a wrong rotation or mask is far above the tolerance
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
# A trained length at which both ends of the ramp lie inside the head, or nobody would see beta_fast and truncate.
YARN_RAMP = {**YARN, "original_max_position_embeddings": 512, "beta_fast": 16, "beta_slow": 2, "truncate": False}
CASES = {
    "llama": ("llama", {}),
    "llama-tied-biases": ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama-no-gqa": ("llama", {"num_key_value_heads": 4}),
    "llama-one-kv-wide-heads": ("llama", {"num_key_value_heads": 1, "head_dim": 20}),
    "llama-theta": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    "llama-linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 700.0}}),
    "llama-dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 700.0}}),
    "llama-llama3": ("llama", {"rope_parameters": {**LLAMA3, "rope_theta": 500.0}}),
    "qwen3-yarn": ("qwen3", {"rope_parameters": {**YARN, "rope_theta": 700.0}, "head_dim": 16}),
    "llama-yarn-ramp": ("llama", {"rope_parameters": {**YARN_RAMP, "rope_theta": 10_000.0}, "head_dim": 32}),
    "llama-yarn-mscale": ("llama", {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.0}}),
    "llama-yarn-attention": ("llama", {"rope_parameters": {**YARN, "attention_factor": 1.3, "rope_theta": 700.0}}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-window": ("mistral", {"sliding_window": 5, "tie_word_embeddings": True}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3-tied-biases": ("qwen3", {"head_dim": 10, "tie_word_embeddings": True, "attention_bias": True}),
    "qwen3-window": (
        "qwen3",
        {
            "head_dim": 16,
            "use_sliding_window": True,
            "sliding_window": 7,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
}


def their_model(case: str):
    from transformers import AutoConfig, AutoModelForCausalLM

    family, extra = CASES[case]
    torch.manual_seed(3)
    config = AutoConfig.for_model(family, **copy.deepcopy({**SMALL, **extra}), attn_implementation="eager")
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:  # zeros and ones would hide a bias or norm left out
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def their_logits(model, tokens_BT: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens_BT).logits


def our_logits(model, tokens_BT: torch.Tensor) -> torch.Tensor:
    positions_BT = torch.arange(tokens_BT.shape[1]).expand_as(tokens_BT)
    with torch.no_grad():
        return model.logits(model(tokens_BT, positions_BT, causal(model.config.sliding_window)))


def some_tokens(length: int = 40, vocab: int = 97) -> torch.Tensor:
    return torch.randint(vocab, (2, length), generator=torch.Generator().manual_seed(0))


def assert_equal(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert theirs.std() > 0.3  # a model that says nothing would agree with anything
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def from_theirs(folder: Path):
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), info  # no missing, unexpected or mis-shaped tensor
    return model.eval()


@pytest.mark.parametrize("case", CASES)
def test_logits_agree_both_ways(case: str, tmp_path: Path):
    theirs = their_model(case)
    tokens_BT = some_tokens()
    wanted = their_logits(theirs, tokens_BT)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = hf.load(tmp_path / "theirs")
    assert_equal(our_logits(ours, tokens_BT), wanted)
    hf.save(ours, tmp_path / "ours")
    assert_equal(their_logits(from_theirs(tmp_path / "ours"), tokens_BT), wanted)
    again = hf.load(tmp_path / "ours")
    assert again.config == ours.config
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), ours.parameters(), strict=True))


@pytest.mark.parametrize("case", ["llama-linear", "llama-llama3", "qwen3-yarn", "llama-dynamic"])
def test_fields_of_transformers_4(case: str, tmp_path: Path):
    theirs = their_model(case)
    theirs.save_pretrained(tmp_path)
    wanted = hf.load(tmp_path).config
    raw = json.loads((tmp_path / "config.json").read_text())
    scaling = raw.pop("rope_parameters")
    raw["rope_theta"] = scaling.pop("rope_theta")
    raw["rope_scaling"] = {**scaling, "type": scaling["rope_type"]}  # both spellings, as Qwen2.5 and Llama 3 files have
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert hf.load(tmp_path).config == wanted
    tokens_BT = some_tokens()
    assert_equal(our_logits(hf.load(tmp_path), tokens_BT), their_logits(theirs, tokens_BT))


def test_fields_left_out_have_the_defaults_of_transformers():
    from transformers import AutoConfig

    needed = {k: SMALL[k] for k in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")}
    for family in ("llama", "mistral", "qwen2", "qwen3"):
        raw = {**needed, "num_attention_heads": 32, "hidden_size": 64, "model_type": family}
        full = AutoConfig.for_model(family, **needed | {"num_attention_heads": 32, "hidden_size": 64}).to_dict()
        full["architectures"] = None
        assert config_from_hf(raw, "short") == config_from_hf(full, "full"), family


def test_shards_of_both_sides(tmp_path: Path):
    theirs = their_model("qwen3-tied-biases")
    tokens_BT = some_tokens()
    wanted = their_logits(theirs, tokens_BT)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
    assert len(list((tmp_path / "theirs").glob("model-*.safetensors"))) > 2
    ours = hf.load(tmp_path / "theirs")
    assert_equal(our_logits(ours, tokens_BT), wanted)
    hf.save(ours, tmp_path / "ours", max_shard_bytes=40_000)
    files = list((tmp_path / "ours").glob("model-*.safetensors"))
    assert len(files) > 2 and all(f.stat().st_size < 45_000 for f in files)
    assert_equal(their_logits(from_theirs(tmp_path / "ours"), tokens_BT), wanted)
    assert_equal(our_logits(hf.load(tmp_path / "ours"), tokens_BT), wanted)


def test_tied_in_name_only(tmp_path: Path):
    """A head that is stored and differs from the embedding is used, whatever config.json says of tying."""
    theirs = their_model("llama")
    theirs.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, "tie_word_embeddings": True}))
    ours = hf.load(tmp_path)
    assert not ours.config.tied
    assert_equal(our_logits(ours, some_tokens()), their_logits(theirs, some_tokens()))
    theirs.lm_head.weight = theirs.model.embed_tokens.weight
    weights = {k: v.detach().clone() for k, v in theirs.state_dict().items()}
    from safetensors.torch import save_file

    save_file(weights, tmp_path / "model.safetensors")
    assert hf.load(tmp_path).config.tied  # stored twice, the same


def test_bfloat16_keeps_the_rotation_exact(tmp_path: Path):
    theirs = their_model("llama-llama3").bfloat16()
    theirs.save_pretrained(tmp_path)
    ours = hf.load(tmp_path, dtype=torch.bfloat16)
    assert ours.dtype == torch.bfloat16 and ours.inv_freq.dtype == torch.float32
    assert torch.equal(ours.inv_freq, inverse_frequencies(ours.config)[0])
    moved = hf.load(tmp_path).to(torch.bfloat16)
    assert torch.equal(moved.inv_freq, ours.inv_freq)
    assert torch.equal(our_logits(moved, some_tokens()), our_logits(ours, some_tokens()))
    difference = (our_logits(ours, some_tokens()) - their_logits(from_theirs(tmp_path), some_tokens())).abs()
    assert difference.mean() < 0.05
    hf.save(ours, tmp_path / "ours")
    again = hf.load(tmp_path / "ours", dtype=torch.bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), ours.parameters(), strict=True))


def test_nano_is_an_ordinary_folder(tmp_path: Path):
    from transformers import AutoConfig, GenerationConfig

    model = hf.init(nano_config(), seed=1)
    assert sum(p.numel() for p in model.parameters()) < 4e6
    write_tokenizer(tmp_path / "nano")
    hf.save(model, tmp_path / "nano")
    names = {p.name for p in (tmp_path / "nano").iterdir()}
    assert {"tokenizer.json", "chat_template.jinja", "generation_config.json", "model.safetensors"} <= names
    assert hf.read_config(tmp_path / "nano") == nano_config()
    assert AutoConfig.from_pretrained(tmp_path / "nano").model_type == "qwen3"
    assert GenerationConfig.from_pretrained(tmp_path / "nano").eos_token_id == 260
    tokens_BT = some_tokens(vocab=272)
    ours, theirs = our_logits(model, tokens_BT), their_logits(from_theirs(tmp_path / "nano"), tokens_BT)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_init_is_seeded_and_scaled():
    config = replace(nano_config(), tied=False, qkv_bias=True, o_bias=True)
    torch.manual_seed(0)
    a = hf.init(config, seed=5)
    torch.manual_seed(1)
    b, c = hf.init(config, seed=5), hf.init(config, seed=6)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.embedding.weight, c.embedding.weight)
    for name, p in a.named_parameters():
        if name.endswith("bias"):
            assert not p.any(), name
        elif p.dim() == 1:
            assert p.eq(1).all(), name
        else:
            std = 0.02 / 8**0.5 if name.endswith(("out.weight", "down.weight")) else 0.02
            assert p.std().item() == pytest.approx(std, rel=0.03), name


def test_saving_over_a_folder_replaces_it_whole(tmp_path: Path):
    folder = tmp_path / "model"
    write_tokenizer(folder)
    hf.save(hf.init(nano_config(), seed=1), folder, max_shard_bytes=100_000)
    assert (folder / "model.safetensors.index.json").is_file()
    hf.save(hf.init(nano_config(), seed=2), folder)
    assert not list(folder.glob("model-*")) and not (folder / "model.safetensors.index.json").exists()
    assert (folder / "tokenizer.json").is_file()  # carried over
    assert torch.equal(hf.load(folder).embedding.weight, hf.init(nano_config(), seed=2).embedding.weight)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]  # nothing temporary is left
    assert len({p.stat().st_mode for p in folder.iterdir()}) == 1  # whoever may read one file may read all
    other = tmp_path / "other"
    other.mkdir()
    assert folder.stat().st_mode == other.stat().st_mode


def test_source_gives_tokenizer_and_end_tokens(tmp_path: Path):
    theirs = their_model("qwen2")
    theirs.config.eos_token_id = [5, 6]
    theirs.save_pretrained(tmp_path / "source")
    (tmp_path / "source" / "chat_template.jinja").write_text("{{ messages }}")
    hf.save(hf.load(tmp_path / "source"), tmp_path / "copy", source=tmp_path / "source")
    assert json.loads((tmp_path / "copy" / "config.json").read_text())["eos_token_id"] == [5, 6]
    assert (tmp_path / "copy" / "chat_template.jinja").read_text() == "{{ messages }}"


def test_failed_save_leaves_nothing_and_harms_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = hf.init(nano_config(), seed=1)
    hf.save(model, tmp_path / "model")
    before = {p.name: p.read_bytes() for p in (tmp_path / "model").iterdir()}

    def full_disk(tensors, filename, metadata):
        Path(filename).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hf, "save_file", full_disk)
    with pytest.raises(UserError, match="No space left on device"):
        hf.save(model, tmp_path / "model")
    with pytest.raises(UserError, match="No space left on device"):
        hf.save(model, tmp_path / "other")
    assert {p.name: p.read_bytes() for p in (tmp_path / "model").iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_save_refuses_to_replace_other_peoples_files(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"thesis\.tex"):
        hf.save(hf.init(nano_config(), seed=1), tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_config_that_no_file_can_describe():
    for wrong in ({"qk_norm": False}, {"mlp_bias": True}, {"qkv_bias": True}):
        with pytest.raises(UserError, match="qwen3"):
            config_to_hf(replace(nano_config(), **wrong))
    two = ModelConfig("mistral", 8, 8, 8, 2, 2, 2, 4, 16, sliding_window=(4, None))
    with pytest.raises(UserError, match="sliding windows"):
        config_to_hf(two)
