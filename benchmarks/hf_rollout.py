"""The transformers side of `mull bench rollout`: `generate`, or continuous batching. Run by the bench's interpreter.

python benchmarks/hf_rollout.py WORK.json '{"system": "generate", "dtype": "float32", "batch": 384}'

`batch` is the chains of one padded batch (generate), or the requests that share a step (continuous batching). Both
return the log-probabilities of what they sampled, because reinforcement learning needs them.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from mull.recipes.bench_worker import Pipe, read_work, serve, until_end


def main() -> None:
    pipe = Pipe()
    work, setting = read_work(sys.argv)
    torch.set_num_threads(work["threads"])
    torch.manual_seed(work["seed"])
    transformers.logging.set_verbosity_error()
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)
    dtype = getattr(torch, setting["dtype"])
    model = AutoModelForCausalLM.from_pretrained(work["model"], dtype=dtype, attn_implementation="sdpa").eval()
    tokenizer = AutoTokenizer.from_pretrained(work["model"], padding_side="left")
    run = generate if setting["system"] == "generate" else continuous

    def one_round(number: int) -> dict[str, Any]:
        prompts = [p["tokens"] for p in work["sets"][number]]
        lengths = run(model, tokenizer, prompts, work, setting)
        assert len(lengths) == len(prompts) * work["group_size"], "some requests were lost"
        return {"tokens": sum(lengths), "chains": len(lengths)}

    serve(pipe, work, one_round, versions={"torch": torch.__version__, "transformers": transformers.__version__})


def generation(work: dict[str, Any], tokenizer: Any) -> GenerationConfig:
    return GenerationConfig(
        do_sample=True,
        temperature=work["temperature"],
        top_k=0,
        top_p=1.0,
        max_new_tokens=work["max_tokens"],
        num_return_sequences=work["group_size"],
        eos_token_id=work["end_ids"],
        pad_token_id=tokenizer.pad_token_id,
    )


@torch.inference_mode()
def generate(model: Any, tokenizer: Any, prompts: list, work: dict[str, Any], setting: dict[str, Any]) -> list[int]:
    """Static batches: every batch runs until its longest chain has ended."""
    lengths: list[int] = []
    at_once = max(1, setting["batch"] // work["group_size"])
    for start in range(0, len(prompts), at_once):
        inputs = tokenizer.pad({"input_ids": prompts[start : start + at_once]}, return_tensors="pt")
        out = model.generate(
            **inputs,
            generation_config=generation(work, tokenizer),
            output_logits=True,
            return_dict_in_generate=True,
        )
        sampled_BT = out.sequences[:, inputs["input_ids"].shape[1] :]
        logprobs = [  # one position at a time: the stacked logits need not exist
            (logits_BV.float() / work["temperature"]).log_softmax(-1).gather(-1, sampled_BT[:, t, None])
            for t, logits_BV in enumerate(out.logits)
        ]
        assert torch.cat(logprobs, -1).shape == sampled_BT.shape
        lengths += [len(until_end(row, work["end_ids"])) for row in sampled_BT.tolist()]
    return lengths


def continuous(model: Any, tokenizer: Any, prompts: list, work: dict[str, Any], setting: dict[str, Any]) -> list[int]:
    """Continuous batching with paged memory and shared prefixes; its manager stays between rounds."""
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    page = 32
    longest = max(len(p["tokens"]) for prompts_of_set in work["sets"] for p in prompts_of_set) + work["max_tokens"]
    pages = -(-longest // page) + 1
    config = ContinuousBatchingConfig(
        page_size=page,
        num_blocks=pages * (setting["batch"] + len(prompts)),  # room for all that run, and for waiting groups' prompts
        max_batch_tokens=max(512, setting["batch"]),
        max_requests_per_batch=setting["batch"],
        allow_block_sharing=True,
        return_logprobs=True,
        use_cuda_graph=model.device.type == "cuda",
        seed=work["seed"],
    )
    outputs = model.generate_batch(
        prompts,
        generation_config=generation(work, tokenizer),
        continuous_batching_config=config,
        progress_bar=False,
        persistent_manager=True,
    )
    for output in outputs.values():
        if output.error:
            raise RuntimeError(output.error)
        assert len(output.logprobs) == len(output.generated_tokens)
    return [len(until_end(list(output.generated_tokens), work["end_ids"])) for output in outputs.values()]


if __name__ == "__main__":
    main()
