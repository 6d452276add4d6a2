"""The TRL side of `mull bench rl-step`: GRPOTrainer, generating with transformers. Run by the bench's interpreter.

python benchmarks/trl_step.py WORK.json '{"precision": "float32", "micro": 64}'

One optimiser step for each generation batch (so that TRL need not compute old log-probabilities), no KL, rewards from
the task's own check, no gradient checkpointing. precision: float32; bfloat16-autocast (float32 weights); bfloat16
(bf16 weights as well).
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import torch
import transformers
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from mull.chat import Chat
from mull.recipes.bench_worker import Clock, Pipe, read_work
from mull.tasks.load import load_task


class Turns(TrainerCallback):
    """Times whole steps (sampling, rewards, training), and waits for its turn between them."""

    def __init__(self, pipe: Pipe, work: dict[str, Any], seen: dict[str, int]):
        self.pipe, self.work, self.seen = pipe, work, seen
        self.steps = 0

    def on_step_begin(self, args, state, control, **kwargs):
        if self.steps >= self.work["warmups"] and self.pipe.wait() is None:
            raise SystemExit
        self.seen.update(tokens=0, chains=0, rewarded=0)
        self.clock = Clock()

    def on_step_end(self, args, state, control, **kwargs):
        result = {**self.clock.stop(), **self.seen}
        self.steps += 1
        if self.steps == self.work["warmups"]:
            versions = {"torch": torch.__version__, "transformers": transformers.__version__, "trl": trl.__version__}
            self.pipe.send(ready=True, trial=result, versions=versions)
        elif self.steps > self.work["warmups"]:
            self.pipe.send(**result)


def main() -> None:
    pipe = Pipe()
    work, setting = read_work(sys.argv)
    torch.set_num_threads(work["threads"])
    transformers.logging.set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(work["model"], padding_side="left")
    chat = Chat.load(work["model"])
    tasks = {name: load_task(name) for name in work["tasks"]}
    rows = [row for prompts in work["sets"] for row in prompts]
    problems = [next(tasks[r["task"]].stream(r["level"], "train", r["seed"])) for r in rows]
    prompts = [[{"role": "user", "content": problem.question.text}] for problem in problems]
    for row, prompt in zip(rows, prompts, strict=True):
        tokens = tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
        assert list(tokens) == row["tokens"], "the tokenizer gives another prompt than mull's"
    seen: dict[str, int] = {}

    def reward(completions: list, completion_ids: list[list[int]], problem: list[int], **rest: Any) -> list[float]:
        values = []
        for ids, index in zip(completion_ids, problem, strict=True):
            _, answer, closed = chat.split(ids)
            ended = bool(ids) and ids[-1] in work["end_ids"]
            verdict = tasks[rows[index]["task"]].check(problems[index], answer if closed and ended else "")
            values.append(verdict.reward or 0.0)
        seen["tokens"] += sum(map(len, completion_ids))
        seen["chains"] += len(completion_ids)
        seen["rewarded"] += int(sum(values))
        return values

    chains = work["groups"] * work["group_size"]
    micro = setting["micro"]
    weights = torch.bfloat16 if setting["precision"] == "bfloat16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(work["model"], dtype=weights, attn_implementation="sdpa")
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            use_cpu=not torch.cuda.is_available(),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=chains // micro,
            steps_per_generation=chains // micro,
            num_generations=work["group_size"],
            max_completion_length=work["max_tokens"],
            temperature=work["temperature"],
            top_p=1.0,
            top_k=0,
            beta=0.0,
            scale_rewards="none",
            learning_rate=work["lr"],
            lr_scheduler_type="constant",
            max_grad_norm=1.0,
            max_steps=len(work["sets"]),
            shuffle_dataset=False,
            gradient_checkpointing=False,
            bf16=setting["precision"] != "float32",
            logging_steps=10**6,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            seed=work["seed"],
        )
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": prompts, "problem": list(range(len(problems)))}),
            processing_class=tokenizer,
            callbacks=[Turns(pipe, work, seen)],
        )
        trainer.train()


if __name__ == "__main__":
    main()
