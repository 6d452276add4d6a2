"""A setting that the chosen method does not read is refused in one sentence, and one that it reads is taken.

What each does to what is learnt is tested beside each recipe (test_*options*.py); here is that no other is silent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mull.errors import UserError
from mull.recipes.actor_critic import ActorCriticConfig
from mull.recipes.correct import CorrectConfig
from mull.recipes.distill import DistillConfig
from mull.recipes.dpo import DPOConfig
from mull.recipes.flywheel import FlywheelConfig
from mull.recipes.reward import RewardConfig
from mull.recipes.rl import RLConfig
from mull.recipes.star import StarConfig

# (config, the key that decides, a key, a value that is not its default, who reads it, who does not)
SETTINGS: list[tuple[type, str, str, Any, tuple, tuple]] = [
    (RLConfig, "algorithm", "ratio_cap", 3.0, ("mull", "rloo", "cispo"), ("grpo", "dapo", "gspo", "expert")),
    (RLConfig, "algorithm", "clip_low", 0.1, ("grpo", "dr_grpo", "reinforce_pp", "dapo"), ("mull", "cispo", "gspo")),
    (RLConfig, "algorithm", "clip_high", 0.3, ("grpo", "dr_grpo", "reinforce_pp", "dapo"), ("mull", "rloo", "expert")),
    (RLConfig, "length", "wanted", (9, 99), ("lcpo_exact", "lcpo_max"), ("none", "kimi", "cosine")),
    (RLConfig, "length", "length_alpha", 0.01, ("lcpo_exact", "lcpo_max"), ("none", "kimi", "cosine")),
    (RLConfig, "length", "effort_words", True, ("lcpo_exact", "lcpo_max"), ("none", "kimi", "cosine")),
    (RLConfig, "length", "length_paper", True, ("lcpo_exact", "kimi", "cosine"), ("none", "lcpo_max")),
    (RLConfig, "length", "length_weight", 0.5, ("kimi",), ("none", "lcpo_exact", "cosine")),
    (ActorCriticConfig, "algorithm", "gamma", 0.9, ("ppo", "prime"), ("vineppo",)),
    (ActorCriticConfig, "algorithm", "gae_lambda", 0.9, ("ppo",), ("vineppo", "prime")),
    (ActorCriticConfig, "algorithm", "value_lambda", 0.9, ("ppo",), ("vineppo", "prime")),
    (ActorCriticConfig, "algorithm", "value_clip", 0.0, ("ppo",), ("vineppo", "prime")),
    (ActorCriticConfig, "algorithm", "critic_lr", 1e-3, ("ppo", "prime"), ("vineppo",)),
    (ActorCriticConfig, "algorithm", "critic_epochs", 2, ("ppo", "prime"), ("vineppo",)),
    (ActorCriticConfig, "algorithm", "critic_warmup", 0, ("ppo", "prime"), ("vineppo",)),
    (ActorCriticConfig, "algorithm", "scorer", Path("a/folder"), ("prm",), ("ppo", "vineppo", "prime")),
    (ActorCriticConfig, "algorithm", "process", "sum", (), ("ppo", "vineppo", "prime")),
    (ActorCriticConfig, "algorithm", "process_weight", 0.5, ("prime",), ("ppo", "vineppo")),
    (ActorCriticConfig, "algorithm", "outcome_weight", 0.5, ("ppo", "prime"), ("vineppo",)),
    (ActorCriticConfig, "algorithm", "vine_rollouts", 9, ("vineppo",), ("ppo", "prime")),
    (ActorCriticConfig, "algorithm", "prime_beta", 0.1, ("prime",), ("ppo", "vineppo")),
    (ActorCriticConfig, "algorithm", "keep_low", 0.1, ("prime",), ("ppo", "vineppo")),
    (ActorCriticConfig, "algorithm", "keep_high", 0.9, ("prime",), ("ppo", "vineppo")),
    (ActorCriticConfig, "algorithm", "process_temperature", 1.0, (), ("ppo", "vineppo", "prime")),
    (CorrectConfig, "method", "stage1_steps", 10, ("score",), ("first", "pair_sft", "star")),
    (CorrectConfig, "method", "alpha", 1.0, ("score",), ("first", "pair_sft", "star")),
    (CorrectConfig, "method", "beta1", 0.1, ("score", "first"), ("pair_sft", "star")),
    (CorrectConfig, "method", "beta2", 0.1, ("score",), ("first", "pair_sft", "star")),
    (CorrectConfig, "method", "credit", "sum", ("score",), ("first", "pair_sft", "star")),
    (CorrectConfig, "method", "baseline", "group", ("score",), ("first", "pair_sft", "star")),
    (DistillConfig, "method", "keep", "right", ("off",), ("on",)),
    (DistillConfig, "method", "strategy", "vote", ("off",), ("on",)),
    (DistillConfig, "method", "scorer", "a/folder", ("off",), ("on",)),
    (DistillConfig, "method", "traces", Path("a/folder"), ("off",), ("on",)),
    (DistillConfig, "method", "wishes", "tokens", ("off",), ("on",)),
    (DistillConfig, "wishes", "longest", 9, ("words",), ("none", "tokens")),
    (DistillConfig, "method", "problems", 9, ("off",), ("on",)),
    (DistillConfig, "method", "samples", 2, ("off",), ("on",)),
    (DistillConfig, "method", "epochs", 2, ("off",), ("on",)),
    (DistillConfig, "method", "trained_tokens", 999, ("off",), ("on",)),
    (DistillConfig, "method", "step_tokens", 999, ("off",), ("on",)),
    (DistillConfig, "method", "trace_seed", 3, ("off",), ("on",)),
    (DistillConfig, "method", "form", "sampled", ("on",), ("off",)),
    (DistillConfig, "method", "direction", "forward", ("on",), ("off",)),
    (DistillConfig, "method", "steps", 9, ("on",), ("off",)),
    (DistillConfig, "method", "groups", 9, ("on",), ("off",)),
    (DistillConfig, "method", "group_size", 9, ("on",), ("off",)),
    (DPOConfig, "method", "pairs", "chains", ("dpo", "both"), ("sft",)),
    (DPOConfig, "method", "theta", 0.5, ("dpo", "both"), ("sft",)),
    (DPOConfig, "method", "outcomes", 0.5, ("dpo", "both"), ("sft",)),
    (DPOConfig, "method", "least", 2, ("dpo", "both"), ("sft",)),
    (DPOConfig, "method", "most", 2, ("dpo", "both"), ("sft",)),
    (DPOConfig, "method", "reference", "model", ("dpo", "both"), ("sft",)),
    (DPOConfig, "method", "beta", 0.1, ("dpo", "both"), ("sft",)),
    (DPOConfig, "method", "form", "ipo", ("dpo", "both"), ("sft",)),
    (DPOConfig, "method", "normalised", True, ("dpo", "both"), ("sft",)),
    (DPOConfig, "method", "nll", 1.0, ("dpo", "both"), ("sft",)),
    (DPOConfig, "method", "paths", 2, ("sft", "both"), ("dpo",)),
    (DPOConfig, "method", "weight", "visits", ("sft", "both"), ("dpo",)),
    (DPOConfig, "method", "sft_weight", 0.5, ("both",), ("sft", "dpo")),
    (DPOConfig, "pairs", "theta", 0.5, ("steps", "both"), ("chains", "short")),
    (DPOConfig, "pairs", "outcomes", 0.5, ("steps", "both"), ("chains", "short")),
    (DPOConfig, "pairs", "least", 2, ("steps", "both"), ("chains", "short")),
    (DPOConfig, "pairs", "longer", 2.0, ("short",), ("steps", "chains", "both")),
    (FlywheelConfig, "method", "beta", 0.5, ("dpo",), ("sft",)),
    (FlywheelConfig, "method", "nll", 1.0, ("dpo",), ("sft",)),
    (RewardConfig, "kind", "rollouts", 2, ("prm-rollouts", "omega"), ("orm", "prm", "pairwise", "critic")),
    (RewardConfig, "kind", "rollout_chains", 2, ("prm-rollouts", "omega"), ("orm", "prm", "pairwise", "critic")),
    (RewardConfig, "kind", "hard", True, ("prm-rollouts",), ("orm", "prm", "omega", "pairwise", "critic")),
    (RewardConfig, "kind", "loss", "mse", ("orm", "prm", "prm-rollouts", "omega"), ("pairwise", "critic")),
    (RewardConfig, "kind", "lm_weight", 0.0, ("orm", "prm", "prm-rollouts", "omega"), ("pairwise", "critic")),
    (RewardConfig, "kind", "every_token", False, ("prm", "prm-rollouts", "omega"), ("orm", "pairwise", "critic")),
    (StarConfig, "rationalize", "hint", "{question} ({answer})", (True,), (False,)),
    (StarConfig, "rationalize", "rationalized_share", 0.5, (True,), (False,)),
]


@pytest.mark.parametrize(("config", "by", "key", "value", "readers", "others"), SETTINGS)
def test_a_setting_is_taken_or_refused_never_ignored(
    config: type, by: str, key: str, value: Any, readers: tuple, others: tuple
):
    assert getattr(config(), key) != value
    for chosen in readers:
        assert getattr(config(**{by: chosen, key: value}), key) == value
    for chosen in others:
        config(**{by: chosen})  # is itself right
        with pytest.raises(UserError, match=rf"^{key} does nothing with {by}={str(chosen).lower()}: leave it out, or"):
            config(**{by: chosen, key: value})


def test_what_a_scorers_word_is_worth_is_a_setting_of_prm_alone():
    judged: dict[str, Any] = {"algorithm": "prm", "scorer": Path("a/folder")}
    assert ActorCriticConfig(**judged, process="min", process_temperature=1.0, process_weight=0.5).process == "min"
    with pytest.raises(UserError, match=r"^process_temperature does nothing with process=potential"):
        ActorCriticConfig(**judged, process_temperature=1.0)


def test_replay_share_is_of_a_replayed_task():
    assert StarConfig(replay="chain", replay_share=0.5).replay_share == 0.5
    with pytest.raises(UserError, match="replay_share does nothing without replay"):
        StarConfig(replay_share=0.5)


def test_a_flywheel_of_either_method_learns_by_its_own_settings():
    """The lesson it hands on has the preference's settings where there are preferences, and none of them otherwise."""
    assert FlywheelConfig().lesson.method == "sft"
    lesson = FlywheelConfig(method="dpo", beta=0.3, nll=1.0).lesson
    assert (lesson.method, lesson.beta, lesson.nll, lesson.reference) == ("dpo", 0.3, 1.0, "model")
