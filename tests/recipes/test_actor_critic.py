"""The actor-critic recipe: every option, what it charges, who learns what, truth against opinion, resuming."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mull.chat import Chat
from mull.engine.local import LocalEngine
from mull.errors import StopReason, UserError
from mull.learn import optim
from mull.models import hf
from mull.models.value import ScorerInfo, ValueModel, save_value
from mull.recipes import actor_critic as recipe
from mull.recipes import credit
from mull.recipes.actor_critic import ActorCriticConfig, actor_critic, collect, teaches, to_samples
from mull.scorers.base import Score
from mull.tasks.load import load_task
from mull.types import Cost, Question, Span, SpanKind, Trace
from tests.recipes.test_resume import broken_run, finish, same_run
from tests.recipes.tiny import ENDS, save_tiny

ALGORITHMS = ("ppo", "prm", "vineppo", "prime")
DONE = '''

class Done(Any):
    """Any answer is right that comes in time: a random model finds one in five times, and can learn to."""
    name = "done"

    def check(self, problem, answer):
        return Verdict(bool(answer), answer)
'''


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("actor_critic")
    (folder / "any.py").write_text(ENDS + DONE)
    for name, seed in (("base", 0), ("other", 5)):
        save_tiny(folder / name, seed)
        judge = ValueModel(hf.load(folder / name), seed=seed)
        with torch.no_grad():
            judge.head.weight.mul_(10)  # opinions that differ
        save_value(judge, folder / f"scorer-{name}", ScorerInfo("prm", "product"), folder / "base")
    return folder


def config(home: Path, **changes: Any) -> ActorCriticConfig:
    if changes.get("algorithm") == "prm":
        changes = {"scorer": home / "scorer-base", **changes}
    return replace(
        ActorCriticConfig(
            model=str(home / "base"),
            tasks=(f"{home / 'any.py'}:Any",),
            levels=(1,),
            steps=2,
            groups=2,
            group_size=4,
            think_tokens=12,
            answer_tokens=8,
            critic_lr=0.01,
            critic_warmup=0,
            minibatches=2,
            lr=0.005,
            warmup=1,
            max_grad_norm=100.0,
            compile=False,
            threads=1,
        ),
        **changes,
    )


def weights(folder: Path) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in hf.load(folder).parameters()])


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").open()]


runs: dict[str, torch.Tensor] = {}


def trained(home: Path, tmp_path: Path, **changes: Any) -> torch.Tensor:
    """The weights after a run with these changes."""
    key = repr(sorted(changes.items()))
    if key not in runs:
        cfg = config(home, **{"out": tmp_path / f"run{len(runs)}", **changes})
        runs[key] = weights(actor_critic(cfg, mode="quiet"))
    return runs[key]


PRM, PRIME, VINE = {"algorithm": "prm"}, {"algorithm": "prime"}, {"algorithm": "vineppo"}
# (option, its other value, what else must be set for it to matter)
CHANGES: list[tuple[str, Any, dict[str, Any]]] = [
    *[("algorithm", name, {}) for name in ("prm", "vineppo", "prime")],
    *[("truncated", policy, {}) for policy in ("bootstrap", "leave_out", "mask", "keep")],
    *[("truncated", policy, VINE) for policy in ("leave_out", "mask", "keep")],
    ("model", "other", {}),
    ("tasks", "Picky", {}),
    ("levels", (2,), {"tasks": ("chain",), "random_reward": True}),
    ("steps", 3, {}),
    ("trained_tokens", 1, {}),
    ("sampled_tokens", 1, {}),
    ("flops", 1.0, {}),
    ("groups", 3, {}),
    ("group_size", 6, {}),
    ("think_tokens", 8, {}),
    ("answer_tokens", 2, {}),
    ("temperature", 0.7, {}),
    ("top_p", 0.5, {}),
    ("top_k", 5, {}),
    ("overlong_buffer", 6, {}),
    ("gamma", 0.5, {}),
    ("gamma", 0.5, PRIME),
    ("gae_lambda", 0.5, {}),
    ("value_lambda", 0.5, {}),
    ("value_clip", 0.001, {"critic_epochs": 3}),
    ("whiten", False, {}),
    ("critic_lr", 0.02, {}),
    ("critic_epochs", 2, {}),
    ("critic_epochs", 3, PRIME),
    ("critic_warmup", 1, {}),
    ("scorer", "scorer-other", PRM),
    *[("process", form, PRM) for form in ("difference", "min", "sum")],
    ("process_temperature", 1.0, {**PRM, "process": "min"}),
    ("process_weight", 3.0, PRM),
    ("process_weight", 30.0, PRIME),
    ("outcome_weight", 3.0, PRM),
    ("process_only", True, {**PRM, "process": "difference"}),
    ("process_only", True, PRIME),
    ("vine_rollouts", 1, VINE),
    ("prime_beta", 0.5, PRIME),
    ("keep_low", 0.45, PRIME),
    ("keep_high", 0.55, PRIME),
    ("clip_low", 0.001, {}),
    ("clip_high", 0.001, {}),
    ("kl", 0.5, {}),
    ("epochs", 2, {}),
    ("minibatches", 1, {}),
    ("lr", 0.01, {}),
    ("warmup", 8, {}),
    ("weight_decay", 0.5, {}),
    ("max_grad_norm", 0.01, {}),
    *[("random_reward", True, {"algorithm": name}) for name in ALGORITHMS],
    ("dtype", "bfloat16", {}),
    ("seed", 1, {}),
]
# These change how the work is done, or what is recorded, and must not change what is learnt.
SAME: list[tuple[str, Any, dict[str, Any]]] = [
    ("eval_every", 1, {}),
    ("checkpoint_every", 1, {}),
    ("max_sequences", 3, {}),
    ("micro_tokens", 40, {}),
    ("micro_tokens", 40, PRIME),
    ("memory_gib", 0.001, {}),
]
ELSEWHERE = {"out", "threads", "compile", "device", "eval_problems", "eval_samples"}


@pytest.mark.parametrize(("option", "value", "also"), CHANGES, ids=str)
def test_every_option_changes_what_is_learnt(home: Path, tmp_path: Path, option: str, value: Any, also: dict[str, Any]):
    if option == "model":
        value = str(home / value)
    if option == "scorer":
        value = home / value
    if option == "tasks":
        value = (f"{home / 'any.py'}:{value}",)
    with_it = trained(home, tmp_path, **{**also, option: value})
    without = trained(home, tmp_path, **also)
    assert torch.isfinite(with_it).all()
    assert (with_it - without).abs().max() > 1e-4
    if option not in ("model", "warmup", "max_grad_norm"):
        assert (with_it - weights(home / "base")).abs().max() > 1e-3, "nothing was learnt at all"


@pytest.mark.parametrize(("option", "value", "also"), SAME, ids=str)
def test_what_only_changes_how_the_work_is_done_changes_nothing_else(
    home: Path, tmp_path: Path, option: str, value: Any, also: dict[str, Any]
):
    # One small step: rounding differs with the shapes of batches, and a long run would blow it up.
    small = {"steps": 1, "minibatches": 1, "lr": 1e-4, "eval_problems": 2, **also}
    assert torch.allclose(
        trained(home, tmp_path, **{**small, option: value}), trained(home, tmp_path, **small), atol=2e-5
    )


def test_no_option_is_left_untested():
    tested = {name for name, *_ in CHANGES} | {name for name, *_ in SAME} | ELSEWHERE
    assert tested == {f.name for f in fields(ActorCriticConfig)}


# ------------------------------------------------------------------------------------- who learns from what


def gathered(home: Path, cfg: ActorCriticConfig, step: int = 0) -> tuple[LocalEngine, Chat, credit.Chains]:
    chat = Chat.load(cfg.model)
    engine = LocalEngine(hf.load(cfg.model), chat)
    return engine, chat, asyncio.run(collect(cfg, [load_task(t) for t in cfg.tasks], engine, chat, step, 1.0))


def test_groups_that_are_all_wrong_teach_where_there_is_a_critic_and_nowhere_else(home: Path, tmp_path: Path):
    same = (f"{home / 'any.py'}:Same",)
    cfg = config(home, out=tmp_path / "ppo", tasks=same)
    assert not torch.equal(weights(actor_critic(cfg, mode="quiet")), weights(home / "base"))
    assert [row["groups"] for row in rows(cfg.out)] == [2, 2] == [row["asked"] for row in rows(cfg.out)]
    assert rows(cfg.out)[0]["explained_variance"] is None, "all returns are equal"
    cfg = config(home, out=tmp_path / "prime", tasks=same, algorithm="prime")
    assert torch.equal(weights(actor_critic(cfg, mode="quiet")), weights(home / "base"))
    assert [row["asked"] for row in rows(cfg.out)] == [8, 8] and rows(cfg.out)[1]["groups"] == 0


def test_prime_keeps_what_is_neither_too_easy_nor_too_hard(home: Path):
    cfg = config(home, algorithm="prime", groups=6, group_size=8)
    _, _, chains = gathered(home, cfg)
    shares = [sum(r or 0 for r in rewards) / 8 for _, rewards in chains.groups]
    assert len(shares) >= 6 and all(0.2 <= share <= 0.8 for share in shares)
    assert any(not teaches(cfg, [v.reward for v in t.verdicts]) for t in chains.traces), "nothing was dropped"


def test_at_first_the_critic_learns_alone(home: Path, tmp_path: Path):
    for name in ("ppo", "prime"):
        cfg = config(home, out=tmp_path / name, algorithm=name, steps=2, critic_warmup=2)
        assert torch.equal(weights(actor_critic(cfg, mode="quiet")), weights(home / "base"))
        loss = "value_loss" if name == "ppo" else "critic_loss"
        assert all(row["lr"] == 0 and row[loss] > 0 for row in rows(cfg.out))
    vine = config(home, out=tmp_path / "vine", algorithm="vineppo", steps=1, critic_warmup=2)
    actor_critic(vine, mode="quiet")
    assert rows(vine.out)[0]["lr"] == vine.lr, "there is no critic to wait for"


def test_a_critic_comes_to_explain_what_can_be_explained(home: Path):
    """The third token decides. Before it the fair value is 1/2; from there on it is known."""
    rng = random.Random(0)
    groups = []
    for _ in range(6):
        prompt = Span(SpanKind.PROMPT, (64, 65))
        spans = [prompt]
        for _ in range(6):
            tokens = (66, 67, rng.choice([68, 69]), *rng.choices(range(70, 80), k=3))
            spans.append(Span(SpanKind.SAMPLED, tokens, 0, (-1.0,) * 6, stop=StopReason.STOP))
        trace = Trace(Question("q", "any", "?"), "test", spans, [1, 2, 3, 4, 5, 6], [""] * 6)
        groups.append((trace, [float(span.tokens[2] == 68) for span in spans[1:]]))
    chains = credit.Chains(groups, traces=[trace for trace, _ in groups])
    cfg = config(home, minibatches=2, critic_epochs=15, critic_lr=0.005, max_grad_norm=1.0)
    critic = ValueModel(hf.load(cfg.model))
    optimizer = optim.adamw(critic, cfg.critic_lr)
    first = credit.by_values(cfg, critic, chains)
    assert abs(first.seen["explained_variance"]) < 0.1
    before = [abs(lesson.old[-1] - lesson.targets[-1]) for group in first.lessons for lesson in group]
    for _ in range(5):
        credit.learn_values(cfg, critic, optimizer, credit.by_values(cfg, critic, chains).lessons)
    last = credit.by_values(cfg, critic, chains)
    after = [abs(lesson.old[-1] - lesson.targets[-1]) for group in last.lessons for lesson in group]
    # Of six states three are before the token, where nothing can be known: at best half of the variance is explained.
    assert 0.4 < last.seen["explained_variance"] < 0.65
    assert max(after) < 0.3 < max(before)
    assert last.seen["value"] == pytest.approx(last.seen["paid"], abs=0.1)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_on_policy_the_ratio_is_one_and_unjudged_chains_are_in_no_sample(home: Path, tmp_path: Path, algorithm: str):
    picky = (f"{home / 'any.py'}:Picky",)
    cfg = config(
        home, out=tmp_path / "run", algorithm=algorithm, minibatches=1, steps=1, tasks=picky, group_size=12,
        truncated="keep", think_tokens=20, answer_tokens=20,
    )  # fmt: skip
    actor_critic(cfg, mode="quiet")
    [row] = rows(cfg.out)
    assert row["ratio"] == pytest.approx(1, abs=1e-5) and row["clipped"] == 0 and row["unscorable"] > 0
    assert row["truth"] == row["reward"]
    engine, chat, chains = gathered(home, cfg)
    critic = ValueModel(hf.load(cfg.model))
    if algorithm in ("ppo", "prm"):
        made = credit.by_values(cfg, critic, chains)
    elif algorithm == "vineppo":
        made = asyncio.run(credit.by_continuations(cfg, chains, engine, chat, 0))
    else:
        made = credit.by_implicit(cfg, critic.body, hf.load(home / "other"), chains)
    todo = to_samples(cfg, chains, made)
    judged = [r is not None for _, rewards in chains.groups for r in rewards]
    assert 0 < sum(judged) < len(judged)
    if algorithm == "vineppo":  # a chain also needs a value of its question, and a third of answers cannot be judged
        assert len(todo) <= sum(judged)
    else:
        assert len(todo) == sum(judged)
    tokens = [(a, m) for s in todo for a, m in zip(s.advantages, s.mask, strict=True)]
    assert all(a == 0 for a, m in tokens if not m)
    inside = [a for a, m in tokens if m]
    assert sum(inside) / len(inside) == pytest.approx(0, abs=1e-6) and max(inside) - min(inside) > 1, "whitened"


def test_a_chain_without_end_is_worth_nothing_or_what_the_critic_expects(home: Path):
    cfg = config(home, group_size=12, whiten=False, gae_lambda=1.0)
    _, _, chains = gathered(home, cfg)
    critic = ValueModel(hf.load(cfg.model), seed=3)
    with torch.no_grad():
        critic.head.bias.fill_(0.75)
    ended = credit.by_values(cfg, critic, chains)
    goes_on = credit.by_values(replace(cfg, truncated="bootstrap"), critic, chains)
    number = 0
    for group, paths in enumerate(credit.group_paths(chains)):
        for leaf, path in enumerate(paths):
            a, b = ended.advantages[group][leaf], goes_on.advantages[group][leaf]
            assert a is not None and b is not None
            gain = {round(y - x, 4) for x, y in zip(a, b, strict=True)}
            assert len(gain) == 1 and (gain.pop() > 0.5 if path.cut else gain == set() or gain == {0.0})
            number += path.cut
    assert 0 < number < 24
    for _, rewards in chains.groups:  # as an overlong penalty would have it
        rewards[:] = [r if r is None else r - 0.5 for r in rewards]
    penalised = credit.by_values(replace(cfg, truncated="bootstrap"), critic, chains)
    for group, paths in enumerate(credit.group_paths(chains)):
        for leaf, path in enumerate(paths):
            a, b = goes_on.advantages[group][leaf], penalised.advantages[group][leaf]
            assert a is not None and b is not None
            assert [y - x for x, y in zip(a, b, strict=True)] == pytest.approx([-0.5] * len(a), abs=1e-4), path.cut


# --------------------------------------------------------------------------------------------- what it costs


def test_everything_is_charged(home: Path, tmp_path: Path):
    cost = {}
    for name in ALGORITHMS:
        cfg = config(home, out=tmp_path / name, algorithm=name, steps=1, minibatches=1)
        actor_critic(cfg, mode="quiet")
        [row] = rows(cfg.out)
        [state] = (tmp_path / name / "checkpoints").glob("*/state.pt")
        cost[name] = (torch.load(state, weights_only=True)["ledger"], row)
        assert row["flops"] == pytest.approx(sum(phase["flops"] for phase in cost[name][0].values()))
    ledger, row = cost["vineppo"]
    assert ledger["credit"]["sampled_tokens"] == row["vine_tokens"] > 4 * ledger["rollouts"]["sampled_tokens"] / 2
    assert row["total_sampled_tokens"] == row["vine_tokens"] + ledger["rollouts"]["sampled_tokens"]
    assert "critic" not in ledger
    for name in ("ppo", "prm", "prime"):
        ledger, row = cost[name]
        assert ledger["credit"]["scorer_tokens"] > 0 and ledger["critic"]["trained_tokens"] > 0
        assert row["trained_tokens"] == ledger["critic"]["trained_tokens"] + ledger["training"]["trained_tokens"]
        reads = 2 if name == "prime" else 1  # forward passes over what is then learnt, forward and backward
        assert cfg.critic_epochs == 1
        assert ledger["critic"]["flops"] == pytest.approx(3 * ledger["credit"]["flops"] / reads)
    assert cost["prm"][0]["scorer"]["scorer_tokens"] > 0 and "scorer" not in cost["ppo"][0]


def test_continuations_are_sampled_once_for_each_prefix_and_judged_as_chains_are(home: Path):
    cfg = config(home, algorithm="vineppo", tasks=(f"{home / 'any.py'}:Any",))
    engine, chat, chains = gathered(home, cfg)
    task, problem = chains.problems[0]
    prompt = tuple(chat.prompt(problem.question.text))

    async def ask(cfg: ActorCriticConfig) -> list[Any]:
        complete = credit.completer(cfg, task, problem, engine, chat, 7)
        return [await complete(prompt, 30), *await asyncio.gather(*(complete(prompt, 30) for _ in range(2)))]

    first, second, third = asyncio.run(ask(cfg))
    assert first[0] == second[0] == third[0] and {True, False} == set(first[0])
    assert first[1].sampled_tokens > 0 == second[1].sampled_tokens == third[1].sampled_tokens
    keep = asyncio.run(ask(replace(cfg, truncated="keep")))[0][0]  # this task pays empty answers
    out = asyncio.run(ask(replace(cfg, truncated="leave_out")))[0][0]
    cut = [v is None for v in out]
    assert 0 < sum(cut) < 30
    for a, b, c, was_cut in zip(first[0], keep, out, cut, strict=True):
        assert (a is False and b is True) if was_cut else a == b == c
    flips = asyncio.run(ask(replace(cfg, random_reward=True, truncated="keep")))[0][0]
    assert flips != keep and 5 < sum(flips) < 25


# -------------------------------------------------------------------------------------- truth against opinion


class Likes:
    """A scorer with a fixed opinion of prefixes."""

    def __init__(self, opinion: Any):
        self.opinion = opinion

    async def score(self, prefixes: Sequence[Sequence[int]]) -> list[Score]:
        return [Score(self.opinion(list(p)), Cost(scorer_tokens=len(p))) for p in prefixes]


def toy(home: Path, out: Path, **changes: Any) -> list[dict[str, Any]]:
    cfg = config(
        home, out=out, tasks=(f"{home / 'any.py'}:Done",), steps=14, groups=4, group_size=8, lr=0.004,
        minibatches=1, max_grad_norm=1.0, vine_rollouts=2, critic_warmup=2, **changes,
    )  # fmt: skip
    actor_critic(cfg, mode="quiet")
    return rows(out)


def rise(seen: list[dict[str, Any]], key: str) -> tuple[float, float]:
    """Means over the first three and the last three steps."""
    values = [row[key] for row in seen]
    return sum(values[:3]) / 3, sum(values[-3:]) / 3


def closes(chat: Chat) -> Any:
    """Likes a closed thought, which is most of what it takes."""
    return lambda prefix: 0.9 if chat.think_close[0] in prefix else 0.1


def gives_up(chat: Chat) -> Any:
    """Fooled by a turn that ends while thinking, without an answer."""
    return lambda prefix: 0.9 if prefix[-1] in chat.end_ids and chat.think_close[0] not in prefix else 0.1


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_truth_rises(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str):
    monkeypatch.setattr(recipe, "load_judge", lambda cfg, chat: Likes(closes(chat)) if cfg.scorer else None)
    before, after = rise(toy(home, tmp_path / "run", algorithm=algorithm), "truth")
    assert before < 0.4 and after > before + 0.2, (before, after)


def test_hacking_shows_and_the_outcome_ends_it(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Paid by a fooled scorer alone the opinion rises and the truth falls; with the outcome, the truth rises."""
    monkeypatch.setattr(recipe, "load_judge", lambda cfg, chat: Likes(gives_up(chat)))
    hacked = toy(home, tmp_path / "hacked", algorithm="prm", process_only=True, process="difference")
    opinion, truth = rise(hacked, "scorer"), rise(hacked, "truth")
    assert opinion[1] > opinion[0] + 0.2 and truth[1] < truth[0] - 0.1, (opinion, truth)
    sound = toy(home, tmp_path / "sound", algorithm="prm", process_weight=0.3, process="difference")
    truth = rise(sound, "truth")
    assert truth[1] > truth[0] + 0.2, truth


def test_random_rewards_know_nothing_of_the_answers(home: Path, tmp_path: Path):
    for name in ALGORITHMS:
        cfg = config(home, algorithm=name, tasks=(f"{home / 'any.py'}:Same",), random_reward=True, groups=20)
        _, chat, chains = gathered(home, cfg)
        flips = [r for _, rewards in chains.groups for r in rewards]
        assert set(flips) == {0.0, 1.0} and 0.3 < sum(r or 0 for r in flips) / len(flips) < 0.7
        if name == "prm":
            sure = Likes(lambda prefix: 1.0)
            dense, seen, _ = asyncio.run(credit.by_steps(cfg, sure, chat, chains, 0))
            assert 0.3 < seen["scorer"] < 0.7, "opinions are chance, too"
            again = asyncio.run(credit.by_steps(cfg, sure, chat, chains, 0))[0]
            assert dense == again


# ----------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_killed_and_resumed_is_bitwise_the_same(home: Path, tmp_path: Path, algorithm: str):
    def cfg(name: str) -> ActorCriticConfig:
        return config(
            home, out=tmp_path / name, algorithm=algorithm, steps=6, kl=0.05, top_p=0.95, critic_warmup=1,
            eval_every=2, eval_problems=4, eval_samples=1, checkpoint_every=2, process="sum",
        )  # fmt: skip

    seconds = finish(actor_critic, cfg("whole"))
    moved = [row["grad_norm"] for row in rows(cfg("whole").out) if row["step"] and row["lr"]]
    assert len(moved) >= 5 and min(moved) > 0, "a step without a gradient proves nothing"
    broken_run(actor_critic, cfg("broken"), 3, random.Random(ALGORITHMS.index(algorithm)), seconds / 8)
    same_run(tmp_path / "whole", tmp_path / "broken")


# ----------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"algorithm": "prm", "scorer": None}, "needs a scorer"),
        ({"scorer": Path("x")}, "asks no scorer"),
        ({"process_only": True}, "without any reward"),
        ({**PRM, "process_only": True}, "pays a chain 0 in all"),
        ({"algorithm": "vineppo", "truncated": "bootstrap"}, "from a critic"),
        ({"algorithm": "vineppo", "overlong_buffer": 4}, "without overlong_buffer"),
        ({"algorithm": "prime", "group_size": 1}, "2 or more"),
        ({"vine_rollouts": 0}, "must be 1 or more"),
        ({"gamma": 1.5}, "between 0 and 1"),
        ({"prime_beta": 0.0}, "above 0"),
        ({"overlong_buffer": 20}, "smaller than"),
    ],
)
def test_what_makes_no_sense_is_refused(home: Path, changes: dict[str, Any], sentence: str):
    with pytest.raises(UserError, match=sentence):
        config(home, **changes)


def test_a_scorer_of_another_tokenizer_is_refused_before_anything_is_written(home: Path, tmp_path: Path):
    scorer = tmp_path / "scorer"
    save_value(ValueModel(hf.load(home / "base")), scorer, ScorerInfo("prm"), home / "base")
    raw = json.loads((scorer / "tokenizer.json").read_text())
    vocab = raw["model"]["vocab"]
    one, two = list(vocab)[-2:]
    vocab[one], vocab[two] = vocab[two], vocab[one]
    (scorer / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match="another tokenizer"):
        actor_critic(config(home, out=tmp_path / "run", algorithm="prm", scorer=scorer), mode="quiet")
    assert not (tmp_path / "run").exists()


def test_a_group_of_one_is_enough_for_a_critic(home: Path, tmp_path: Path):
    cfg = config(home, out=tmp_path / "run", group_size=1, groups=6, minibatches=1)
    assert not torch.equal(weights(actor_critic(cfg, mode="quiet")), weights(home / "base"))
    _, _, chains = gathered(home, cfg)
    assert {t.spans[t.leaves[0]].stop for t in chains.traces} <= {StopReason.STOP, StopReason.LENGTH}
