"""Training scorers: every kind from traces to a folder that a search can load, and the same again after a kill."""

from __future__ import annotations

import asyncio
import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest

from mull.chat import Chat
from mull.errors import UserError
from mull.evals.evaluate import held_out
from mull.learn.critique import MARKER, parse_critique
from mull.learn.values import ValueSample
from mull.models.nano import shipped_folder
from mull.models.value import read_info
from mull.recipes import reward_data as data
from mull.recipes.reward import AGGREGATE, RewardConfig, prepared, reward
from mull.recipes.reward_lessons import lessons, noise, together
from mull.scorers.critic import Critic
from mull.scorers.value import ValueScorer, load_scorer
from mull.search.choose import AGGREGATES
from mull.tasks.load import load_task
from mull.types import Sample
from tests.recipes.test_resume import broken_run, finish, same_run
from tests.recipes.tiny import ENDS, fitting, save_tiny

LINES = (
    ENDS
    + '''

class Lines(Any):
    """A line is true by its text alone, three times out of four; so is an answer."""
    name = "lines"

    def check(self, problem, answer):
        return Verdict(bool(answer) and crc32(answer.encode()) % 4 > 0, answer[:1] or None)

    def check_steps(self, problem, thought):
        lines = [line for line in thought.split("\\n") if line.strip()]
        oks = [crc32(line.encode()) % 4 > 0 for line in lines]
        return [StepVerdict(line, ok, why="" if ok else "because") for line, ok in zip(lines, oks)]
'''
)
KINDS = ("orm", "prm", "prm-rollouts", "omega", "pairwise", "critic")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "any.py").write_text(LINES)
    return save_tiny(tmp_path / "base", 3)


def config(base: Path, out: str, **options) -> RewardConfig:
    options = {"tasks": (f"{base.parent / 'any.py'}:Lines",), "kind": "orm", **options}
    small = dict(
        model=str(base),
        out=base.parent / out,
        traces=base.parent / "traces",
        levels=(1,),
        problems=6,
        samples=4,
        think_tokens=24,
        answer_tokens=8,
        rollouts=2,
        rollout_chains=2,
        epochs=2,
        step_tokens=400,
        eval_problems=4,
        eval_samples=4,
        best_of=2,
        checkpoint_every=2,
        threads=1,
    )
    return fitting(RewardConfig, small, options)


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").open()]


def flatten(todo) -> list[ValueSample]:
    return [one for lesson in todo for one in lesson]


def made(cfg: RewardConfig):
    """(sampled, chat, tasks) of a config, its traces written."""
    from mull.ledger import Budget
    from mull.models import hf

    chat, tasks = Chat.load(cfg.model), [load_task(name) for name in cfg.tasks]
    engine = data.LocalEngine(hf.load(cfg.model), chat)
    budget = Budget(think_tokens=cfg.think_tokens, answer_tokens=cfg.answer_tokens, samples=cfg.samples)
    held = held_out(tasks, cfg.levels, cfg.problems, "train", cfg.trace_seed)
    return data.traces(cfg.traces, {"a": 1}, held, engine, chat, budget, 0, lambda n: None), chat, tasks


# -------------------------------------------------------------------------------------------- end to end


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_ends_in_a_scorer_and_its_measure(base: Path, kind: str):
    cfg = config(base, "run", kind=kind)
    folder = reward(cfg, mode="quiet")
    log = rows(cfg.out)
    assert all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in log[1:])
    assert log[0]["labels"]["lessons"] > 0 and [row["step"] for row in log] == list(range(len(log)))
    report = log[-1]["eval"]
    assert report["choice"]["problems"] == 4 and 0 <= report["choice"]["majority"]["mean"] <= 1
    info = read_info(folder)
    assert info.kind == kind and info.aggregate == AGGREGATE[kind] in AGGREGATES and info.tasks == cfg.tasks
    scorer, _ = load_scorer(folder)
    assert isinstance(scorer, Critic if kind == "critic" else ValueScorer)
    chat = Chat.load(folder)
    [score] = asyncio.run(scorer.score([chat.prompt("1")]))
    assert 0 <= score.value <= 1 and score.cost.scorer_tokens > 0
    if kind == "critic":
        assert report["critiques"]["n"] > 0
    else:
        assert report["steps"]["n"] > 0
    if kind in ("prm-rollouts", "omega"):
        assert log[0]["labels"]["rollouts"] > 0 and log[0]["labels_flops"] > 0


def test_training_may_stop_before_its_epochs_are_over(base: Path):
    cfg = replace(config(base, "cut", max_steps=1), eval_problems=0)
    reward(cfg, mode="quiet")
    whole = replace(config(base, "uncut"), eval_problems=0)
    reward(whole, mode="quiet")
    assert [row["step"] for row in rows(cfg.out)] == [0, 1] and rows(whole.out)[-1]["step"] > 1
    with pytest.raises(UserError, match="max_steps=-1"):
        config(base, "never", max_steps=-1)


@pytest.mark.parametrize("kind", ["orm", "prm-rollouts", "critic"])
def test_killed_and_resumed_is_bitwise_the_same(base: Path, kind: str):
    def cfg(name: str) -> RewardConfig:
        return replace(config(base, name, kind=kind), traces=None, step_tokens=80, epochs=10, checkpoint_every=5)

    seconds = finish(reward, cfg("whole"))
    broken_run(reward, cfg("broken"), 3, random.Random(4), seconds / 12)
    same_run(base.parent / "whole", base.parent / "broken")


def test_kinds_and_seeds_learn_from_the_same_traces(base: Path):
    first = replace(config(base, "one"), eval_problems=0)
    reward(first, mode="quiet")
    kept = {path.name: path.stat().st_mtime_ns for path in first.traces.iterdir()}
    reward(replace(first, out=base.parent / "two", kind="prm", seed=5), mode="quiet")
    assert kept == {path.name: path.stat().st_mtime_ns for path in first.traces.iterdir()}
    assert rows(first.out)[0]["traces_flops"] == rows(base.parent / "two")[0]["traces_flops"] > 0
    with pytest.raises(UserError, match="samples=4, not 3"):
        reward(replace(first, out=base.parent / "three", samples=3), mode="quiet")


def test_a_round_that_a_kill_tore_is_sampled_again(base: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(data, "ROUND", 2)
    cfg = config(base, "run")
    whole, _, _ = made(cfg)
    path = cfg.traces / "chains.jsonl"
    full = path.read_bytes()
    path.write_bytes(b"".join(full.splitlines(keepends=True)[:3])[:-5])
    again, _, _ = made(cfg)
    assert again == whole and path.read_bytes() == full


# ---------------------------------------------------------------------------------------------- lessons


def test_chains_come_back_from_the_file_as_they_were_sampled(base: Path):
    cfg = config(base, "run")
    sampled, chat, [task] = made(cfg)
    again, _, _ = made(cfg)
    assert again == sampled
    for s in sampled:
        assert s.prompt == tuple(chat.prompt(s.problem.question.text))
        for completion, verdict, lines in zip(s.completions, s.verdicts, s.lines, strict=True):
            thought, answer, _ = chat.split(completion)
            if completion[-1] in chat.end_ids:
                assert verdict.correct == task.check(s.problem, answer).correct
            assert list(lines) == task.check_steps(s.problem, thought)


def test_unscorable_chains_teach_nothing_and_are_counted(base: Path):
    cfg = config(base, "run", tasks=(f"{base.parent / 'any.py'}:Picky",))
    sampled, chat, tasks = made(cfg)
    todo, about = lessons(cfg, tasks, chat, sampled)
    verdicts = [v.correct for s in sampled for v in s.verdicts]
    assert about["unscorable"] == verdicts.count(None) > 0
    assert len(flatten(todo)) == len(verdicts) - verdicts.count(None)
    flat = [label.value for one in flatten(todo) for label in one.labels]
    assert {0.0, 1.0} == set(flat)


def test_an_orm_learns_verdicts_at_every_completion_token_and_language_there_only(base: Path):
    cfg = config(base, "run")
    sampled, chat, tasks = made(cfg)
    todo, _ = lessons(cfg, tasks, chat, sampled)
    chains = [chain for s in sampled for chain in s.chains(chat)]
    for one, chain in zip(flatten(todo), chains, strict=True):
        assert one.tokens == chain.tokens and one.lm_from == chain.prompt
        assert [label.end for label in one.labels] == list(range(chain.prompt + 1, len(chain.tokens) + 1))
    without, _ = lessons(replace(cfg, lm_weight=0.0), tasks, chat, sampled)
    assert all(one.lm_from is None for one in flatten(without))


def test_a_prm_reads_nothing_behind_the_first_false_step(base: Path):
    cfg = config(base, "run", kind="prm", every_token=False)
    sampled, chat, tasks = made(cfg)
    todo, about = lessons(cfg, tasks, chat, sampled)
    values = [[label.value for label in one.labels] for one in flatten(todo)]
    assert any(0.0 in row for row in values) and any(0.0 not in row for row in values)
    assert all(0.0 not in row[:-1] for row in values)
    assert all(one.labels[-1].end == len(one.tokens) for one in flatten(todo))
    assert about["labels"] == sum(map(len, values)) and about["positive"] == sum(map(sum, values))
    dense, _ = lessons(replace(cfg, every_token=True), tasks, chat, sampled)
    assert [one.tokens for one in flatten(dense)] == [one.tokens for one in flatten(todo)]
    chains = [chain for s in sampled for chain in s.chains(chat) if chain.ends]
    for one, chain in zip(flatten(dense), chains, strict=True):
        assert [label.end for label in one.labels] == list(range(chain.prompt + 1, len(one.tokens) + 1))


def test_a_task_that_judges_no_steps_cannot_teach_them(base: Path):
    cfg = config(base, "run", kind="prm", tasks=(f"{base.parent / 'any.py'}:Any",))
    with pytest.raises(UserError, match="could be judged"):
        reward(cfg, mode="quiet")


def test_a_critic_s_lessons_end_in_the_truth_of_what_it_reads(base: Path):
    cfg = replace(config(base, "run", kind="critic", tasks=("chain",)), model=str(shipped_folder()), think_tokens=90)
    sampled, chat, [task] = made(cfg)
    todo, about = lessons(cfg, [task], chat, sampled)
    assert 0 < about["planted"] <= about["errors"] / 2
    assert len(todo) == 24 + 2 * about["planted"], "each beside the line as it was"
    kinds = set()
    for lesson in todo:
        assert isinstance(lesson, Sample) and lesson.ce is not None
        learnt = next(i for i, weight in enumerate(lesson.ce) if weight)
        text = chat.decode(lesson.tokens[learnt:-1])
        question, _, rest = chat.decode(lesson.tokens[:learnt]).removesuffix(MARKER).partition("<think>")
        thought, closed, answer = rest.partition("</think>")
        [s] = [s for s in sampled if s.problem.question.text == question.split("<|user|>")[1].split("<|end|>")[0]]
        steps = task.check_steps(s.problem, thought)
        wrong = next((i for i, step in enumerate(steps, 1) if step.ok is False), None)
        if wrong is None and closed and answer and not task.check(s.problem, answer.removesuffix("<|end|>")).correct:
            wrong = len(steps) + 1
        assert parse_critique(text)[1] == wrong
        kinds.add((wrong is None, bool(closed and answer)))
    assert len(kinds) == 4, "right and wrong, whole and cut"


def test_a_question_s_chains_stay_together_as_far_as_they_fit():
    samples = [ValueSample([1] * n, []) for n in (5, 5, 4, 9, 12, 1)]
    assert [[len(s.tokens) for s in group] for group in together(samples, 10)] == [[5, 5], [4], [9], [12], [1]]
    assert [len(group) for group in together(samples, 10, step=2)] == [2, 2, 2] and together([], 10) == []


def test_noise_of_rollout_labels_is_counted_against_exact_ones(base: Path):
    from mull.learn.labels import Chain, Label

    chain = Chain(tuple(range(10)), 2, (4, 6, 8, 10), False, (True, False, True, False))
    found = noise([(chain, [Label(4, 0.25), Label(6, 0.75), Label(8, 1.0)])])
    assert found == {"false_called_right": 1.0, "right_called_wrong": 1.0}
    assert noise([]) == {"false_called_right": None, "right_called_wrong": None}


def test_training_questions_are_not_those_of_the_evaluation(base: Path):
    cfg = config(base, "run")
    sampled, _, tasks = made(cfg)
    test = {h.problem.question.id for h in held_out(tasks, cfg.levels, 200, "test", cfg.seed)}
    assert not test & {s.problem.question.id for s in sampled}


def test_what_cannot_be_trained_is_said(base: Path):
    for options, match in (
        ({"samples": 1}, "samples=2 or more"),
        ({"best_of": 9}, "best_of=9"),
        ({"kind": "omega", "rollouts": 0}, "must be 1 or more"),
    ):
        with pytest.raises(UserError, match=match):
            replace(config(base, "run"), **options)
    with pytest.raises(UserError, match="not a folder"):
        reward(replace(config(base, "gone"), init=str(base.parent / "gone-model")), mode="quiet")
    assert not (base.parent / "gone").exists()


def test_prepared_charges_what_sampling_cost(base: Path):
    from mull.ledger import Ledger
    from mull.models import hf

    cfg = config(base, "run", kind="prm-rollouts")
    ledger, chat = Ledger(), Chat.load(base)
    tasks = [load_task(name) for name in cfg.tasks]
    todo, about = prepared(cfg, tasks, hf.load(base), chat, ledger, "quiet")
    assert ledger.phases["traces"].sampled_tokens > 0 and ledger.phases["labels"].sampled_tokens > 0
    assert about["rollouts"] > 0 and todo
