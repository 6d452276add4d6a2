"""Credit of the actor-critic recipe: what a critic learns, which chains are in it, and what continuations are."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mull.errors import StopReason
from mull.learn import optim
from mull.models import hf
from mull.models.value import ValueModel
from mull.recipes import credit
from mull.recipes.actor_critic import ActorCriticConfig, actor_critic, to_samples
from mull.types import Question, Span, SpanKind, Trace
from tests.recipes.actor_critic_tools import ALGORITHMS, Likes, config, gathered, rows, save_home


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_home(tmp_path_factory.mktemp("credit"))


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
