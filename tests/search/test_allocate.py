"""auto: probes, a plan for how hard they look, everything charged, one trace."""

import asyncio
import json
from pathlib import Path

import pytest

from mull.errors import SamplerLost, UserError
from mull.ledger import Budget
from mull.search.allocate import Calibration, Plan, Point, load_calibration
from mull.search.named import named
from mull.types import SpanKind
from tests.search.test_tree import FORK
from tests.search.tools import QUESTION, ScriptedScorer, assert_sound, canonical, chat, sampler_of

EASY = {"": {"</think>": 1.0}, "</think>": {"7": 1.0}}


def calibration(folder: Path, scorer: str = "", **changes) -> str:
    """Two bins by agreement: all probes agree, or not."""
    stop, hard = Plan("vote", 4), Plan("vote", 16)
    points = (
        Point((stop, stop), 4.0, 0.5),
        Point((hard, stop), 8.0, 0.6),
        Point((Plan("beam", 8) if scorer else Plan("adaptive", 12), stop), 16.0, 0.7),
    )
    found = Calibration("m", scorer, "last", 4, "agreement", (1.0,), 1.0, points, {"low": 0, "medium": 1, "high": 2})
    path = folder / "calibration.json"
    found.save(path)
    if changes:
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return str(path)


def ask(script, file: str, budget: Budget, scorer=None, text: str = "auto", **options):
    sampler = sampler_of(script, **options)
    strategy = named(text).bind(canonical, scorer, calibration=file)
    return asyncio.run(strategy(QUESTION, sampler, chat(), budget, seed=3)), sampler


def test_an_easy_question_is_answered_by_its_probes(tmp_path):
    budget = Budget(samples=8)
    trace, sampler = ask(EASY, calibration(tmp_path), budget)
    assert trace.answer == "7" and len(trace.leaves) == 4
    assert_sound(trace, sampler, budget)


def test_a_hard_one_gets_more_chains_and_the_probes_count_among_them(tmp_path):
    budget = Budget(samples=8)
    trace, sampler = ask(FORK, calibration(tmp_path), budget)
    assert len(trace.leaves) == 16  # 4 probes and 12 more
    assert_sound(trace, sampler, budget)
    low, _ = ask(FORK, calibration(tmp_path), Budget(samples=8), text="auto:effort=low")
    assert len(low.leaves) == 4


def test_another_strategy_s_tree_is_joined_and_charged(tmp_path):
    scorer = ScriptedScorer(lambda t: 0.9 if "b" in t else 0.2)
    budget = Budget(samples=16)
    trace, sampler = ask(FORK, calibration(tmp_path, scorer="s"), budget, scorer)
    assert trace.answer == "2" and trace.strategy == "auto"
    assert_sound(trace, sampler, budget)
    assert trace.cost.scorer_tokens == budget.spent.scorer_tokens > 0
    assert trace.spans[trace.chosen].kind is SpanKind.SAMPLED and trace.chosen in trace.leaves
    assert trace.answers[trace.leaves.index(trace.chosen)] == "2" and trace.path(trace.chosen)[0] is trace.spans[0]


def test_fewer_chains_than_probes_just_vote(tmp_path):
    trace, _ = ask(FORK, calibration(tmp_path), Budget(samples=2))
    assert len(trace.leaves) == 2


@pytest.mark.parametrize("tokens", [2, 5, 9, 17, 33, 65, 129])
@pytest.mark.parametrize("scored", [False, True])
def test_the_budget_holds_over_both_stages(tmp_path, tokens, scored):
    scorer = ScriptedScorer(lambda t: 0.5) if scored else None
    budget = Budget(tokens=tokens, answer_tokens=4, samples=16)

    def follows(tokens):
        from tests.search.tools import thought

        return FORK.get(thought(tokens)) or ({"7": 1.0} if thought(tokens).endswith("</think>") else None)

    sampler = sampler_of(FORK)
    sampler._follows = follows
    strategy = named("auto").bind(canonical, scorer, calibration=calibration(tmp_path, scorer="s" if scored else ""))
    trace = asyncio.run(strategy(QUESTION, sampler, chat(), budget, seed=3))
    assert_sound(trace, sampler, budget)


def test_a_lost_second_stage_leaves_the_probes_answer(tmp_path):
    # 4 probes: one request of thoughts, four of answers; everything after them fails
    fail = {k: SamplerLost("gone") for k in range(5, 200)}
    budget = Budget(samples=16)
    trace, sampler = ask(FORK, calibration(tmp_path), budget, fail=fail)
    assert trace.answer in ("1", "2") and any("gone" in what for what in trace.lost)
    assert_sound(trace, sampler, budget)


def test_what_is_no_calibration_is_said(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        load_calibration(str(tmp_path / "none.json"))
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(UserError, match="is no calibration file"):
        load_calibration(str(tmp_path / "bad.json"))
    with pytest.raises(UserError, match="was calibrated with the scorer s"):
        ask(FORK, calibration(tmp_path, scorer="s"), Budget(samples=16))
    again = load_calibration(calibration(tmp_path / ".." / tmp_path.name, about={"tasks": ["x"]}))
    assert again.about == {"tasks": ["x"]} and again.points[1].plans[0] == Plan("vote", 16)
