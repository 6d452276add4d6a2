"""STaR's loop: the hint is asked and never learnt, every iteration starts from the base, every option matters."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mull.chat import Chat
from mull.errors import UserError
from mull.ledger import Ledger
from mull.models import hf
from mull.progress import Progress
from mull.recipes import star as recipe
from mull.recipes.star import StarConfig, iteration_file, star
from mull.recipes.star_data import asked_of, drawn, summary
from mull.tasks.load import load_task
from tests.recipes.test_resume import broken_run, equal, finish, same_run
from tests.recipes.tiny import ENDS, save_tiny, weights

HINTED = '''

class OnlyThePlain(Any):
    """Judges nothing but plain questions."""
    name = "plain"

    def check(self, problem, answer):
        assert problem.question.text.isdigit()
        return super().check(problem, answer)

    def check_steps(self, problem, thought):
        assert problem.question.text.isdigit()
        return [StepVerdict("", len(thought) % 2 == 0)]
'''


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    (folder / "any.py").write_text(ENDS + HINTED)
    return save_tiny(folder / "base")


def config(base: Path, out: Path, **more: Any) -> StarConfig:
    small = StarConfig(
        model=str(base),
        out=out,
        tasks=(f"{base.parent / 'any.py'}:OnlyThePlain",),
        levels=(1,),
        iterations=2,
        problems=24,
        first_steps=3,
        times=1.0,
        plus=1,
        step_tokens=200,
        micro_tokens=256,
        temperature=1.0,  # a random model that is greedy says one thing for ever
        warmup=0,
        eval_problems=8,
        think_tokens=16,
        answer_tokens=8,
        checkpoint_every=2,
        compile=False,
        threads=1,
    )
    return replace(small, **more)


def run(cfg: StarConfig) -> list[dict[str, Any]]:
    star(cfg, mode="quiet")
    return [json.loads(line) for line in (cfg.out / "metrics.jsonl").open()]


def contains(tokens: Any, part: list[int]) -> bool:
    tokens = list(tokens)
    return any(tokens[i : i + len(part)] == part for i in range(len(tokens) - len(part) + 1))


# ------------------------------------------------------------------------------------------------ the loop


def test_the_loop(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What was asked, what was trained on and from which weights, and what it cost."""
    trained, starts, asked_with = [], [], []
    chat = Chat.load(base)
    original_pack, original_optimizers = recipe.pack, recipe.fresh_optimizers

    def pack(samples, most):
        trained.extend(samples)
        return original_pack(samples, most)

    def fresh(cfg, model):
        starts.append(torch.cat([p.detach().clone().flatten() for p in model.parameters()]))
        return original_optimizers(cfg, model)

    class Engine(recipe.LocalEngine):
        async def sample(self, prefix, params, n=1):
            asked_with.append((tuple(prefix), params.temperature))
            return await super().sample(prefix, params, n)

    monkeypatch.setattr(recipe, "pack", pack)
    monkeypatch.setattr(recipe, "fresh_optimizers", fresh)
    monkeypatch.setattr(recipe, "LocalEngine", Engine)
    cfg = config(base, tmp_path / "run")
    rows = run(cfg)

    marker = chat.encode("hint:")
    assert any(contains(prompt, marker) for prompt, _ in asked_with) and {t for _, t in asked_with} == {1.0}
    assert trained and not any(contains(s.tokens, marker) for s in trained)

    data = [[asked_of(json.loads(line)) for line in iteration_file(cfg.out, n).open()] for n in (1, 2)]
    for iteration, asked in enumerate(data, 1):
        assert len(asked) == 24
        for one in asked:
            assert list(one.prompt) == chat.prompt(one.question.text)
            assert (one.hinted is not None) == one.plain.failed
        [counts] = [row["asked"] for row in rows if row["iteration"] == iteration and "asked" in row]
        assert counts == json.loads(json.dumps(summary(asked, recipe.kept(cfg, iteration, asked))))
        assert counts["right"] + counts["with_hint"] + counts["unscorable"] == 24
        assert 0 < counts["learnt_rationalized"] <= counts["rationalized"] and counts["right"] > 0
        assert counts["learnt"] == counts["right"] + counts["learnt_rationalized"]
        assert counts["right_false"] <= counts["right_lines"] == counts["right"]
    ids = [{one.question.id for one in asked} for asked in data]
    assert len(ids[0]) == 24 and not ids[0] & ids[1], "each iteration asks afresh"
    learnt = [{(*one.prompt, *one.tokens) for one in recipe.kept(cfg, n, data[n - 1])} for n in (1, 2)]
    assert {tuple(s.tokens) for s in trained} <= learnt[0] | learnt[1]

    assert len(starts) == 3 and all(torch.equal(start, weights(base)) for start in starts), "always from the base"
    assert [r["step"] for r in rows] == list(range(8)) and [r["iteration"] for r in rows] == [0, 1, 1, 1, 2, 2, 2, 2]
    assert [r["step"] for r in rows if "eval" in r] == [0, 3, 7]
    assert all(r["grad_norm"] > 0 for r in rows[1:])
    assert not torch.equal(weights(cfg.out / "model"), weights(base))
    last = torch.load(cfg.out / "checkpoints" / "step_000007" / "state.pt", weights_only=True)
    assert all(torch.equal(v, hf.load(cfg.out / "model").state_dict()[k]) for k, v in last["model"].items())

    phases = Ledger.restore(last["ledger"]).phases
    assert set(phases) == {"sampling", "training", "evaluation"}
    chains = [c for asked in data for one in asked for c in (one.plain, one.hinted) if c is not None]
    assert phases["sampling"].sampled_tokens == sum(len(c.tokens) for c in chains), "hinted chains are paid for, too"
    assert phases["training"].trained_tokens == sum(len(s.tokens) for s in trained)
    assert phases["sampling"].seconds > 0 and phases["sampling"].flops > 0
    assert rows[-1]["flops"] == phases["sampling"].flops + phases["training"].flops


def test_without_restart_the_second_iteration_goes_on(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    starts, original = [], recipe.fresh_optimizers

    def fresh(cfg, model):
        starts.append(torch.cat([p.detach().clone().flatten() for p in model.parameters()]))
        return original(cfg, model)

    monkeypatch.setattr(recipe, "fresh_optimizers", fresh)
    cfg = config(base, tmp_path / "run", restart=False)
    run(cfg)
    first = torch.load(cfg.out / "checkpoints" / "step_000007" / "state.pt", weights_only=True)["optimizers"][0]
    assert torch.equal(starts[1], weights(base)) and not torch.equal(starts[2], weights(base))
    assert all(int(s["step"]) == 4 for s in first["state"].values()), "the optimiser is fresh in either case"


VARIATIONS: dict[str, dict[str, Any]] = {
    "problems": {"problems": 20},
    "rationalize": {"rationalize": False},
    "hint": {"hint": "{question} ({answer})"},
    "temperature": {"temperature": 0.7},
    "first_steps": {"first_steps": 4},
    "times": {"times": 2.0},
    "plus": {"plus": 0},
    "rationalized_share": {"rationalized_share": 0.3},
    "clean_lines": {"clean_lines": True},
    "history": {"history": 2},
    "replay": {"replay": "addition", "replay_share": 0.3},
    "optimizer": {"optimizer": "muon"},
    "lr": {"lr": 3e-3},
    "warmup": {"warmup": 3},
    "weight_decay": {"weight_decay": 10.0},
    "max_grad_norm": {"max_grad_norm": 0.01},
    "dtype": {"dtype": "bfloat16"},
    "step_tokens": {"step_tokens": 120},
    "think_tokens": {"think_tokens": 12},
    "answer_tokens": {"answer_tokens": 2},
    "seed": {"seed": 1},
}
ELSEWHERE = {
    *("model", "out", "tasks", "levels", "iterations", "restart", "balance", "replay_share"),  # in this file
    *("eval_problems", "micro_tokens"),
    *("checkpoint_every", "max_sequences", "threads"),  # whatever they are, the run is the same
    *("compile", "device"),  # tests/models/test_compiled.py, tests/recipes/test_device.py
}


def test_no_option_is_left_untested():
    assert VARIATIONS.keys() | ELSEWHERE == {f.name for f in fields(StarConfig)}


@pytest.fixture(scope="module")
def plain_run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    return weights(star(config(base, tmp_path_factory.mktemp("plain") / "run", eval_problems=0), mode="quiet"))


@pytest.mark.parametrize("name", VARIATIONS)
def test_every_option_changes_the_model(base: Path, tmp_path: Path, plain_run: torch.Tensor, name: str):
    cfg = config(base, tmp_path / "run", eval_problems=0, **VARIATIONS[name])
    assert not torch.equal(weights(star(cfg, mode="quiet")), plain_run)


def test_balance_learns_more_from_the_level_with_few_chains(base: Path):
    cfg = config(base, Path("unused"), balance=True)
    rows = [{"level": 1}] * 9 + [{"level": 2}]
    asked = [
        {
            "question": {"id": "q", "task": "t", "text": "1", "level": row["level"]},
            "prompt": [1],
            "plain": {"tokens": [2], "ended": True, "correct": True, "answer": ""},
            "hinted": None,
        }
        for row in rows
    ]
    for balance, expected in ((True, {"t/1": 30, "t/2": 30}), (False, {"t/1": 54, "t/2": 6})):
        documents, _ = recipe.data(replace(cfg, balance=balance), 1, asked)
        assert Counter(documents(i).cell for i in range(60)) == expected


def test_replayed_documents_take_their_share_and_the_others_keep_their_order(base: Path):
    chat, task = Chat.load(base), load_task("addition")
    cfg = config(base, Path("unused"), replay="addition", replay_share=0.25)
    kept = [recipe.Kept("t/1", (1,), (i,), False) for i in range(100)]
    mixture = recipe.Mixture(kept, 0)
    seen = [recipe.document(cfg, 1, i, mixture, task, chat) for i in range(80)]  # type: ignore[arg-type]
    own = [s.tokens[1] for s in seen if len(s.tokens) == 2]
    assert own == [mixture(i).tokens[0] for i in range(60)], "none is skipped"
    assert len({tuple(s.tokens) for s in seen if len(s.tokens) > 2}) > 10
    again = recipe.document(cfg, 1, 3, mixture, task, chat)  # type: ignore[arg-type]
    assert again.tokens == seen[3].tokens and len(again.tokens) > 2
    assert recipe.document(cfg, 2, 3, mixture, task, chat).tokens != seen[3].tokens  # type: ignore[arg-type]


def test_problems_are_of_the_train_split_and_levels_come_equally_often():
    tasks = [load_task("addition"), load_task("chain")]
    found = [drawn(tasks, (1, 3), 0, 1, i) for i in range(80)]
    assert Counter((h.task.name, h.problem.question.level) for h in found) == {
        (name, level): 20 for name in ("addition", "chain") for level in (1, 3)
    }
    for task in tasks:
        for level in (1, 3):
            test = {p.question.id for p in task.up_to(level, "test", 5, 200)}
            assert not test & {h.problem.question.id for h in found}
    assert drawn(tasks, (1, 3), 0, 1, 0).problem == found[0].problem
    assert drawn(tasks, (1, 3), 0, 2, 1).problem != found[1].problem != drawn(tasks, (1, 3), 1, 1, 1).problem


# ------------------------------------------------------------------------------------------- resuming


def test_killed_and_resumed_is_bitwise_the_same(base: Path, tmp_path: Path):
    def cfg(name: str) -> StarConfig:
        return config(base, tmp_path / name, problems=40, iterations=3, eval_problems=4)

    seconds = finish(star, cfg("whole"))
    broken_run(star, cfg("broken"), 4, random.Random(0), seconds / 8)
    same_run(tmp_path / "whole", tmp_path / "broken")
    for n in (1, 2, 3):
        rows = [[json.loads(x) for x in iteration_file(tmp_path / d, n).open()] for d in ("whole", "broken")]
        assert len(rows[0]) == 40
        equal(rows[0], rows[1])


def test_a_round_that_was_torn_is_asked_again_and_one_that_was_not_is_kept(base: Path, tmp_path: Path):
    """Rows of whole rounds are taken as they are; the rest is sampled as it would have been."""
    cfg = config(base, tmp_path / "whole", problems=520, iterations=1, eval_problems=0)
    run(cfg)
    lines = iteration_file(cfg.out, 1).read_text().splitlines(keepends=True)
    broken = replace(cfg, out=tmp_path / "broken")
    iteration_file(broken.out, 1).parent.mkdir(parents=True)
    marked = json.loads(lines[0])
    marked["plain"]["error"] = "was here"
    iteration_file(broken.out, 1).write_text(json.dumps(marked) + "\n" + "".join(lines[1:515]))
    run(broken)
    found = [json.loads(line) for line in iteration_file(broken.out, 1).open()]
    equal(found, [marked, *map(json.loads, lines[1:])])
    assert torch.equal(weights(cfg.out / "model"), weights(broken.out / "model"))


def test_more_iterations_can_be_asked_for_afterwards(base: Path, tmp_path: Path):
    whole, later = (config(base, tmp_path / name, eval_problems=0) for name in ("whole", "later"))
    run(whole)
    run(replace(later, iterations=1))
    star(later, resume=True, mode="quiet")
    assert torch.equal(weights(whole.out / "model"), weights(later.out / "model"))
    with pytest.raises(UserError, match="problems"):
        star(replace(later, problems=25), resume=True, mode="quiet")


# ------------------------------------------------------------------------------------------------ what is wrong


def test_a_model_that_solves_nothing_is_told_so(base: Path, tmp_path: Path):
    cfg = config(base, tmp_path / "run", tasks=(f"{base.parent / 'any.py'}:Same",), eval_problems=0)
    with pytest.raises(UserError, match="iteration 1: none of 24 problems was solved, nor with its answer as a hint"):
        run(cfg)
    with pytest.raises(UserError, match="none of 24 problems was solved, so"):
        run(replace(cfg, out=tmp_path / "without", rationalize=False))


def test_what_cannot_be_judged_is_neither_learnt_nor_asked_again(base: Path, tmp_path: Path):
    cfg = config(base, tmp_path / "run", tasks=(f"{base.parent / 'any.py'}:Picky",), eval_problems=0, problems=60)
    rows = run(replace(cfg, iterations=1))
    asked = [asked_of(json.loads(line)) for line in iteration_file(cfg.out, 1).open()]
    unknown = [one for one in asked if one.plain.ended and one.plain.correct is None]
    assert unknown and not any(one.hinted for one in unknown)
    hinted = [one.hinted for one in asked if one.hinted]
    counted = len(unknown) + sum(c.ended and c.correct is None for c in hinted)
    assert rows[0]["asked"]["unscorable"] == counted and rows[0]["asked"]["learnt"] < 60
    errors = {one.plain.error.split(":")[0] for one in unknown}
    assert errors <= {"a third of the answers cannot be judged", "the grader crashed"} and errors


def test_a_hint_that_helps_nobody_is_said(capsys: pytest.CaptureFixture[str]):
    counts = {"with_hint": 9, "rationalized": 0, "unscorable": 0}
    with Progress("x", 1, mode="quiet") as progress:
        recipe.complain(counts, 3, progress)
        recipe.complain({**counts, "rationalized": 1}, 4, progress)
    said = capsys.readouterr().out
    assert "iteration 3: none of 9 problems was solved with its answer as a hint" in said and "iteration 4" not in said


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"hint": "{answer}"}, "hint="),
        ({"iterations": 0}, "iterations"),
        ({"first_steps": 0}, "first_steps"),
        ({"rationalized_share": 1.5}, "rationalized_share"),
        ({"replay_share": 1.0}, "replay_share"),
        ({"levels": (7,), "eval_problems": 0}, "task plain has no level among"),
        ({"think_tokens": 250}, "do not fit into"),
        ({"micro_tokens": 40}, "do not fit into"),
        ({"hint": "{question}" + "x" * 250 + "{answer}"}, "with its hint"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(base: Path, tmp_path: Path, wrong: Any, sentence: str):
    with pytest.raises(UserError, match=sentence):
        star(config(base, tmp_path / "run", **wrong), mode="quiet")
    assert not (tmp_path / "run").exists()


def test_the_schedule_is_the_paper_s_unless_it_is_given():
    assert StarConfig().schedule == (300, 1.0, 20) and StarConfig(rationalize=False).schedule == (40, 1.2, 0)
    assert StarConfig(first_steps=7, times=1.5, plus=2).schedule == (7, 1.5, 2)
    assert StarConfig(rationalize=False, iterations=3).ends == [0, 40, 88, 146]
    assert StarConfig(iterations=16).ends[-1] == 7200
