"""The nano preset: a Qwen3-shaped model small enough for two CPU cores, over bytes, in an ordinary Hugging Face folder.

Token ids: byte b is id b; control tokens follow from 256; reserved ids fill the vocabulary up to a multiple of 16.
A conversation is `<|system|>S<|end|><|user|>Q<|end|><|assistant|><think>THOUGHT</think>ANSWER<|end|>`, without spaces
or newlines between. The thoughts of turns before the last user message are dropped, as Qwen3's template does.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from mull.errors import UserError
from mull.models.config import ModelConfig

CONTROL_TOKENS = ("<|pad|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<think>", "</think>")
VOCAB_SIZE = 272
CONTROL_IDS = {token: 256 + i for i, token in enumerate(CONTROL_TOKENS)}

CHAT_TEMPLATE = """\
{%- set ns = namespace(question=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.question = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}
{%- if m.role == 'system' -%}
    {%- if not loop.first -%}{{- raise_exception('a system message must come first') -}}{%- endif -%}
    {{- '<|system|>' + m.content + '<|end|>' -}}
{%- elif m.role == 'user' -%}
    {{- '<|user|>' + m.content + '<|end|>' -}}
{%- elif m.role == 'assistant' -%}
    {%- set thought = m.reasoning_content if m.reasoning_content is string else '' -%}
    {%- set answer = m.content -%}
    {%- if '</think>' in answer and not thought -%}
        {%- set thought = answer.split('</think>')[0].split('<think>')[-1] -%}
        {%- set answer = answer.split('</think>')[1:] | join('</think>') -%}
    {%- endif -%}
    {{- '<|assistant|>' -}}
    {%- if loop.index0 > ns.question -%}{{- '<think>' + thought + '</think>' -}}{%- endif -%}
    {{- answer + '<|end|>' -}}
{%- else -%}
    {{- raise_exception('the role ' + m.role + ' is unknown: use system, user or assistant') -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant|><think>' -}}
    {%- if enable_thinking is defined and enable_thinking is false -%}{{- '</think>' -}}{%- endif -%}
{%- endif -%}
"""


def nano_config() -> ModelConfig:
    """About 0.9 M parameters: 4 layers of width 128."""
    return ModelConfig(
        family="qwen3",
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=384,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        max_positions=1024,
        rope_theta=10_000.0,
        qk_norm=True,
        tied=True,
    )


def byte_characters() -> list[str]:
    """The printable characters that byte-level BPE (GPT-2, Radford et al. 2019) writes for bytes 0 to 255."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [b for b in range(256) if b not in shown]
    return [chr(b) if b in shown else chr(256 + hidden.index(b)) for b in range(256)]


def _added_token(token_id: int, content: str) -> dict[str, Any]:
    # As in Qwen3, the thought tags are not "special": skip_special_tokens leaves them in a decoded text.
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": token_id, "content": content, **plain, "special": content not in ("<think>", "</think>")}


def write_tokenizer(folder: Path | str) -> None:
    """Writes nano's tokenizer.json, tokenizer_config.json, chat_template.jinja and generation_config.json."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    reserved = [f"<|reserved_{i}|>" for i in range(VOCAB_SIZE - 256 - len(CONTROL_TOKENS))]
    added = [_added_token(256 + i, content) for i, content in enumerate((*CONTROL_TOKENS, *reserved))]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {character: b for b, character in enumerate(byte_characters())},
            "merges": [],
        },
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|end|>",
        "pad_token": "<|pad|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": nano_config().max_positions,
        "added_tokens_decoder": {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in added},
    }
    generation = {"eos_token_id": CONTROL_IDS["<|end|>"], "pad_token_id": CONTROL_IDS["<|pad|>"], "do_sample": True}
    for name, content in (
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", tokenizer_config),
        ("generation_config.json", generation),
    ):
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def shipped_folder() -> Path:
    """The trained nano model that ships inside the package."""
    folder = Path(str(files("mull") / "nano"))
    if not (folder / "config.json").is_file():
        raise UserError(f"the nano model is missing at {folder}: reinstall mull, or train it with runs/nano.sh")
    return folder


def model_folder(name: str) -> Path:
    """The folder of a model as people name it: "nano" is the one that ships."""
    return shipped_folder() if name == "nano" else Path(name)
