"""Speed on one NVIDIA GPU, with random weights of Qwen3-0.6B's shape in bf16. Prints JSON.

python benchmarks/gpu.py [--out FILE] [--batches 1,8,32,128] [--no-transformers]
python benchmarks/gpu.py --tiny    checks this script's own logic, on a CPU too

Needs mull's core (torch, numpy, safetensors, tokenizers, jinja2) on the path, and transformers for the comparison:
PYTHONPATH=src is enough. Random weights almost never end a chain, so every chain has its full length.

decode     tokens/s of the engine, and the bytes that decoding must read (weights once a step, keys and values of every
           chain) as a share of the bandwidth that a large copy reaches on the same device
train      trained tokens/s, and model FLOP/s as a share of the device's bf16 peak (MFU)
rl_step    sampling and one optimiser step, mull's against transformers' generate with a plain policy-gradient loss on
           the same weights, bf16 on both sides
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mull.chat import Chat
from mull.engine.local import LocalEngine
from mull.learn import losses, optim
from mull.learn.forward import batch_logprobs
from mull.learn.pack import pack, to_device
from mull.models import hf
from mull.models.config import ModelConfig
from mull.models.flops import causal_context, train_flops
from mull.models.nano import write_tokenizer
from mull.models.transformer import Transformer
from mull.types import Sample, SamplingParams

PEAK_BF16 = {"H100": 989e12, "H200": 989e12, "B200": 2250e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}  # dense


def shape(tiny: bool) -> ModelConfig:
    """Qwen3-0.6B; `max_positions` is cut to what is measured, because the engine's tables are sized by it."""
    big = {"vocab_size": 151_936, "hidden_size": 1024, "intermediate_size": 3072, "num_layers": 28, "num_heads": 16}
    big |= {"num_kv_heads": 8, "head_dim": 128, "max_positions": 2048}
    small = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_layers": 2, "num_heads": 4}
    small |= {"num_kv_heads": 2, "head_dim": 16, "max_positions": 256}
    return ModelConfig(family="qwen3", rope_theta=1e6, qk_norm=True, tied=True, **(small if tiny else big))


def main() -> None:
    parser = argparse.ArgumentParser(description="decode, training and RL-step speed on one GPU")
    parser.add_argument("--tiny", action="store_true", help="a tiny shape, to check the script itself")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batches", default="", help="decode batch sizes; default 1,8,32,128")
    parser.add_argument("--peak", type=float, default=0.0, help="bf16 peak in TFLOP/s; default: known for the device")
    parser.add_argument("--no-transformers", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.device == "cpu" and not args.tiny:
        parser.error("there is no GPU here; --tiny checks the script on a CPU")
    tiny, device = args.tiny, torch.device(args.device)
    batches = [int(b) for b in (args.batches or ("1,2" if tiny else "1,8,32,128")).split(",")]
    config = shape(tiny)
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder) / "tokenizer")
        model = hf.init(config, 0, torch.bfloat16, device)
        model_folder = Path(folder) / "model"
        hf.save(model, model_folder, source=Path(folder) / "tokenizer")
        chat = Chat.load(model_folder)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        peak = 1e12 * args.peak or next((v for key, v in PEAK_BF16.items() if key in name), 0.0)
        report: dict[str, Any] = {
            "device": name,
            "torch": torch.__version__,
            "parameters": sum(p.numel() for p in model.parameters()),
            "copy_bandwidth": copy_bandwidth(device, 1 << (20 if tiny else 30)),
            "bf16_peak": peak or None,
            "bf16_matmul_reached": matmul_flops(device, 256 if tiny else 8192),
        }
        report["decode"] = [decode(model, chat, b, 8 if tiny else 256, report["copy_bandwidth"]) for b in batches]
        sizes = (2, 64) if tiny else (8, 1024)
        report["train"] = train(model, *sizes, peak)
        work = {"prompts": 2, "group": 2, "prompt_tokens": 16, "tokens": 8, "rows": 4}
        if not tiny:
            work = {"prompts": 16, "group": 8, "prompt_tokens": 128, "tokens": 384, "rows": 16}
        prompts = random_prompts(config, work["prompts"], work["prompt_tokens"])
        report["rl_step"] = {"work": work, "mull": rl_step(model, chat, prompts, work)}
        del model
        free(device)
        if not args.no_transformers:
            peer = report["rl_step"]["transformers"] = transformers_step(model_folder, device, prompts, work)
            mull = report["rl_step"]["mull"]
            report["rl_step"]["times_as_fast"] = peer["seconds"] / mull["seconds"]
    text = json.dumps(report, indent=1)
    if args.out:
        args.out.write_text(text + "\n")
    print(text)


# ------------------------------------------------------------------------------------------------ measuring


def timed(run: Callable[[], Any], device: torch.device, repeats: int = 3) -> float:
    """Median seconds of `run` after one call that does not count."""
    run()
    seconds = []
    for _ in range(repeats):
        synchronize(device)
        started = time.perf_counter()
        run()
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def copy_bandwidth(device: torch.device, size: int) -> float:
    """Bytes/s read and written by a large copy: what memory-bound work can hope for."""
    a, b = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * size / timed(lambda: b.copy_(a), device, 10)


def matmul_flops(device: torch.device, n: int) -> float:
    a, b = (torch.randn(n, n, dtype=torch.bfloat16, device=device) for _ in range(2))
    return 2 * n**3 / timed(lambda: a @ b, device, 10)


def random_prompts(config: ModelConfig, n: int, length: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, min(256, config.vocab_size), (n, length), generator=generator).tolist()


def engine_for(model: Transformer, chat: Chat, sequences: int, positions: int) -> LocalEngine:
    """Memory for that many chains of that length, and a page more for each."""
    c = model.config
    width = 4 if model.device.type == "cpu" else model.dtype.itemsize
    memory = sequences * (positions + 32) * 2 * c.num_layers * c.num_kv_heads * c.head_dim * width
    return LocalEngine(model, chat, max_sequences=sequences, memory_bytes=memory)


def sample(engine: LocalEngine, prompts: list[list[int]], tokens: int, group: int, seed: int = 0) -> list[list[Any]]:
    async def every() -> list[list[Any]]:
        params = [SamplingParams(max_tokens=tokens, seed=seed + i) for i in range(len(prompts))]
        return await asyncio.gather(*(engine.sample(p, q, group) for p, q in zip(prompts, params, strict=True)))

    return asyncio.run(every())


def decode(model: Transformer, chat: Chat, batch: int, tokens: int, bandwidth: float) -> dict[str, Any]:
    """The speed of decoding alone: the time for `tokens` tokens a chain less that for one, prompts cached in both."""
    c, length = model.config, 64
    engine = engine_for(model, chat, batch, length + tokens)
    prompts = random_prompts(c, batch, length)
    made: list[int] = []

    def run(n: int) -> None:
        made[:] = [len(x.tokens) for group in sample(engine, prompts, n, 1) for x in group]

    one = timed(lambda: run(1), model.device)
    every = timed(lambda: run(tokens), model.device)
    seconds, steps = max(every - one, 1e-9), max(made) - 1
    fresh = sum(made) - batch
    weights = model.dtype.itemsize * sum(p.numel() for p in model.parameters())
    width = 4 if model.device.type == "cpu" else model.dtype.itemsize
    a_key = 2 * c.num_layers * c.num_kv_heads * c.head_dim * width
    read = weights * steps + a_key * sum(causal_context(length, length + n - 1) for n in made)
    return {
        "batch": batch,
        "tokens_per_second": fresh / seconds,
        "milliseconds_a_step": 1e3 * seconds / steps,
        "bandwidth_share": read / seconds / bandwidth,
    }


def train(model: Transformer, rows: int, length: int, peak: float) -> dict[str, Any]:
    """One optimiser step on `rows` full sequences."""
    tokens = random_prompts(model.config, rows, length + 1)
    ones = [0.0] + [1.0] * length
    samples = [Sample(t, [0.0] * (length + 1), [False] * (length + 1), [0.0] * (length + 1), ce=ones) for t in tokens]
    optimizer = optim.adamw(model, 1e-6)
    seconds = timed(lambda: learn(model, optimizer, samples, rows * length), model.device)
    flops = train_flops(model.config, [length] * rows)
    return {
        "rows": rows,
        "tokens": length,
        "tokens_per_second": rows * length / seconds,
        "model_flops_per_second": flops / seconds,
        "mfu": flops / seconds / peak if peak else None,
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30 if model.device.type == "cuda" else None,
    }


def learn(model: Transformer, optimizer: torch.optim.Optimizer, samples: list[Sample], micro_tokens: int) -> float:
    for batch in pack(samples, micro_tokens):
        batch = to_device(batch, model.device)
        logprobs_BT, _ = batch_logprobs(model, batch)
        loss, _ = losses.loss(batch, logprobs_BT)
        loss.backward()
    return optim.step(model, optimizer, 1e-6).grad_norm


# ---------------------------------------------------------------------------------------------- an RL step


def coin(i: int) -> float:
    """An advantage for chain i: there is nothing to grade in random text."""
    return 1.0 if i % 2 else -1.0


def rl_step(model: Transformer, chat: Chat, prompts: list[list[int]], work: dict[str, int]) -> dict[str, Any]:
    chains = work["prompts"] * work["group"]
    engine = engine_for(model, chat, chains, work["prompt_tokens"] + work["tokens"])
    optimizer = optim.adamw(model, 1e-6)
    longest = -(-(work["prompt_tokens"] + work["tokens"] - 1) // 8) * 8  # pack pads columns to a multiple of 8
    seen, sampling = {"tokens": 0, "calls": 0}, []

    def step() -> None:
        started = time.perf_counter()
        groups = sample(engine, prompts, work["tokens"], work["group"], seed=1000 * seen["calls"])
        synchronize(model.device)
        sampling.append(time.perf_counter() - started)
        samples = []
        for prompt, completions in zip(prompts, groups, strict=True):
            for i, x in enumerate(completions):
                blank, n = [0.0] * len(prompt), len(x.tokens)
                mask = [False] * len(prompt) + [True] * n
                samples.append(Sample([*prompt, *x.tokens], blank + [coin(i)] * n, mask, [*blank, *x.logprobs]))
        assert math.isfinite(learn(model, optimizer, samples, work["rows"] * longest)), "the gradient is not finite"
        seen["tokens"] = sum(sum(s.mask) for s in samples)
        seen["calls"] += 1

    seconds = timed(step, model.device)
    return {"seconds": seconds, "sampling_seconds": statistics.median(sampling[1:]), "tokens": seen["tokens"]}


def transformers_step(folder: Path, device: torch.device, prompts: list, work: dict[str, int]) -> dict[str, Any]:
    """`generate`, then policy gradient on its chains with the Hugging Face model, as many rows at a time as mull."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa").to(device)
    model.generation_config.eos_token_id = None  # as good as never sampled; without it no chain is padded
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    prompts_BT = torch.tensor(prompts, device=device)
    width = prompts_BT.shape[1]
    seen, sampling = {"tokens": 0}, []

    def step() -> None:
        started = time.perf_counter()
        with torch.inference_mode():
            ids_BT = model.generate(
                prompts_BT,
                attention_mask=torch.ones_like(prompts_BT),
                do_sample=True,
                top_k=0,
                max_new_tokens=work["tokens"],
                num_return_sequences=work["group"],
                pad_token_id=0,
            ).clone()
        synchronize(device)
        sampling.append(time.perf_counter() - started)
        ids_BT = ids_BT.clone()  # outside inference mode, so that autograd may keep it
        count = ids_BT[:, width:].numel()
        sign_B1 = torch.tensor([coin(i) for i in range(len(ids_BT))], device=device)[:, None]
        for rows in torch.arange(len(ids_BT), device=device).split(work["rows"]):
            logits_BTV = model(ids_BT[rows], logits_to_keep=work["tokens"] + 1, use_cache=False).logits[:, :-1].float()
            target_BT1 = ids_BT[rows, width:, None]
            logprobs_BT = logits_BTV.gather(-1, target_BT1)[..., 0] - logits_BTV.logsumexp(-1)
            (-(sign_B1[rows] * logprobs_BT).sum() / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen["tokens"] = count

    seconds = timed(step, device)
    return {"seconds": seconds, "sampling_seconds": statistics.median(sampling[1:]), "tokens": seen["tokens"]}


if __name__ == "__main__":
    main()
