"""Majority vote on a scripted sampler."""

import asyncio

from mull.engine.scripted import ScriptedSampler
from mull.ledger import Budget
from mull.search.vote import majority, vote
from mull.types import Question, Trace
from tests.search.test_sample import QUESTION, chat


def canonical(question: Question, answer: str) -> str | None:
    assert isinstance(question, Question)  # and no reference
    return str(int(answer)) if answer.lstrip("-").isdigit() else None


def chosen(*answers: str) -> str:
    return majority(Trace(QUESTION, "vote", answers=list(answers)), canonical)


def test_the_answer_that_most_reach_counted_by_canonical_form():
    assert chosen("4", "5", "5") == "5"
    assert chosen("5", "04", "4", "5", "+4", "004") == "04", "equal forms count together, the first text is given"
    assert chosen("7", "8") == "7" and chosen("8", "7", "7", "8") == "8", "a tie goes to the one reached first"


def test_the_unreadable_do_not_vote():
    assert chosen("", "", "four", "3") == "3"
    assert chosen("", "four") == "" and chosen() == ""


def test_vote_samples_and_chooses():
    sampler = ScriptedSampler([f"so</think>{a}" for a in ("1", "2", "2")], chat())
    budget = Budget(samples=3)
    trace = asyncio.run(vote(QUESTION, sampler, chat(), budget, canonical=canonical, seed=4))
    assert trace.strategy == "vote" and trace.answer == "2" and trace.answers == ["1", "2", "2"]
    assert len(trace.leaves) == 3 and trace.cost == budget.spent == sampler.cost


def test_voting_helps_a_model_that_is_right_more_often_than_not():
    sampler = ScriptedSampler(script, chat())
    right = {1: 0, 9: 0}
    for n in right:
        for seed in range(60):
            trace = asyncio.run(vote(QUESTION, sampler, chat(), Budget(samples=n), canonical=canonical, seed=seed))
            right[n] += trace.answer == "4"
    assert 24 <= right[1] <= 46 and right[9] > right[1] + 8


def script(prefix):
    return {"so</think>4": 0.6, "so</think>5": 0.2, "so</think>3": 0.2} if prefix[-1] in chat().think_open else None
