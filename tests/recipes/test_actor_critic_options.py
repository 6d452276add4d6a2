"""The actor-critic recipe's options: each changes what is learnt, or only how the work is done; what is refused."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from mull.errors import UserError
from mull.models import hf
from mull.models.value import ScorerInfo, ValueModel, save_value
from mull.recipes.actor_critic import ActorCriticConfig, actor_critic
from tests.recipes.actor_critic_tools import ALGORITHMS, PRIME, PRM, VINE, config, save_home
from tests.recipes.tiny import weights


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_home(tmp_path_factory.mktemp("options"))


runs: dict[str, torch.Tensor] = {}


def trained(home: Path, tmp_path: Path, **changes: Any) -> torch.Tensor:
    """The weights after a run with these changes."""
    key = repr(sorted(changes.items()))
    if key not in runs:
        cfg = config(home, **{"out": tmp_path / f"run{len(runs)}", **changes})
        runs[key] = weights(actor_critic(cfg, mode="quiet"))
    return runs[key]


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


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"algorithm": "prm", "scorer": None}, "needs a scorer"),
        ({"scorer": Path("x")}, "scorer does nothing with algorithm=ppo"),
        ({"process_only": True}, "without any reward"),
        ({**PRM, "process_only": True}, "pays a chain 0 in all"),
        ({"algorithm": "vineppo", "truncated": "bootstrap"}, "from a critic"),
        ({"algorithm": "vineppo", "overlong_buffer": 4}, "without overlong_buffer"),
        ({"algorithm": "prime", "group_size": 1}, "2 or more"),
        ({**VINE, "vine_rollouts": 0}, "must be 1 or more"),
        ({"gamma": 1.5}, "between 0 and 1"),
        ({**PRIME, "prime_beta": 0.0}, "above 0"),
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
