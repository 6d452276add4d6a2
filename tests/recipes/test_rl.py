"""The RL recipe: what every option does, which groups and samples are learnt from, and what is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mull.chat import Chat
from mull.chat.effort import parted
from mull.engine.local import LocalEngine
from mull.errors import UserError
from mull.evals.evaluate import thought_tokens
from mull.learn import losses
from mull.learn.advantages import Rewards, constant
from mull.learn.forward import batch_logprobs
from mull.learn.pack import pack
from mull.learn.samples import supervised, truncated
from mull.learn.shaping import overlong_penalty
from mull.models import hf
from mull.recipes.rl import RLConfig, collect, rl, shaped_rewards, to_samples
from mull.recipes.rollouts import Rollouts
from mull.tasks.load import load_task
from tests.recipes.tiny import ENDS, save_tiny, weights


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rl")
    (folder / "any.py").write_text(ENDS)
    save_tiny(folder / "base")
    save_tiny(folder / "other", seed=5)
    return folder


def config(home: Path, **changes: Any) -> RLConfig:
    return replace(
        RLConfig(
            model=str(home / "base"),
            tasks=(f"{home / 'any.py'}:Any",),
            levels=(1,),
            steps=2,
            groups=2,
            group_size=4,
            think_tokens=12,
            answer_tokens=8,
            minibatches=2,
            lr=0.005,
            warmup=1,
            max_grad_norm=100.0,
            compile=False,
            threads=1,
        ),
        **changes,
    )


runs: dict[str, torch.Tensor] = {}


def trained(home: Path, tmp_path: Path, **changes: Any) -> torch.Tensor:
    """The weights after a run with these changes."""
    key = repr(sorted(changes.items()))
    if key not in runs:
        cfg = config(home, **{"out": tmp_path / f"run{len(runs)}", **changes})
        runs[key] = weights(rl(cfg, mode="quiet"))
    return runs[key]


# (option, its other value, what else must be set for it to matter)
CHANGES: list[tuple[str, Any, dict[str, Any]]] = [
    *[
        ("algorithm", name, {})
        for name in ("grpo", "dr_grpo", "rloo", "reinforce_pp", "dapo", "cispo", "gspo", "expert")
    ],
    *[("truncated", policy, {}) for policy in ("leave_out", "mask", "keep")],
    ("model", "other", {}),
    ("tasks", "Picky", {}),
    ("levels", (2,), {"tasks": ("chain",), "random_reward": True}),
    ("steps", 3, {}),
    ("flops", 1.0, {}),
    ("trained_tokens", 1, {}),
    ("sampled_tokens", 1, {}),
    ("groups", 3, {}),
    ("group_size", 6, {}),
    ("think_tokens", 8, {}),
    ("answer_tokens", 2, {}),
    ("temperature", 0.7, {}),
    ("top_p", 0.5, {}),
    ("top_k", 5, {}),
    ("overlong_buffer", 6, {}),
    ("length", "kimi", {}),
    ("length", "cosine", {}),
    ("length", "lcpo_exact", {"wanted": (3, 12)}),
    ("length", "lcpo_max", {"wanted": (3, 12)}),
    *[("overlong_buffer", 6, {"length": form}) for form in ("kimi", "cosine")],
    *[("overlong_buffer", 6, {"length": form, "wanted": (3, 12)}) for form in ("lcpo_exact", "lcpo_max")],
    ("wanted", (3, 9), {"length": "lcpo_exact", "length_alpha": 0.05, "wanted": (3, 12)}),
    ("effort_words", True, {"length": "lcpo_max", "wanted": (3, 12)}),
    ("length_alpha", 0.05, {"length": "lcpo_exact", "wanted": (3, 9)}),
    ("length_weight", 0.2, {"length": "kimi"}),
    ("length_paper", True, {"length": "lcpo_exact", "wanted": (3, 12)}),
    ("ratio_cap", 1.0, {}),
    ("clip_low", 0.01, {"algorithm": "grpo"}),
    ("clip_high", 0.01, {"algorithm": "grpo"}),
    ("clip_high", 0.9, {"algorithm": "dapo"}),
    ("kl", 0.5, {}),
    ("minibatches", 1, {}),
    ("lr", 0.01, {}),
    ("warmup", 8, {}),
    ("weight_decay", 0.5, {}),
    ("max_grad_norm", 0.01, {}),
    ("random_reward", True, {}),
    ("dtype", "bfloat16", {}),
    ("seed", 1, {}),
]
# These change how the work is done, or what is recorded, and must not change what is learnt.
SAME: list[tuple[str, Any]] = [
    ("eval_every", 1),
    ("checkpoint_every", 1),
    ("max_sequences", 3),
    ("micro_tokens", 64),
    ("memory_gib", 0.001),
]
ELSEWHERE = {"out", "threads", "compile", "device", "eval_problems", "eval_samples", "eval_seed"}


@pytest.mark.parametrize(("option", "value", "also"), CHANGES, ids=lambda x: str(x) if not isinstance(x, dict) else "")
def test_every_option_changes_what_is_learnt(home: Path, tmp_path: Path, option: str, value: Any, also: dict[str, Any]):
    if option == "model":
        value = str(home / value)
    if option == "tasks":
        value = (f"{home / 'any.py'}:{value}",)
    with_it = trained(home, tmp_path, **{**also, option: value})
    if option == "length":  # what says nothing without it is refused without it
        also = {}
    without = trained(home, tmp_path, **also)
    assert torch.isfinite(with_it).all()
    assert (with_it - without).abs().max() > 1e-4
    if option not in ("model", "warmup", "max_grad_norm"):
        start = weights(home / "base")
        assert (with_it - start).abs().max() > 1e-3, "nothing was learnt at all"


def test_no_two_algorithms_are_the_same(home: Path, tmp_path: Path):
    names = ["mull", "grpo", "dr_grpo", "rloo", "reinforce_pp", "dapo", "cispo", "gspo", "expert"]
    ends = [trained(home, tmp_path, **({} if name == "mull" else {"algorithm": name})) for name in names]
    for i, a in enumerate(ends):
        for j, b in enumerate(ends[:i]):
            assert (a - b).abs().max() > 1e-5, (names[i], names[j])


@pytest.mark.parametrize(("option", "value"), SAME)
def test_what_only_changes_how_the_work_is_done_changes_nothing_else(
    home: Path, tmp_path: Path, option: str, value: Any
):
    # One small step: rounding differs with the shapes of batches, and a long run would blow it up.
    small = {"steps": 1, "minibatches": 1, "lr": 1e-4, "eval_problems": 2}
    assert torch.allclose(
        trained(home, tmp_path, **{**small, option: value}), trained(home, tmp_path, **small), atol=2e-5
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"effort_words": True}, "give length=lcpo_exact or lcpo_max"),
        ({"wanted": (3, 12), "length": "kimi"}, "wanted does nothing with length=kimi"),
        ({"length_alpha": 0.1}, "length_alpha does nothing"),
        ({"length_weight": 2.0, "length": "cosine"}, "give length=kimi"),
        ({"length_paper": True, "length": "lcpo_max"}, "length_paper does nothing with length=lcpo_max"),
    ],
)
def test_a_setting_of_lengths_that_does_nothing_is_refused(options: dict[str, Any], said: str):
    with pytest.raises(UserError, match=said):
        RLConfig(**options)


def test_no_option_is_left_untested():
    tested = {name for name, *_ in CHANGES} | {name for name, _ in SAME} | ELSEWHERE
    assert tested == {f.name for f in fields(RLConfig)}


# ------------------------------------------------------------------------------------ groups and samples


def rollouts(home: Path, cfg: RLConfig, useless: Callable[[Rewards], bool] = constant) -> Rollouts:
    chat = Chat.load(cfg.model)
    engine = LocalEngine(hf.load(cfg.model), chat)
    return asyncio.run(collect(cfg, [load_task(t) for t in cfg.tasks], engine, chat, 0, 0.5, useless))


def test_constant_groups_are_dropped_and_replaced(home: Path):
    cfg = config(home, tasks=(f"{home / 'any.py'}:Any", f"{home / 'any.py'}:Same"), groups=4)
    got = rollouts(home, cfg)
    assert got.constant > 0 and len(got.groups) >= cfg.groups
    assert got.asked == len(got.traces) == got.constant + len(got.groups)
    assert {trace.question.task for trace, _ in got.groups} == {"any"}
    assert {trace.question.task for trace in got.traces} == {"any", "same"}
    assert all(len(set(rewards)) > 1 for _, rewards in got.groups)
    assert len({trace.question.id for trace in got.traces}) == got.asked, "a replacement is another question"


def test_expert_iteration_is_cross_entropy_on_the_right_chains(home: Path):
    cfg = config(home, algorithm="expert", group_size=8, groups=6)
    chosen = cfg.method
    chat = Chat.load(cfg.model)
    engine = LocalEngine(hf.load(cfg.model), chat)
    tasks = [load_task(t) for t in cfg.tasks]
    got = asyncio.run(collect(cfg, tasks, engine, chat, 0, 0.5, chosen.useless))
    assert all(any(rewards) for _, rewards in got.groups)
    right = [v.correct and not cut for t, _ in got.groups for v, cut in zip(t.verdicts, truncated([t]), strict=True)]
    todo = to_samples(cfg, chosen, got)
    assert len(todo) == sum(right) < len(right)
    prompts = {tuple(t.spans[0].tokens) for t, _ in got.groups}
    shown = [supervised(s.tokens[: (n := s.mask.index(True))], s.tokens[n:]) for s in todo]
    assert all(tuple(s.tokens[: s.mask.index(True)]) in prompts for s in todo)

    model = hf.load(home / "other")  # not the one that sampled: the ratio is far from 1, and must not matter
    found = []
    for samples in (todo, shown):
        model.zero_grad()
        for batch in pack(samples, 4096):
            loss, _ = losses.loss(batch, batch_logprobs(model, batch)[0], policy=chosen.policy)
            loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert found[0].abs().max() > 1e-3 and torch.allclose(found[0], found[1], atol=1e-6)
    assert not config(home).method.useless([1.0, 0.0]) and config(home).method.useless([1.0, 1.0])
    assert chosen.useless([0.0, None]) and not chosen.useless([1.0, 1.0])
    assert chosen.useless([-0.3, -1.0, 0.0]), "wrong chains, some of them long"


def test_training_stops_once_so_many_tokens_were_learnt_from(home: Path, tmp_path: Path):
    whole = config(home, out=tmp_path / "whole", steps=4)
    rl(whole, mode="quiet")
    tokens = [json.loads(line)["trained_tokens"] for line in (whole.out / "metrics.jsonl").open()]
    cut = replace(whole, out=tmp_path / "cut", trained_tokens=tokens[0] + 1, eval_every=50, eval_problems=2)
    rl(cut, mode="quiet")
    rows = [json.loads(line) for line in (cut.out / "metrics.jsonl").open()]
    assert [row["trained_tokens"] for row in rows if row["step"]] == tokens[:2]
    assert rows[-1]["eval"] and (cut.out / "checkpoints" / "step_000002").is_dir()
    rl(replace(cut, trained_tokens=0), resume=True, mode="quiet")
    assert torch.equal(weights(cut.out / "model"), weights(whole.out / "model"))


def test_training_stops_once_so_much_compute_was_spent_and_goes_on(home: Path, tmp_path: Path):
    whole = config(home, out=tmp_path / "whole", steps=4)
    rl(whole, mode="quiet")
    spent = [json.loads(line)["flops"] for line in (whole.out / "metrics.jsonl").open()]
    cut = replace(whole, out=tmp_path / "cut", flops=spent[0] * 1.01)
    rl(cut, mode="quiet")
    assert [json.loads(line)["flops"] for line in (cut.out / "metrics.jsonl").open()] == spent[:2]
    rl(replace(cut, flops=spent[-1]), resume=True, mode="quiet")
    assert torch.equal(weights(cut.out / "model"), weights(whole.out / "model"))


def test_evaluations_keep_every_problem_s_rate_and_may_share_their_problems(home: Path, tmp_path: Path):
    def rows(name: str, **changes: Any) -> list[dict[str, Any]]:
        cfg = config(home, out=tmp_path / name, steps=1, eval_every=1, eval_problems=6, **changes)
        rl(cfg, mode="quiet")
        return [json.loads(line)["eval"] for line in (cfg.out / "metrics.jsonl").open()]

    before, after = rows("a", eval_seed=7)
    for found in (before, after):
        [(task, rates)] = found["rates"].items()
        assert task == "any" and len(rates) == found["all"]["n"] == 6 and set(rates.values()) <= {0.0, 0.5, 1.0}
        assert sum(rates.values()) / 6 == pytest.approx(found["all"]["mean"])
    assert before["rates"] != after["rates"], "training moved nothing"
    other = rows("b", eval_seed=7, seed=1)[0]["rates"]
    assert set(other["any"]) == set(before["rates"]["any"]) and other != before["rates"]
    assert set(rows("c", seed=1)[0]["rates"]["any"]) != set(before["rates"]["any"])
    judged = rows("d", tasks=(f"{home / 'any.py'}:Picky",), eval_samples=1)[0]["rates"]["picky"]
    assert None in judged.values() and len(judged) == 6


def test_a_step_without_any_mixed_group_changes_nothing_and_goes_on(home: Path, tmp_path: Path):
    cfg = config(home, out=tmp_path / "run", tasks=(f"{home / 'any.py'}:Same",))
    folder = rl(cfg, mode="quiet")
    assert torch.equal(weights(folder), weights(home / "base"))
    rows = [json.loads(line) for line in (cfg.out / "metrics.jsonl").open()]
    assert [row["constant_groups"] for row in rows] == [1.0, 1.0]
    assert [row["asked"] for row in rows] == [4 * cfg.groups] * 2
    assert [row["groups"] for row in rows] == [0, 0]


def test_unscorable_answers_are_counted_and_in_no_baseline_and_no_loss(home: Path, tmp_path: Path):
    cfg = config(home, tasks=(f"{home / 'any.py'}:Picky",), group_size=12, think_tokens=20, answer_tokens=20, top_k=0)
    got = rollouts(home, cfg)
    marks = [v.correct for trace in got.traces for v in trace.verdicts]
    errors = " ".join(v.error for trace in got.traces for v in trace.verdicts)
    assert "cannot be judged" in errors and "crashed: RecursionError" in errors
    cfg = replace(cfg, truncated="keep")
    groups = [(trace, shaped_rewards(cfg, [trace], None)) for trace, _ in got.groups]  # type: ignore[arg-type]
    assert any(None in rewards for _, rewards in groups)
    values = cfg.method.advantages([rewards for _, rewards in groups])
    for (trace, rewards), group in zip(groups, values, strict=True):
        assert [a is None for a in group] == [r is None for r in rewards] == [v.correct is None for v in trace.verdicts]
        assert sum(a for a in group if a is not None) == pytest.approx(0, abs=1e-9)
    todo = to_samples(cfg, cfg.method, Rollouts(groups))
    assert len(todo) == sum(r is not None for _, rewards in groups for r in rewards)
    run = replace(cfg, out=tmp_path / "run", steps=1)
    rl(run, mode="quiet")
    [row] = [json.loads(line) for line in (run.out / "metrics.jsonl").open()]
    assert row["unscorable"] == marks.count(None) > 0
    assert row["reward"] == pytest.approx(marks.count(True) / (len(marks) - marks.count(None)))


def test_what_happens_to_truncated_chains(home: Path):
    """The task pays a chain that was cut off (its answer is empty): only `keep` lets that stand."""
    got = rollouts(home, config(home, group_size=16, truncated="keep", random_reward=True))
    for trace, _ in got.groups:
        cut = truncated([trace])
        assert any(cut) and not all(cut)
        paid = {}
        for policy in ("keep", "zero", "leave_out", "mask"):
            cfg = config(home, truncated=policy)
            paid[policy] = shaped_rewards(cfg, [trace], None)  # type: ignore[arg-type]
        assert all(r == 1.0 for r, c in zip(paid["keep"], cut, strict=True) if c)
        assert all(r == 0.0 for r, c in zip(paid["zero"], cut, strict=True) if c)
        assert all(r is None for r, c in zip(paid["leave_out"], cut, strict=True) if c)
        assert paid["mask"] == paid["keep"], "the reward counts in the baseline"
        by = {p: to_samples(c := config(home, truncated=p), c.method, Rollouts([(trace, paid[p])])) for p in paid}
        assert len(by["keep"]) == len(by["zero"]) == len(cut)
        assert len(by["leave_out"]) == len(by["mask"]) == cut.count(False)
        whole = config(home).method.advantages([paid["keep"]])[0]
        kept = [a for a, c in zip(whole, cut, strict=True) if not c]
        assert [max(s.advantages, key=abs) for s in by["mask"]] == pytest.approx(kept)


def test_prompts_ask_for_a_length_and_rewards_measure_against_it(home: Path, tmp_path: Path):
    cfg = config(home, length="lcpo_exact", wanted=(4, 20), length_alpha=0.02, group_size=8, groups=6, truncated="keep")
    got = rollouts(home, cfg)
    wishes = []
    for trace, rewards in got.groups:
        text, wish = parted(trace.question.text)
        assert isinstance(wish, int) and 4 <= wish <= 20 and text == trace.question.text.partition("\n")[0]
        assert Chat.load(cfg.model).decode(trace.spans[0].tokens).count(f"think {wish}") == 1, "the model is told"
        wishes.append(wish)
        for leaf, verdict, reward in zip(trace.leaves, trace.verdicts, rewards, strict=True):
            n = len(thought_tokens(trace, leaf))
            assert reward == pytest.approx(max(0.0, 1 - 0.02 * abs(n - wish)) if verdict.correct else 0.0)
    assert len(set(wishes)) > 1
    run = replace(cfg, out=tmp_path / "run", steps=1, eval_every=1, eval_problems=2)
    rl(run, mode="quiet")
    assert json.loads((run.out / "metrics.jsonl").read_text().splitlines()[-1])["length_error"] > 0
    words = config(home, length="lcpo_max", wanted=(4, 20), effort_words=True)
    assert cfg.most_effort == 20 and words.most_effort == "high"
    assert config(home, length="kimi").most_effort is None
    for bad in ({"wanted": (0, 4)}, {"wanted": (9, 4)}, {"length_alpha": 0.0}):
        with pytest.raises(UserError, match="lcpo_exact needs wanted"):
            config(home, length="lcpo_exact", **bad)
    with pytest.raises(UserError, match=r"wanted=\[4, 400\] asks for more tokens than a chain may have"):
        config(home, length="lcpo_max", wanted=(4, 400))


def test_a_penalty_does_not_say_who_is_right(home: Path):
    """The overlong penalty is added to what a length reward says, and a right chain that it brings below 0 is right."""
    plain = config(home, length="cosine", group_size=16, truncated="keep")
    cfg = replace(plain, overlong_buffer=plain.think_tokens + plain.answer_tokens - 1)
    before, after = (rollouts(home, c, useless=lambda _: False) for c in (plain, cfg))
    limit, seen = cfg.think_tokens + cfg.answer_tokens, 0
    for (trace, shaped), (again, both) in zip(before.groups, after.groups, strict=True):
        assert trace.spans == again.spans
        for leaf, a, b in zip(trace.leaves, shaped, both, strict=True):
            penalty = overlong_penalty(len(thought_tokens(trace, leaf)), limit, cfg.overlong_buffer)
            assert b == pytest.approx(a + penalty)
            seen += a > 0 > b
    assert seen > 0


def test_random_rewards_know_nothing_of_the_answers(home: Path, tmp_path: Path):
    cfg = config(home, out=tmp_path / "run", tasks=(f"{home / 'any.py'}:Same",), random_reward=True, group_size=8)
    folder = rl(cfg, mode="quiet")
    assert not torch.equal(weights(folder), weights(home / "base"))
    rows = [json.loads(line) for line in (cfg.out / "metrics.jsonl").open()]
    assert [row["reward"] for row in rows] == [0.0, 0.0], "what is shown is the graders' word"
    flips = [r for _, rewards in rollouts(home, replace(cfg, groups=40)).groups for r in rewards]
    assert set(flips) == {0.0, 1.0} and 0.4 < sum(flips) / len(flips) < 0.6


def test_on_policy_the_ratio_is_one_and_the_kl_starts_at_zero(home: Path, tmp_path: Path):
    cfg = config(home, out=tmp_path / "run", minibatches=1, kl=0.1)
    rl(cfg, mode="quiet")
    first, second = (json.loads(line) for line in (cfg.out / "metrics.jsonl").open())
    for row in (first, second):
        assert row["ratio"] == pytest.approx(1, abs=1e-5) and row["max_ratio"] == pytest.approx(1, abs=1e-4)
        assert row["clipped"] == 0
    assert first["loss_kl"] == pytest.approx(0, abs=1e-8) and second["loss_kl"] > 1e-6
    off = config(home, out=tmp_path / "off", minibatches=2, steps=1)
    rl(off, mode="quiet")
    assert abs(json.loads((off.out / "metrics.jsonl").read_text())["max_ratio"] - 1) > 1e-3


# ----------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"levels": (9,)}, "the task any has no level among [9]"),
        ({"think_tokens": 300}, "do not fit into the model's context of 256"),
        ({"tasks": ("set.jsonl",)}, "has no train problems"),
        ({"tasks": ("chian",)}, "did you mean 'chain'?"),
        ({"model": "nowhere"}, "nowhere is not a folder"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_before_anything_is_written(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], sentence: str
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set.jsonl").write_text('{"question": "1+1", "answer": "2"}\n')
    if "tasks" in changes and changes["tasks"][0].endswith("jsonl"):
        changes = {**changes, "levels": (0,)}
    with pytest.raises(UserError) as caught:
        rl(config(home, out=tmp_path / "run", **changes), mode="quiet")
    assert sentence in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_results_of_thousands_of_tokens_have_a_short_repr():
    """asyncio.run of Python 3.11 makes the repr of what it returns when it puts the signal handler back."""
    from mull.evals.evaluate import Evaluation
    from mull.types import Question, Trace

    traces = [Trace(Question("x", "any", "?"), "sample", answers=["a" * 10_000])]
    assert len(repr(Rollouts([], traces=traces))) < 200 > len(repr(Evaluation([], traces)))
