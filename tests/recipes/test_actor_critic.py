"""The actor-critic recipe: which groups teach, what is charged, truth against opinion, resuming."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from mull.chat import Chat
from mull.errors import StopReason
from mull.recipes import actor_critic as recipe
from mull.recipes.actor_critic import ActorCriticConfig, actor_critic, teaches
from tests.recipes.actor_critic_tools import ALGORITHMS, Likes, config, gathered, rows, save_home
from tests.recipes.test_resume import broken_run, finish, same_run
from tests.recipes.tiny import weights


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_home(tmp_path_factory.mktemp("actor_critic"))


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


def test_a_group_of_one_is_enough_for_a_critic(home: Path, tmp_path: Path):
    cfg = config(home, out=tmp_path / "run", group_size=1, groups=6, minibatches=1)
    assert not torch.equal(weights(actor_critic(cfg, mode="quiet")), weights(home / "base"))
    _, _, chains = gathered(home, cfg)
    assert {t.spans[t.leaves[0]].stop for t in chains.traces} <= {StopReason.STOP, StopReason.LENGTH}


def test_at_first_the_critic_learns_alone(home: Path, tmp_path: Path):
    for name in ("ppo", "prime"):
        cfg = config(home, out=tmp_path / name, algorithm=name, steps=2, critic_warmup=2)
        assert torch.equal(weights(actor_critic(cfg, mode="quiet")), weights(home / "base"))
        loss = "value_loss" if name == "ppo" else "critic_loss"
        assert all(row["lr"] == 0 and row[loss] > 0 for row in rows(cfg.out))
    vine = config(home, out=tmp_path / "vine", algorithm="vineppo", steps=1)
    actor_critic(vine, mode="quiet")
    assert rows(vine.out)[0]["lr"] == vine.lr and vine.critic_warmup, "there is no critic to wait for"


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


# ---------------------------------------------------------------------------------------------- truth against opinion


def toy(home: Path, out: Path, **changes: Any) -> list[dict[str, Any]]:
    own = {"vine_rollouts": 2} if changes["algorithm"] == "vineppo" else {"critic_warmup": 2}
    cfg = config(
        home, out=out, tasks=(f"{home / 'any.py'}:Done",), steps=14, groups=4, group_size=8, lr=0.004,
        minibatches=1, max_grad_norm=1.0, **own, **changes,
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


# ----------------------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_killed_and_resumed_is_bitwise_the_same(home: Path, tmp_path: Path, algorithm: str):
    own: dict[str, Any] = {} if algorithm == "vineppo" else {"critic_warmup": 1}
    own |= {"process": "sum"} if algorithm == "prm" else {}

    def cfg(name: str) -> ActorCriticConfig:
        return config(
            home, out=tmp_path / name, algorithm=algorithm, steps=6, kl=0.05, top_p=0.95,
            eval_every=2, eval_problems=4, eval_samples=1, checkpoint_every=2, **own,
        )  # fmt: skip

    seconds = finish(actor_critic, cfg("whole"))
    moved = [row["grad_norm"] for row in rows(cfg("whole").out) if row["step"] and row["lr"]]
    assert len(moved) >= 5 and min(moved) > 0, "a step without a gradient proves nothing"
    broken_run(actor_critic, cfg("broken"), 3, random.Random(ALGORITHMS.index(algorithm)), seconds / 8)
    same_run(tmp_path / "whole", tmp_path / "broken")
