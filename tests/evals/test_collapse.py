"""The detector on synthetic runs: it must stay silent on healthy ones and speak soon, and rightly, on the others."""

from __future__ import annotations

import numpy as np
import pytest

from mull.evals.collapse import Collapse, CollapseDetector, onset, scan

Series = dict[str, np.ndarray]
STEPS = 160


def healthy(seed: int, steps: int = STEPS) -> Series:
    """A noisy rise: reward between two random levels, entropy falling, length drifting or growing severalfold."""
    rng = np.random.default_rng(seed)
    t = np.linspace(0, 1, steps)
    base = rng.uniform(0.02, 0.6)
    gain = rng.uniform(0.0, 0.95 - base)
    rate = rng.uniform(1, 8)
    p = base + gain * (1 - np.exp(-rate * t))
    groups = int(rng.choice([16, 48, 128]))
    # Questions differ in difficulty, so a step's mean scatters more than a binomial's over all its samples.
    reward = np.clip(rng.normal(p, 1.3 * np.sqrt(p * (1 - p) / groups)), 0, 1)
    entropy = rng.uniform(0.1, 1.0) * (1 - rng.uniform(0, 0.8) * t) * np.exp(rng.normal(0, 0.08, steps))
    length = rng.uniform(30, 300) * rng.uniform(0.6, 5.0) ** t * np.exp(rng.normal(0, 0.05, steps))
    truncated = np.clip(rng.normal(rng.uniform(0, 0.15), 0.03, steps), 0, 1)
    return {"reward": reward, "entropy": entropy, "length": length, "truncated": truncated}


def run(series: Series) -> list[Collapse]:
    return scan({"step": i + 1, **{k: v[i] for k, v in series.items()}} for i in range(len(series["reward"])))


def trained(seed: int, groups: int = 48) -> Series:
    """A healthy run whose reward has risen to about 0.5."""
    rng = np.random.default_rng(seed)
    t = np.linspace(0, 1, STEPS)
    p = 0.2 + 0.35 * (1 - np.exp(-4 * t))
    return {
        "reward": np.clip(rng.normal(p, np.sqrt(p * (1 - p) / groups)), 0, 1),
        "entropy": 0.4 * (1 - 0.5 * t) * np.exp(rng.normal(0, 0.08, STEPS)),
        "length": 90 * (1 + 0.4 * t) * np.exp(rng.normal(0, 0.05, STEPS)),
        "truncated": np.clip(rng.normal(0.03, 0.02, STEPS), 0, 1),
    }


def test_no_false_alarm_on_healthy_runs():
    alarms = {seed: [str(c) for c in found] for seed in range(200) if (found := run(healthy(seed)))}
    assert alarms == {}


def test_no_false_alarm_on_a_random_reward_control():
    """Reward is a coin: pure noise around one half for hundreds of steps, nothing else moves."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        series = healthy(seed, 300) | {"reward": rng.binomial(32, 0.5, 300) / 32}
        assert run(series) == []


def test_no_false_alarm_when_a_task_is_mastered():
    """Reward near one, entropy near zero, answers half as long: success, not collapse."""
    for seed in range(40):
        series = trained(seed)
        t = np.linspace(0, 1, STEPS)
        series["reward"] = np.clip(
            0.3 + 0.69 * np.minimum(1, 3 * t) + np.random.default_rng(seed).normal(0, 0.02, STEPS), 0, 1
        )
        series["entropy"] *= np.exp(-6 * np.clip(t - 0.35, 0, 1))
        series["length"] *= np.exp(-1.2 * t)
        assert run(series) == [], seed


SEEDS = range(25)
AT = 90  # index of the first bad step; its number is AT + 1


@pytest.mark.parametrize("seed", SEEDS)
def test_a_sudden_reward_collapse(seed: int):
    series = trained(seed)
    series["reward"][AT:] = np.clip(np.random.default_rng(seed).normal(0.03, 0.02, STEPS - AT), 0, 1)
    (alarm,) = run(series)
    assert alarm.kind == "reward" and abs(alarm.began - (AT + 1)) <= 2
    assert AT + 1 < alarm.noticed <= AT + 9
    assert f"from step {alarm.began}" in str(alarm)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_gradual_reward_collapse(seed: int):
    series = trained(seed, groups=128)
    series["reward"][AT:] *= np.linspace(1, 0, 31)[np.minimum(np.arange(STEPS - AT), 30)]
    (alarm,) = run(series)
    assert alarm.kind == "reward" and abs(alarm.began - (AT + 1)) <= 10
    assert alarm.noticed <= AT + 30


@pytest.mark.parametrize("seed", SEEDS)
def test_an_entropy_collapse(seed: int):
    series = trained(seed)
    series["entropy"][AT:] *= np.exp(-0.5 * np.arange(STEPS - AT))
    (alarm,) = run(series)
    assert alarm.kind == "entropy" and abs(alarm.began - (AT + 1)) <= 8
    assert alarm.noticed <= AT + 16


@pytest.mark.parametrize("seed", SEEDS)
def test_an_entropy_explosion(seed: int):
    series = trained(seed)
    series["entropy"][AT:] *= np.exp(0.3 * np.minimum(np.arange(STEPS - AT), 8))
    (alarm,) = run(series)
    assert alarm.kind == "entropy" and "rose" in alarm.why and abs(alarm.began - (AT + 1)) <= 8


@pytest.mark.parametrize("seed", SEEDS)
def test_a_length_explosion_into_the_limit(seed: int):
    series = trained(seed)
    grown = np.minimum(np.arange(STEPS - AT), 20) / 20
    series["length"][AT:] *= 1 + 4 * grown
    series["truncated"][AT:] = np.clip(series["truncated"][AT:] + 0.9 * grown, 0, 1)
    alarm = run(series)[0]
    assert alarm.kind == "length" and "cut off" in alarm.why and abs(alarm.began - (AT + 1)) <= 8


@pytest.mark.parametrize("seed", SEEDS)
def test_a_length_explosion_that_costs_reward(seed: int):
    series = trained(seed, groups=128)
    grown = np.minimum(np.arange(STEPS - AT), 10) / 10
    series["length"][AT:] *= 1 + 3 * grown
    series["reward"][AT:] *= 1 - 0.4 * grown  # not enough for a reward alarm
    alarm = run(series)[0]
    assert alarm.kind == "length" and "grew" in alarm.why and abs(alarm.began - (AT + 1)) <= 8


@pytest.mark.parametrize("seed", SEEDS)
def test_a_collapse_to_short_nonsense(seed: int):
    """What too high a learning rate does: within some steps the answers are a few tokens long and all wrong."""
    series = trained(seed)
    shrunk = np.minimum(np.arange(STEPS - AT), 6) / 6
    series["length"][AT:] *= 1 - 0.95 * shrunk
    series["reward"][AT:] *= 1 - shrunk
    found = run(series)
    assert (found[0].kind == "length" and "shrank" in found[0].why) or found[0].kind == "reward"
    assert {c.kind for c in found} >= {"length"}
    assert abs(found[0].began - (AT + 1)) <= 4 and found[0].noticed <= AT + 12


def test_a_length_collapse_without_any_reward_to_lose():
    """The random-reward control can die too: answers vanish although the reward stays a coin."""
    rng = np.random.default_rng(0)
    series = trained(0) | {"reward": rng.binomial(384, 0.5, STEPS) / 384}
    series["length"][AT:] *= 0.08
    (alarm,) = run(series)
    assert alarm.kind == "length" and abs(alarm.began - (AT + 1)) <= 2


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_none_speaks_at_once(bad: float):
    series = trained(0)
    series["entropy"][3:] = bad  # within the warm-up
    (alarm,) = run(series)
    assert alarm == Collapse("broken", 4, 4, "entropy is not a finite number")


def test_an_alarm_is_raised_once_and_again_only_after_recovery():
    rng = np.random.default_rng(0)
    low, high = rng.normal(0.03, 0.02, 30), rng.normal(0.5, 0.03, 30)
    rewards = np.concatenate([high, low, high, low])
    detector = CollapseDetector()
    state = []
    found = []
    for step, reward in enumerate(rewards, 1):
        if alarm := detector.update(step, float(reward)):
            found.append(alarm)
        state.append(detector.collapsed is not None)
    assert [c.kind for c in found] == ["reward", "reward"]
    assert abs(found[0].began - 31) <= 1 and abs(found[1].began - 91) <= 1
    assert state[29] is False and state[59] is True and state[89] is False and state[-1] is True


def test_one_lucky_or_unlucky_step_is_nothing():
    for value in (0.0, 1.0):
        series = trained(1)
        series["reward"][AT] = value
        assert run(series) == []


def test_missing_measurements_and_a_run_resumed_in_the_middle():
    series = trained(2)
    series["reward"][AT:] = 0.02
    rows = [{"step": i + 1, "reward": series["reward"][i], "entropy": None} for i in range(STEPS)]
    rows.insert(40, {"step": 40, "eval_accuracy": 0.3})  # a row of another kind
    whole = scan(rows)
    detector = CollapseDetector()
    scan(rows[:80], detector)  # what the folder held
    assert whole and scan(rows[80:], detector) == whole
    assert scan([]) == []


def test_onset_of_an_exact_break():
    assert onset(list(range(10, 30)), [1.0] * 12 + [0.0] * 8) == 22
    assert onset(list(range(20)), [*range(10), *range(9, -1, -1)]) in (9, 10)
    assert onset([5, 6], [1.0, 0.0]) == 6
