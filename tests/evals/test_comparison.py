"""Cells to curves: paired by problem, over tasks and seeds, against hand-worked figures."""

import numpy as np
import pytest

from mull.evals.comparison import (
    Cell,
    Cells,
    coverage,
    curves,
    difficulty,
    exit_summary,
    fits,
    oracle,
    scorer_curve,
    values,
    wrong_reasoning,
)


def row(i: int, correct, flops: float = 1.0, tokens: int = 1, wrong_step=None, lost=(), exhausted=False) -> dict:
    return {
        "id": f"p{i}", "level": 1, "correct": correct, "wrong_step": wrong_step, "tokens": tokens,
        "prefill_tokens": 0, "cached_tokens": 0, "scorer_tokens": 0, "flops": flops,
        "exhausted": exhausted, "lost": list(lost),
    }  # fmt: skip


def grid() -> Cells:
    """Two tasks, two seeds, three budgets; problem i of 10 is solved by N >= i + 1 chains."""
    cells = []
    for strategy, gain in (("vote", 0), ("beam", 2)):
        for n in (1, 4, 16):
            for task in ("a", "b"):
                for seed in (0, 1):
                    rows = [row(i, i < n + gain, flops=n * 10.0, tokens=n * 5) for i in range(10)]
                    pools = [[(0.1 * k, k % 10 <= i, str(k)) for k in range(n)] for i in range(10)]
                    cells.append(Cell(strategy, n, task, seed, rows, pools if strategy == "vote" else [], 1.0))
    return Cells(cells)


def test_points_are_means_over_problems_seeds_and_tasks():
    cells = grid()
    by = {(c["strategy"], c["task"]): c["points"] for c in curves(cells)}
    assert set(by) == {(s, t) for s in ("vote", "beam") for t in ("mean", "a", "b")}
    first = by["beam", "mean"][0]
    assert first["accuracy"] == pytest.approx(0.3) and first["n"] == 20 and first["seeds"] == 2
    assert (first["flops"], first["tokens"]) == (10.0, 5.0)
    assert [p["accuracy"] for p in by["vote", "a"]] == pytest.approx([0.1, 0.4, 1.0])
    assert values(cells, "vote", [1, 4], "a").shape == (10, 2)


def test_the_oracle_is_of_the_pools_and_no_strategy():
    cells = grid()
    found = oracle(cells, "vote", "a")
    assert [p["k"] for p in found] == [1, 2, 4, 8, 16, 32] and found[0]["flops"] == 10.0
    means = [p["accuracy"]["mean"] for p in found]
    assert means == sorted(means) and means[-1] == 1.0
    assert oracle(cells, "beam", "a") == []


def test_scorer_curve_shows_truth_falling_while_the_score_rises():
    """The scorer likes the last chains, which are wrong."""
    pools = [[(0.1, True, "x")] * 8 + [(0.9, False, "y")] for _ in range(6)]
    cells = Cells([Cell("best-of-n", 9, "a", 0, [row(i, False) for i in range(6)], pools)])
    curve = scorer_curve(cells, "best-of-n", "orm", "a")
    assert curve is not None
    truth = [p["accuracy"]["mean"] for p in curve["points"]]
    score = [p["score"]["mean"] for p in curve["points"]]
    assert truth[0] == pytest.approx(8 / 9) and truth[-1] == pytest.approx(1 / 9)
    assert score == sorted(score) and [p["k"] for p in curve["points"]] == [1, 2, 4, 8]


def test_difficulty_bins_go_from_hard_to_easy():
    found = difficulty(grid(), "vote", 4, "a", bins=5)
    assert found is not None and [b["n"] for b in found["bins"]] == [2] * 5
    assert [b["low"] for b in found["bins"]] == sorted(b["low"] for b in found["bins"])
    vote = next(r for r in found["rows"] if r["strategy"] == "vote")
    assert sum(a["mean"] for a in vote["accuracy"]) / 5 == pytest.approx(0.4)


def test_fits_and_coverage():
    cells = grid()
    line, power = fits(cells, "vote", "mean")
    assert line.law == "log" and line.b.value > 0 and power.law == "error"
    assert line.n == 20 and fits(cells, "vote", "mean", "samples", up_to=4) == []
    law = coverage(cells, "vote", "a")
    assert law is not None and law.b.value < 0


def test_wrong_reasoning_is_a_share_of_the_right_answers():
    rows = [row(0, True, wrong_step=True), row(1, True, wrong_step=False), row(2, False), row(3, True)]
    [found] = wrong_reasoning(Cells([Cell("vote", 1, "a", 0, rows)]), 1)
    assert found["share"]["mean"] == pytest.approx(0.5) and found["share"]["n"] == 2


def test_the_exit_summary_counts_questions():
    rows = [row(0, True, lost=["a scorer was lost"]), row(1, False, exhausted=True), row(2, None)]
    found = exit_summary(Cells([Cell("vote", 1, "a", 0, rows), Cell("vote", 4, "a", 0, rows)]))
    assert found["rows"] == [{"strategy": "vote", "questions": 6, "exhausted": 2, "lost": 2}]
    assert found["lost"] == [{"sentence": "a scorer was lost", "count": 2}]


def test_unscorable_marks_are_left_out_of_means():
    cells = Cells([Cell("vote", 1, "a", 0, [row(0, None), row(1, True)])])
    table = values(cells, "vote", [1], "a")
    assert np.isnan(table[0, 0]) and table[1, 0] == 1.0
