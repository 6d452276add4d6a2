"""Fine-tuning: which tokens are learnt, what a row may look like, and that the loss falls."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mull.chat import Chat
from mull.errors import UserError
from mull.models import hf
from mull.models.nano import write_tokenizer
from mull.recipes.sft import SFTConfig, document_of, rows, sft, solutions
from mull.tasks.load import load_task
from mull.types import Sample
from tests.recipes.tiny import save_tiny, weights


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Chat.load(folder)


def learnt(sample: Sample, chat: Chat) -> tuple[str, str]:
    """(context, what has a weight) as text; the weights must be one piece at the end."""
    assert sample.ce is not None and not any(sample.mask) and not any(sample.advantages)
    start = next(i for i, weight in enumerate(sample.ce) if weight)
    assert all(weight == 1.0 for weight in sample.ce[start:])
    return chat.decode(sample.tokens[:start]), chat.decode(sample.tokens[start:])


@pytest.mark.parametrize(
    ("row", "context", "target"),
    [
        (
            {"question": "1+1", "thought": "one more", "answer": "2"},
            "<|user|>1+1<|end|><|assistant|><think>",
            "one more</think>2<|end|>",
        ),
        (
            {"question": "1+1", "answer": "one more</think>2"},  # the template has opened it
            "<|user|>1+1<|end|><|assistant|><think>",
            "one more</think>2<|end|>",
        ),
        ({"prompt": "1+1", "answer": 2}, "<|user|>1+1<|end|><|assistant|><think></think>", "2<|end|>"),
        (
            {"question": "1+1", "answer": "<think>one more</think>\n2"},
            "<|user|>1+1<|end|><|assistant|><think>",
            "one more</think>2<|end|>",
        ),
        (
            {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}], "answer": "a"},
            "<|system|>s<|end|><|user|>q<|end|><|assistant|><think></think>",
            "a<|end|>",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "q"},
                    {"role": "assistant", "content": "a", "reasoning_content": "t"},
                ]
            },
            "<|user|>q<|end|><|assistant|><think>",
            "t</think>a<|end|>",
        ),
        (
            {"question": "<|end|>", "thought": "<|end|></think>", "answer": "x"},
            "<|user|><|end|><|end|><|assistant|><think>",
            "<|end|></think></think>x<|end|>",
        ),
    ],
)
def test_thought_answer_and_end_are_learnt_and_the_question_is_context(
    chat: Chat, row: dict[str, Any], context: str, target: str
):
    sample = document_of(row, chat)
    assert learnt(sample, chat) == (context, target)
    assert sample.tokens[-1] == chat.turn_end and sample.tokens.count(chat.turn_end) == context.count("<|end|>") + 1 - (
        row.get("question") == "<|end|>"
    )  # what a text spells is no control token


@pytest.mark.parametrize("source", ["solver", "imperfect"])
def test_solutions_are_the_task_s_own_and_of_the_train_split(chat: Chat, source: Any):
    task = load_task("chain")
    cfg = SFTConfig(tasks=("chain",), levels=(1, 2), source=source)
    document = solutions(cfg, [task], chat, 1000)
    again = solutions(cfg, [task], chat, 1000)
    wrong_steps, levels = 0, set()
    test = {p.question.text for level in (1, 2) for p in task.up_to(level, "test", 0, 300)}
    for i in range(60):
        sample = document(i)
        assert sample.tokens == again(i).tokens
        context, target = learnt(sample, chat)
        question = context.removeprefix("<|user|>").partition("<|end|>")[0]
        assert question not in test
        levels.add(question.count(";"))
        thought = target.partition("</think>")[0]
        problem = find(task, question)
        wrong_steps += sum(step.ok is False for step in task.check_steps(problem, thought))
    assert len(levels) > 1
    assert (wrong_steps == 0) == (source == "solver")
    assert document(0).tokens != document(1).tokens


def find(task: Any, text: str) -> Any:
    """The problem of a question that was drawn somewhere: a chain's check needs its text and answer only."""
    from mull.types import Problem, Question, Reference

    drawn = next(task.stream(1, "train", 0))
    return Problem(Question("x", task.name, text, 1), Reference("0", drawn.reference.data))


def test_every_epoch_holds_every_row_once_in_an_order_of_its_own(chat: Chat, tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"question": str(i), "answer": str(i)}) for i in range(20)) + "\n\n")
    document = rows(path, chat, 100, seed=0)
    epochs = [[tuple(document(20 * epoch + i).tokens) for i in range(20)] for epoch in range(3)]
    assert len(set(epochs[0])) == 20 and set(epochs[0]) == set(epochs[1]) == set(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2]
    fresh = rows(path, chat, 100, seed=0)
    assert [tuple(fresh(i).tokens) for i in range(40, 60)] == epochs[2], "a resumed run reads on in the same order"
    assert [tuple(rows(path, chat, 100, seed=1)(i).tokens) for i in range(20)] != epochs[0]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b'{"question": "1+1"', "line 2: not valid JSON"),
        (b"[1, 2]", "line 2: not a JSON object"),
        (b'{"answer": "2"}', "line 2: no question"),
        (b'{"question": "1+1"}', "line 2: no answer"),
        (b'{"question": "1+1", "answer": 2.5}', "line 2: no answer"),
        (b'{"question": 3, "answer": "2"}', "line 2: the question must be a text"),
        (b'{"question": "1", "thought": 3, "answer": "2"}', "line 2: the question must be a text"),
        (b'{"question": "' + b"1" * 200 + b'", "answer": "2"}', "tokens, and at most 100 fit"),
        (b'{"question": "\xff", "answer": "2"}', "line 2: not valid JSON in UTF-8"),
        (b'{"messages": [{"role": "nobody", "content": "x"}], "answer": "2"}', "line 2: "),
        (b"[" * 100_000, "line 2: not valid JSON"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(chat: Chat, tmp_path: Path, line: bytes, sentence: str):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"question": "1", "answer": "1"}\n' + line + b"\n")
    with pytest.raises(UserError) as caught:
        rows(path, chat, 100, 0)
    assert f"{path}, line 2: " in str(caught.value) and sentence in str(caught.value)


def test_a_file_without_rows_or_that_is_not_there_is_named(chat: Chat, tmp_path: Path):
    with pytest.raises(UserError, match=r"gone\.jsonl cannot be read"):
        rows(tmp_path / "gone.jsonl", chat, 100, 0)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="holds no rows"):
        rows(tmp_path / "empty.jsonl", chat, 100, 0)


def config(tmp_path: Path, **changes: Any) -> SFTConfig:
    base: dict[str, Any] = dict(
        model=str(save_tiny(tmp_path / "base")),
        out=tmp_path / "run",
        tasks=("chain",),
        levels=(1,),
        steps=25,
        step_tokens=600,
        lr=2e-2,
        warmup=3,
        eval_problems=4,
        eval_samples=1,
        think_tokens=32,
        answer_tokens=8,
        compile=False,
        threads=1,
    )
    return SFTConfig(**{**base, **changes})


def test_the_loss_falls_and_what_was_learnt_is_said(tmp_path: Path, chat: Chat):
    """Twelve rows with one answer: after 60 passes the model gives that answer to a question of the set."""
    data = tmp_path / "rows.jsonl"
    data.write_text(
        "".join(json.dumps({"question": f"{i}?", "thought": "hm", "answer": "yes"}) + "\n" for i in range(12))
    )
    cfg = config(tmp_path, data=data, tasks=())
    folder = sft(cfg, mode="quiet")
    metrics = [json.loads(line) for line in (cfg.out / "metrics.jsonl").open()]
    assert metrics[0]["loss"] > 4 and metrics[-1]["loss"] < 0.3
    assert [row["step"] for row in metrics] == list(range(1, 26))
    assert all("eval" not in row for row in metrics), "without tasks there is nothing held out"

    import asyncio

    from mull.engine.local import LocalEngine
    from mull.types import SamplingParams

    engine = LocalEngine(hf.load(folder), Chat.load(folder))
    [said] = asyncio.run(engine.sample(chat.prompt("3?"), SamplingParams(20, temperature=0)))
    assert chat.split(said.tokens) == ("hm", "yes", True) and said.tokens[-1] == chat.turn_end


OPTIONS: list[dict[str, Any]] = [
    {},
    {"tasks": ("countdown",)},
    {"levels": (2,)},
    {"source": "imperfect"},
    {"steps": 5},
    {"step_tokens": 300},
    {"lr": 1e-2},
    {"warmup": 4},
    {"final_lr": 1e-2},
    {"weight_decay": 5.0},
    {"max_grad_norm": 0.01},
    {"dtype": "bfloat16"},
    {"seed": 1},
]


def test_every_option_changes_what_is_learnt(tmp_path: Path):
    base, found = save_tiny(tmp_path / "shared"), []
    for number, options in enumerate(OPTIONS):
        more = {"steps": 3, "warmup": 1, "eval_problems": 0, "max_grad_norm": 100.0, **options}
        folder = sft(replace(config(tmp_path), model=str(base), out=tmp_path / f"run{number}", **more), mode="quiet")
        found.append(weights(folder))
    same = [(OPTIONS[i], OPTIONS[j]) for i in range(len(found)) for j in range(i) if torch.equal(found[i], found[j])]
    assert not same
    elsewhere = {"model", "out", "data", "micro_tokens", "checkpoint_every", "compile", "device", "threads"}
    evaluation = {"eval_every", "eval_problems", "eval_samples", "think_tokens", "answer_tokens"}
    assert {name for options in OPTIONS for name in options} | elsewhere | evaluation == {
        f.name for f in fields(SFTConfig)
    }


def test_it_measures_before_and_after(tmp_path: Path):
    cfg = config(tmp_path, steps=3)
    sft(cfg, mode="quiet")
    metrics = [json.loads(line) for line in (cfg.out / "metrics.jsonl").open()]
    assert [row["step"] for row in metrics if "eval" in row] == [0, 3]
    assert metrics[-1]["eval"]["all"]["n"] == 4 and set(metrics[-1]["eval"]["tasks"]) == {"chain"}
    assert metrics[-1]["flops"] > metrics[1]["flops"] > metrics[0]["flops"] == 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"tasks": ()}, "nothing to learn from"),
        ({"levels": (77,), "eval_problems": 0}, "no level among"),
        ({"tasks": ("set.jsonl",), "levels": (0,)}, "has no worked solutions"),
        ({"data": Path("gone.jsonl")}, "gone.jsonl cannot be read"),
        ({"micro_tokens": 30}, "at most 30 fit"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], sentence: str
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set.jsonl").write_text('{"question": "1+1", "answer": "2"}\n')
    with pytest.raises(UserError) as caught:
        sft(config(tmp_path, **changes), mode="quiet")
    assert sentence in str(caught.value)
    assert not (tmp_path / "run").exists()
