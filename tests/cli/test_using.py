"""Commands that use a model: think, eval, report, bench."""

from __future__ import annotations

import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from mull.cli import main
from tests.cli.tools import RL, refused


def test_think_shows_the_answer_and_an_honest_bill(home: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["think", "--model", "tiny", "1+1?", "--budget", "8", "-n", "3"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("model: tiny\n") and "chain 3 of 3" in out
    bill = re.search(
        r"3 chains: (\d+) thinking tokens, (\d+) answer tokens, (\d+) prompt tokens, [\d.]+ s, [\d.e+]+ FLOPs$",
        out.strip(),
    )
    assert bill
    from mull.recipes.think import Ask, think

    again = think(Ask("1+1?", samples=3, budget=8, strategy="vote"), "tiny")
    assert int(bill[1]) + int(bill[2]) == again.trace.cost.sampled_tokens
    assert int(bill[3]) == again.prompt_tokens == len("1+1?") + 4  # user, end, assistant, think


@pytest.mark.parametrize("strategy", ["sample", "forced"])
def test_the_bill_counts_what_was_sampled_and_not_what_was_forced(home: Path, strategy: str):
    from mull.recipes.think import Ask, think

    for budget in (0, 5):
        if strategy == "sample" and not budget:
            continue
        got = think(Ask("hm", samples=4, budget=budget, strategy=strategy, answer_tokens=4), "tiny")
        assert sum(c.think_tokens + c.answer_tokens for c in got.chains) == got.trace.cost.sampled_tokens
        assert all(c.think_tokens <= budget + (4 if strategy == "sample" else 0) for c in got.chains)
        if strategy == "forced":
            assert any(c.forced for c in got.chains)
            assert all(c.answer_tokens <= 4 for c in got.chains)


def test_think_draws_a_held_out_problem_and_judges_it(home: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["think", "--model", "tiny", "--task", "chain", "--level", "2", "--budget", "8", "--seed", "4"]) == 0
    out = capsys.readouterr().out
    from mull.tasks.load import load_task

    problem = next(load_task("chain").stream(2, "test", 4))
    assert "chain, level 2, held out" in out and problem.question.text in out
    assert f"wrong; a right answer is {problem.reference.answer}" in out


def test_raw_is_the_model_s_own_text_and_nothing_else(home: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["think", "--model", "tiny", "hi", "--budget", "8", "--raw", "--seed", "1"]) == 0
    out, err = capsys.readouterr()
    from mull.recipes.think import Ask, think

    assert out == think(Ask("hi", budget=8, seed=1), "tiny").chains[0].raw + "\n"
    assert "FLOPs" in err


def test_without_a_model_the_demo_s_is_asked_if_there_is_one(home: Path, capsys: pytest.CaptureFixture[str]):
    (home / "runs" / "demo").mkdir(parents=True)
    (home / "tiny").rename(home / "runs" / "demo" / "model")
    assert main(["think", "hi", "--budget", "4"]) == 0
    assert "model: runs/demo/model (trained by mull demo)" in capsys.readouterr().out


def test_eval_writes_the_figures_it_shows(home: Path, capsys: pytest.CaptureFixture[str]):
    args = ["eval", "--model", "tiny", "--task", "any.py:Any", "--task", "set.jsonl", "--n", "6", "--samples", "3"]
    assert main([*args, "--budget", "12", "--json", "out.json", "--quiet"]) == 0
    shown = capsys.readouterr().out
    found = json.loads((home / "out.json").read_text())
    assert found["command"].startswith("mull eval --model tiny") and found["seed"] == 0
    any_row, set_row = found["rows"]
    assert (any_row["task"], any_row["problems"], any_row["samples"]) == ("any.py:Any", 6, 18)
    assert (set_row["task"], set_row["problems"]) == ("set.jsonl", 2)
    assert set_row["pass_at_1"]["mean"] == 0 and 0 < any_row["pass_at_1"]["mean"] < 1
    for row in found["rows"]:
        assert row["pass_at_1"]["low"] <= row["pass_at_1"]["mean"] <= row["pass_at_1"]["high"]
        assert row["votes"] == 3 and row["vote"]["n"] == row["problems"]
        assert 1 <= row["tokens"] <= 12 + 64 and row["flops_per_problem"] > 1e5 and 0 <= row["truncated"] <= 1
        assert f"{100 * row['pass_at_1']['mean']:.1f}%" in shown
    assert max(map(len, shown.splitlines())) <= 110


def test_the_numbers_of_the_weights_are_asked_for(home: Path, capsys: pytest.CaptureFixture[str]):
    from mull.recipes.think import Ask, think
    from mull.search.sources import Source

    rounded = think(Ask("hi", samples=8, strategy="vote", budget=24), Source("tiny", dtype="bfloat16"))
    args = ["think", "--model", "tiny", "hi", "-n", "8", "--budget", "24", "--raw"]
    assert main([*args, "--dtype", "bfloat16"]) == 0
    out, _ = capsys.readouterr()
    assert out == "".join(chain.raw + "\n" for chain in rounded.chains)
    assert main([*args, "--device", "cpu"]) == 0
    assert capsys.readouterr().out != out
    args = [
        "eval",
        "--model",
        "tiny",
        "--task",
        "any.py:Any",
        "--n",
        "8",
        "--budget",
        "12",
        "--quiet",
        "--json",
        "x.json",
    ]
    found = []
    for more in ([], ["--dtype", "bfloat16"]):
        assert main([*args, "--samples", "8", *more]) == 0
        found.append(json.loads((home / "x.json").read_text()))
    assert [(one["device"], one["dtype"]) for one in found] == [("cpu", "float32"), ("cpu", "bfloat16")]
    assert found[0]["rows"] != found[1]["rows"]
    capsys.readouterr()


def test_an_effort_is_asked_for(home: Path, capsys: pytest.CaptureFixture[str]):
    from mull.recipes.think import Ask, think

    got = think(Ask("hm", effort="low", budget=8), "tiny")
    assert got.trace.question.text == "hm\neffort: low"
    ask = ["--model", "tiny", "--budget", "12", "--effort"]
    args = ["eval", "--task", "countdown", "--level", "1", "--n", "2", "--quiet", "--json", "out.json"]
    assert main([*args, "--strategy", "vote", *ask, "16"]) == 0
    assert json.loads((home / "out.json").read_text())["effort"] == "16"
    assert main(["think", "--task", "countdown", "-n", "2", *ask, "high"]) == 0
    capsys.readouterr()
    assert "the effort 'hgih' is not low, medium, high, or a number of tokens" in refused(
        capsys, "think", "hm", "--model", "tiny", "--effort", "hgih"
    )


def test_eval_counts_what_could_not_be_judged_and_levels_apart(home: Path, capsys: pytest.CaptureFixture[str]):
    base = ["eval", "--model", "tiny", "--budget", "12", "--json", "out.json", "--quiet", "--n", "8"]
    assert main([*base, "--task", "any.py:Picky", "--samples", "8"]) == 0
    [row] = json.loads((home / "out.json").read_text())["rows"]
    assert 0 < row["unscorable"] < 64
    for strategy in ("vote", "forced"):
        args = ["--task", "chain", "--level", "1", "--level", "2", "--samples", "2", "--strategy", strategy]
        assert main([*base, *args]) == 0
        rows = json.loads((home / "out.json").read_text())["rows"]
        assert [(r["task"], r["level"], r["problems"]) for r in rows] == [
            ("chain", None, 8),
            ("chain", 1, 4),
            ("chain", 2, 4),
        ]
    capsys.readouterr()


@pytest.mark.parametrize("strategy", ["beam:expand=2", "rebase", "mcts", "particles", "adaptive", "wait"])
def test_a_search_is_shown_with_its_bill_and_what_it_could_not_do(home: Path, capsys, strategy: str):
    plain = ["--model", "tiny", "--strategy", strategy, "--scorer", "logprob"]
    assert main(["think", *plain, "1+1?", "--budget", "8", "-n", "4", "--tokens", "30"]) == 0
    out = capsys.readouterr().out
    bill = re.search(r"(\d+) steps, (\d+) answers, (\d+) sampled tokens", out)
    assert bill and int(bill[3]) <= 30
    args = ["eval", *plain, "--task", "any.py:Any", "--n", "6", "--samples", "4", "--budget", "12", "--tokens", "40"]
    assert main([*args, "--json", "out.json", "--quiet"]) == 0
    shown = capsys.readouterr().out
    [row] = json.loads((home / "out.json").read_text())["rows"]
    assert row["answer"]["n"] == 6 and row["tokens_per_problem"] <= 40 and row["flops_per_problem"] > 0
    assert f"{100 * row['answer']['mean']:.1f}%" in shown
    assert ("exhausted: the budget ran out on" in shown) == (row["exhausted"] > 0)
    for what in list(row["lost"])[:8]:
        assert what in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 110 or row["lost"]


def test_strategies_are_listed_with_their_options(capsys: pytest.CaptureFixture[str]):
    assert main(["strategies"]) == 0
    out = capsys.readouterr().out
    assert "beam\n    N: paths" in out and "expand=4" in out and "auto" in out


def test_report_of_an_rl_run_and_of_a_demo(home: Path, capsys: pytest.CaptureFixture[str]):
    more = ["--model", "tiny", "--out", "run", "-o", "eval_every=1", "-o", "eval_problems=4", "-o", "eval_samples=1"]
    assert main([*RL, *more]) == 0
    assert main(["report", "run"]) == 0
    assert capsys.readouterr().out.endswith("report: run/report.html\n")
    page = (home / "run" / "report.html").read_text()
    assert "any" in page and "mull rl --quiet" in page
    summary = json.loads((home / "run" / "summary.json").read_text())
    assert len(summary["train_curve"]) == 3 and summary["train_curve"][0]["flops"] == 0
    assert summary["pass_at_1"]["base"]["n"] == 4 and summary["command"].startswith("mull rl")

    (home / "demo").mkdir()
    assert "holds no run" in refused(capsys, "report", "demo")
    (home / "demo" / "report_data.json").write_text("{")
    assert "report_data.json is not valid JSON" in refused(capsys, "report", "demo")
    (home / "demo" / "report_data.json").write_text("{}")
    assert "lack" in refused(capsys, "report", "demo")
    from tests.evals.report_fixture import report

    (home / "demo" / "report_data.json").write_text(json.dumps(report()))
    assert main(["report", "demo"]) == 0
    assert (home / "demo" / "report.html").stat().st_size > 100_000


def test_bench_gets_its_name_options_and_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    seen: list[Any] = []
    fake = types.ModuleType("mull.recipes.bench")
    fake.bench = lambda *given: seen.append(given) or 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mull.recipes.bench", fake)
    assert main(["bench", "rollout", "--json", "x.json", "-o", "n=4"]) == 3
    assert seen == [("rollout", Path("x.json"), {"n": "4"})]
    assert "is not of the form key=value" in refused(capsys, "bench", "rollout", "-o", "n")
