"""The tables of runs/mini.sh from marks that are known: shares, costs through what an arm goes on from, lengths."""

from __future__ import annotations

import importlib.util
import json
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from mull.evals import evidence, tables

ROOT = Path(__file__).parent.parent.parent


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "runs" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


students, lengths = script("mini_evidence"), script("mini_lengths")


def write(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def test_the_share_of_the_teacher_is_a_ratio_of_means_on_the_same_problems():
    teacher_P = np.array([1.0, 0.5, 0.0, 0.5])
    value, low, high = students.share_of(np.stack([teacher_P * 0.9, teacher_P * 0.9]), teacher_P)
    assert value == pytest.approx(0.9) and low == pytest.approx(0.9) and high == pytest.approx(0.9), "paired"
    value, low, high = students.share_of(np.stack([teacher_P, 0 * teacher_P]), teacher_P)
    assert value == pytest.approx(0.5) and low == 0 and high == pytest.approx(1.0), "seeds are drawn, too"
    assert students.share_of(np.ones((1, 4)), np.zeros(4)) == (0.0, 0.0, 0.0)


def test_an_arm_is_charged_for_all_that_it_goes_on_from_and_for_the_teacher_s_chains(tmp_path: Path):
    metrics = {
        "small-1": [{"tokens": 40, "flops": 1e12}, {"tokens": 60, "flops": 3e12}],
        "small-right-1": [{"search_flops": 5e12}, {"trained_tokens": 200, "flops": 2e12}],
        "on-1": [{"step": 0}, {"trained_tokens": 30, "flops": 4e12, "rollout_flops": 6e12}],
        "more-1": [{"search_flops": 5e12}, {"trained_tokens": 30, "flops": 1e12}],
        "rl-1": [{"trained_tokens": 7, "flops": 8e12}],
    }
    for name, rows in metrics.items():
        path = tmp_path / "chain" / name / "metrics.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert students.spent_on(tmp_path, "small", "1") == (100, 3)
    assert students.spent_on(tmp_path, "small-right", "1") == (300, 3 + 5 + 2)
    assert students.spent_on(tmp_path, "on", "1") == (330, 10 + 4 + 6)
    assert students.spent_on(tmp_path, "more", "1") == (330, 10 + 1), "the same chains are charged once"
    assert students.spent_on(tmp_path, "rl", "1") == (107, 3 + 8)


def test_a_table_has_the_arms_that_were_measured(tmp_path: Path):
    def marks(easy: int, hard: int) -> dict[str, Any]:
        rows = [(f"chain/{level}/{i}", right) for level, right in ((1, easy), (2, hard)) for i in range(5)]
        return {students.SPLIT: [{"id": name, "n": 16, "right": right, "tokens": 20.0} for name, right in rows]}

    write(tmp_path / "chain" / "teacher-0.json", marks(14, 2))
    write(tmp_path / "chain" / "longer-0.json", marks(16, 4))
    for seed in (0, 1):
        write(tmp_path / "chain" / f"small-{seed}.json", marks(8, 0))
        write(tmp_path / "chain" / f"rl-{seed}.json", marks(14, 0))
    found = {row["claim"]: row for row in students.accuracy(tmp_path)}
    both, hard = "chain, levels 1 and 2", "chain, level 2"
    assert found[f"{both} / small base / of the teacher's pass@1"]["value"] == pytest.approx(0.5)
    assert found[f"{both} / small base, RL alone / pass@1"]["value"] == pytest.approx(7 / 16)
    assert found[f"{both} / small base, RL alone / of nano's after longer RL"]["value"] == pytest.approx(7 / 10)
    assert f"{both} / nano, RL for as long as the students / of nano's after longer RL" not in found
    rl = [found[f"{split} / small base, RL alone / of the teacher's pass@1"]["value"] for split in (both, hard)]
    assert rl == [pytest.approx(7 / 8), 0], "a pooled share can hide that the harder level is not solved at all"
    assert found[f"{hard} / teacher: nano after RL / pass@1"]["n"] == 5
    assert found["chain, level 1 / small base / pass@16"]["value"] == 1
    deltas = {row["claim"].split(" / ", 1)[1]: row["value"] for row in students.compared(tmp_path)}
    assert deltas == {
        "small base, RL alone minus nano, RL for as long as the students / levels 1 and 2": pytest.approx(-3 / 16),
        "small base, RL alone minus nano, RL for as long as the students / level 1": pytest.approx(-2 / 16),
        "small base, RL alone minus nano, RL for as long as the students / level 2": pytest.approx(-4 / 16),
        "small base, RL alone minus small base / levels 1 and 2": pytest.approx(3 / 16),
        "small base, RL alone minus small base / level 1": pytest.approx(6 / 16),
        "small base, RL alone minus small base / level 2": 0,
    }
    assert "small base, RL alone" in tables.grid(
        evidence.read("mini", evidence.write("mini", list(found.values()), tmp_path).parent)
    )


def test_lengths_cut_off_obeyed_and_drawn(tmp_path: Path):
    def chains(tokens: list[int], right: list[bool]) -> list[dict[str, Any]]:
        return [{"id": "a", "tokens": tokens, "right": right}, {"id": "b", "tokens": tokens, "right": right}]

    home = tmp_path / "countdown" / "lengths"
    write(home / "plain-0.json", {"": chains([24, 100], [True, True]), "forced 4": chains([9, 9], [False, True])})
    asked = {str(n): chains([n // 2, n // 2], [True, False]) for n in lengths.TARGETS}
    write(home / "exact-0.json", asked)
    write(home / "max-0.json", {n: chains([3 * int(n) // 2, int(n) // 2], [True, False]) for n in asked})
    write(home / "words-0.json", {word: chains([50, 50], [True, True]) for word in lengths.WORDS})
    found = {row["claim"].split(" / ", 1)[1]: row["value"] for row in lengths.grid(tmp_path)}
    assert found["RL, no length in its reward / right"] == 1
    assert found["chain cut off, at 24 tokens / right"] == 0.5, "a chain that ends at the limit has ended"
    assert found["chain cut off, at 24 tokens / tokens used"] == 24
    assert found["chain cut off, at 72 tokens / tokens used"] == (24 + 72) / 2
    assert found["thought closed by force, at 4 tokens / right"] == 0.5
    assert found["effort words, effort: low / tokens used"] == 50
    obeyed = {row["claim"]: row["value"] for row in lengths.obeyed(tmp_path)}
    assert obeyed["LCPO-exact, think 96: tokens away from the target, as a share of it"] == 0.5
    assert obeyed["LCPO-max, think 96: tokens above the target, as a share of it"] == 0.25, "below is no fault"
    correlation = {claim.split(":")[0]: value for claim, value in obeyed.items() if "Spearman" in claim}
    assert correlation == {"LCPO-exact": pytest.approx(1.0), "LCPO-max": pytest.approx(1.0), "effort words": 0.0}
    drawn = ET.fromstring(lengths.picture(tmp_path))
    words = [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert {"LCPO-exact", "chain cut off", "thought closed by force"} <= set(words)


def test_equal_tokens_are_interpolated_problem_by_problem(tmp_path: Path):
    def chains(a: tuple[int, bool], b: tuple[int, bool]) -> list[dict[str, Any]]:
        return [{"id": name, "tokens": [t], "right": [r]} for name, (t, r) in (("a", a), ("b", b))]

    home = tmp_path / "countdown" / "lengths"
    forced = {"forced 4": chains((10, False), (10, True)), "forced 12": chains((20, False), (20, False))}
    write(home / "plain-0.json", {"": chains((40, True), (40, True)), **forced})
    write(home / "kimi-0.json", {"": chains((15, True), (15, False))})
    write(home / "cosine-0.json", {"": chains((30, True), (30, False))})
    write(home / "pairs-0.json", {"": chains((90, True), (90, True))})
    found = {row["claim"].partition(" / ")[2]: row for row in lengths.at_equal_tokens(tmp_path)}
    closed = {name.split(" / ")[0]: row["value"] for name, row in found.items() if name.endswith("force")}
    # Kimi at 15: half way between (0, 1) at 10 and (0, 0) at 20, so (1 - 0, 0 - 0.5). Cosine at 30: half way between
    # (0, 0) at 20 and (1, 1) at 40, so (0.5, -0.5). Nobody stopped at 90.
    assert closed == {"Kimi's length reward": pytest.approx(0.25), "cosine reward": 0}
    assert "long-to-short, DPO / minus chain cut off" not in found
    assert found["cosine reward / minus chain cut off"]["n"] == 2


def test_ranks_share_what_is_equal():
    assert lengths.ranks(np.array([5, 9, 5, 1])).tolist() == [2.5, 4.0, 2.5, 1.0]
