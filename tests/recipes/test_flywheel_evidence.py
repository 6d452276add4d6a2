"""The piece runs/flywheel.sh: verdicts by chance where it says so and nowhere else, and its tables from known marks."""

from __future__ import annotations

import importlib.util
import json
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mull import config as configs
from mull.evals import evidence, tables
from mull.recipes.flywheel import FlywheelConfig
from mull.tasks.base import SPLITS
from mull.tasks.load import load_task

ROOT = Path(__file__).parent.parent.parent
COIN = f"{ROOT / 'runs' / 'flywheel_coin.py'}:Coin"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("flywheel_evidence", ROOT / "runs" / "flywheel_evidence.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["flywheel_evidence"] = module
    spec.loader.exec_module(module)
    return module


def test_the_coin_knows_nothing_on_train_problems_and_everything_on_held_out_ones():
    coin, chain = load_task(COIN), load_task("chain")
    by_truth: dict[bool, list[bool]] = {True: [], False: []}
    for split in SPLITS:
        for problem, same in zip(coin.up_to(1, split, 0, 200), chain.up_to(1, split, 0, 200), strict=True):
            assert problem == same
            for answer in (problem.reference.answer, str(int(problem.reference.answer) + 1), "no number"):
                told, truth = coin.check(problem, answer), chain.check(problem, answer)
                assert told.answer == truth.answer and coin.check(problem, answer) == told
                if split == "train":
                    by_truth[truth.correct is True].append(told.correct is True)
                else:
                    assert told == truth
    for told in by_truth.values():  # three standard deviations
        assert abs(sum(told) / len(told) - 0.5) < 1.5 / len(told) ** 0.5


# ------------------------------------------------------------------------------------------------- the tables

VALID = (1, 5, 8, 8, 7, 9)  # right ones of ten problems by turn, the base first
TEST = (2, 4, 6, 6, 6, 8)
FLOPS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)


def made(folder: Path, seed: int, valid: tuple[int, ...] = VALID, test: tuple[int, ...] = TEST) -> None:
    """A run as `mull flywheel` leaves it: turn t has so many of ten problems right, and costs a doubling each."""
    rows: list[dict[str, Any]] = []
    for n in range(len(valid)):
        at = folder / "turns" / f"{n:02d}"
        at.mkdir(parents=True)
        for name, right in (("valid", valid[n]), ("test", test[n])):
            (at / f"{name}.json").write_text(json.dumps([[i < right, None] for i in range(10)]))
        row = {"turn": n, "spent_flops": FLOPS[n], "tokens": {"sampled": 100 * n, "trained": 10 * n}, "valid": {}}
        row |= {
            "asked": {"new": 6, "again": 2, "chains": 40, "right": 4 * n},
            "learnt": {"lessons": 3 * n},
            "curated": {"kept": 2, "equal chain": 5, "near duplicate": 1, "wrong answer": 9},
            "contaminated": {},
            "pass_rates": {"standing": {"open": 5, "solved": 2, "never": 1}},
        }
        rows.append(row)
    rows.append({**rows[-1], "turn": len(valid)})  # a turn that found nothing to learn from
    del rows[-1]["valid"]
    (folder / "report.json").write_text(json.dumps({"turns": rows}))
    cfg = FlywheelConfig(out=folder, seed=seed, patience=99, threshold=0.01)
    (folder / "config.toml").write_text(configs.to_toml(cfg))


@pytest.fixture
def written(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, evidence.Row]]:
    """All evidence of two seeds, by file and claim."""
    for seed in (0, 1):
        made(tmp_path / "run" / "chain" / f"loop-{seed}", seed)
        made(tmp_path / "run" / "chain" / f"coin-{seed}", seed, (1, 1, 2), (2, 1, 2))
        made(tmp_path / "run" / "chain" / f"once-{seed}", seed, (1, 6), (2, 7))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(script, "interval", partial(script.interval, resamples=200))
    script.main(tmp_path / "run")
    for name in ("flywheel", "flywheel-rule", "flywheel-spent", "flywheel-data"):
        assert tables.grid(evidence.read(name))
    return {p.stem: {row["claim"]: row for row in evidence.read(p.stem)} for p in evidence.ROOT.glob("*.json")}


def test_where_the_rule_stops_and_what_going_on_brings(written: dict[str, dict[str, evidence.Row]]):
    rows = written["flywheel-rule"]

    def cells(label: str) -> dict[str, float]:
        start = f"chain, the rule / {label} / "
        return {claim.removeprefix(start): row["value"] for claim, row in rows.items() if claim.startswith(start)}

    # turn 3 is no better than turn 2, turn 4 worse, turn 5 better again
    one, two, three = cells("patience 1"), cells("patience 2 (set before the runs)"), cells("patience 3")
    assert one["after turn"] == 3 and two["after turn"] == 4
    assert two["stopped"] == 2 and three["stopped"] == 0 and three["after turn"] == 5
    assert two["test of its model"] == pytest.approx(0.6)  # of turn 2, the first of equals
    assert two["going on brings"] == pytest.approx(0.2) and two["at a cost of"] == pytest.approx(1)
    assert one["at a cost of"] == pytest.approx(2) and one["each doubling"] == pytest.approx(0.1)
    assert three["going on brings"] == 0 and "each doubling" not in three
    assert cells("seed 1, patience 2")["after turn"] == 4
    assert rows["chain, the rule / seed 1, patience 2 / after turn"]["seeds"] == [1]


def test_turns_and_differences(written: dict[str, dict[str, evidence.Row]]):
    turns = written["flywheel"]
    assert turns["chain, the loop / base / test"]["value"] == pytest.approx(0.2)
    assert turns["chain, the loop / turn 2 / gain"]["value"] == pytest.approx(0.2)
    assert turns["chain, the loop / turn 2 / gain"]["n"] == 20 and turns["chain, the loop / turn 2 / learnt"]["n"] == 2
    assert turns["chain, the loop / turn 5 / spent so far"]["value"] == 16e-12
    assert "chain, the loop / turn 6 / test" not in turns  # it has no model
    assert turns["chain, one turn, all questions / turn 1 / right of the sampled"]["value"] == pytest.approx(0.1)
    points = {claim: row["value"] for claim, row in written["flywheel-compared"].items()}
    assert points["chain: where the rule stopped the loop, minus the base"] == pytest.approx(0.4)
    assert points["chain: the loop's last turn minus one turn with all questions"] == pytest.approx(0.1)
    equal = "chain: turn 1 of the loop, the last at no more compute, minus one turn with all questions"
    assert points[equal] == pytest.approx(-0.3)
    assert points["chain: where the rule stopped the loop, minus one turn with all questions"] == pytest.approx(-0.1)
    assert points["chain: turn 2 of the loop, minus the same with verdicts by chance"] == pytest.approx(0.4)
    assert points["chain: turn 2 of the loop with verdicts by chance, minus the base"] == pytest.approx(0)


def test_costs_and_curation(written: dict[str, dict[str, evidence.Row]]):
    spent = {claim: row["value"] for claim, row in written["flywheel-spent"].items()}
    assert spent["chain, what it cost / the loop / sampled"] == 1500
    assert spent["chain, what it cost / the loop, up to where the rule stopped it / sampled"] == 1000
    assert spent["chain, what it cost / one turn, all questions / both"] == 1e-12
    kept = {claim: row["value"] for claim, row in written["flywheel-data"].items()}
    name = "chain, right chains so far / turn 3 / "
    assert kept[name + "kept"] == pytest.approx(0.25) and kept[name + "equal"] == pytest.approx(0.625)
    assert kept[name + "more"] == 0 and kept[name + "contaminated"] == 0
    assert kept[name + "questions solved"] == pytest.approx(0.25)


def test_the_bootstrap_covers_seeds_and_problems(script: ModuleType):
    import numpy as np

    rng = np.random.default_rng(1)
    apart = script.interval([np.zeros(50), np.ones(50)])  # seeds that differ
    assert apart[0] == 0.5 and apart[1] == 0 and apart[2] == 1
    alike = script.interval([rng.integers(0, 2, 400).astype(float) for _ in range(3)])
    assert 0.03 < alike[2] - alike[1] < 0.12
    assert script.interval([np.array([1.0, np.nan])])[0] == 1  # what could not be judged is in no mean
