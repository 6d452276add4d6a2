"""Grading and evaluating: the unscorable are counted apart, costs add up, seeds reproduce."""

import asyncio
from functools import cache
from tempfile import TemporaryDirectory

import pytest

from mull.chat import Chat
from mull.engine.scripted import ScriptedSampler
from mull.errors import Unscorable, UserError
from mull.evals.evaluate import Evaluation, Held, evaluate, held_out, thought_tokens
from mull.evals.grade import grade, judge, unscorable
from mull.ledger import Budget
from mull.models.nano import write_tokenizer
from mull.search.sample import sample_forced
from mull.tasks.load import load_task
from mull.types import Cost, Problem, Question, Reference, Span, SpanKind, Trace, Verdict

TASK = load_task("chain")
OTHER = load_task("addition")


@cache
def chat() -> Chat:
    with TemporaryDirectory() as folder:
        write_tokenizer(folder)
        return Chat.load(folder)


def guessing(prefix):
    """Sometimes right: after the opening tag of any prompt, one of three answers."""
    if prefix[-1] in chat().think_close:
        return ord("0"), chat().turn_end
    return {"a=1</think>0": 0.5, "b=2\nb=3</think>1": 0.3, "oh": 0.2} if prefix[-1] in chat().think_open else None


def run(held, sampler, samples=4, **options) -> Evaluation:
    budget = Budget(think_tokens=30, answer_tokens=8, samples=samples)
    return asyncio.run(evaluate(held, sampler, chat(), budget, **options))


def test_costs_add_up_and_every_leaf_is_judged():
    held = held_out([TASK, OTHER], [1], 10, "test", 0)
    sampler, done = ScriptedSampler(guessing, chat()), []
    result = run(held, sampler, on_done=done.append)
    assert done == list(range(1, 11)) and len(result.traces) == 10
    assert result.cost == sampler.cost and result.cost.sampled_tokens > 0
    assert sum((g.cost for pool in result.pools for g in pool), Cost()).sampled_tokens == pytest.approx(
        result.cost.sampled_tokens
    )
    for h, trace in zip(held, result.traces, strict=True):
        assert [v.correct for v in trace.verdicts] == [h.task.check(h.problem, a).correct for a in trace.answers]
        assert trace.verdict == h.task.check(h.problem, trace.answer)
    marks = [m for marks in result.marks for m in marks]
    assert result.accuracy.mean == pytest.approx(sum(map(bool, marks)) / len(marks)) and result.accuracy.samples == 40
    part = result.of("chain")
    assert {h.task.name for h in part.held} == {"chain"} and len(part.traces) == 5
    assert part.cost + result.of("addition").cost == result.cost


def test_the_same_seed_gives_the_same_evaluation_and_another_another():
    held = held_out([TASK], [1, 2], 8, "valid", 3)
    assert [h.problem for h in held] == [h.problem for h in held_out([TASK], [1, 2], 8, "valid", 3)]
    first, again, other = (run(held, ScriptedSampler(guessing, chat()), seed=seed) for seed in (5, 5, 6))
    answers = [[t.answers for t in e.traces] for e in (first, again, other)]
    assert answers[0] == answers[1] != answers[2] and first.marks == again.marks
    assert len({str(a) for a in answers[0]}) > 1, "each problem has a seed of its own"
    seeds = [run([h], s := ScriptedSampler(guessing, chat()), seed=5) and s.calls[0].params.seed for h in held]
    assert len(set(seeds)) == 1, "which comes from its place in the list"


def test_a_budget_is_each_problems_own():
    sampler = ScriptedSampler(guessing, chat())
    budget = Budget(tokens=90, think_tokens=30, answer_tokens=8, samples=2)
    result = asyncio.run(evaluate(held_out([TASK], [1], 6, "test", 0), sampler, chat(), budget))
    assert budget.spent == Cost() and not any(t.exhausted for t in result.traces)
    assert all(0 < t.cost.sampled_tokens <= 90 for t in result.traces)


class Crashing:
    """The chain task with a grader that dies on one answer."""

    def __getattr__(self, name):
        return getattr(TASK, name)

    def check(self, problem: Problem, answer: str) -> Verdict:
        if answer == "1":
            raise Unscorable("the grader took longer than 5 s")
        return TASK.check(problem, answer)


def test_the_unscorable_are_counted_apart_and_never_wrong():
    crashing = Crashing()
    held = [Held(crashing, h.problem) for h in held_out([TASK], [1], 12, "test", 0)]  # type: ignore[arg-type]
    result = run(held, ScriptedSampler(guessing, chat()), seed=1)
    lost = sum(answer == "1" for trace in result.traces for answer in trace.answers)
    judged = [v.correct for trace in result.traces for v in trace.verdicts if v.correct is not None]
    assert 0 < lost == unscorable(result.traces) == result.accuracy.unscorable
    assert result.accuracy.samples == len(judged) == 48 - lost
    for trace in result.traces:
        for answer, verdict in zip(trace.answers, trace.verdicts, strict=True):
            assert (verdict.correct is None) == (answer == "1") == (verdict.reward is None)
            assert (verdict.error == "the grader took longer than 5 s") == (answer == "1")


def test_a_grader_that_gives_up_or_crashes_is_unscorable_and_a_users_mistake_is_not():
    problem = Problem(Question("q", "t", "?"), Reference("1"))

    def raising(error):
        def check(problem, answer):
            raise error

        return check

    assert judge(raising(Unscorable()), problem, "1") == Verdict(None, error="the grader gave no reason")
    crashed = judge(raising(ZeroDivisionError("1/0")), problem, "1")
    assert crashed.correct is None and "crashed" in crashed.error and "1/0" in crashed.error
    for error in (UserError("no such level"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            judge(raising(error), problem, "1")


def test_equal_answers_are_judged_once_and_a_trace_without_leaves_has_a_verdict():
    seen = []

    class Counting(Crashing):
        def check(self, problem, answer):
            seen.append(answer)
            return Verdict(answer == "0")

    [h] = held_out([TASK], [1], 1, "test", 0)
    trace = Trace(h.problem.question, "t", leaves=[1, 2, 3], answers=["0", "1", "0"], answer="1")
    grade(Counting(), h.problem, trace)  # type: ignore[arg-type]
    assert [v.correct for v in trace.verdicts] == [True, False, True] and trace.verdict == Verdict(False)
    assert seen == ["0", "1"]
    empty = grade(Counting(), h.problem, Trace(h.problem.question, "t"))  # type: ignore[arg-type]
    assert empty.verdict == Verdict(False) and empty.verdicts == []
    result = Evaluation([h], [empty])
    assert result.pools == [[]] and result.accuracy.left_out == 1


def test_thoughts_and_other_strategies():
    held = held_out([TASK], [1], 3, "test", 0)
    result = run(held, ScriptedSampler(guessing, chat()), strategy=sample_forced)
    thoughts = result.thoughts(chat(), each=2)
    assert len(thoughts) == 6 and {t.task for t in thoughts} == {"chain"}
    trace = result.traces[0]
    tokens = thought_tokens(trace, trace.leaves[0])
    prompt = chat().prompt(held[0].problem.question.text)
    assert [*prompt, *tokens] == [t for span in trace.path(trace.leaves[0]) for t in span.tokens]


def test_levels_that_no_task_has_are_the_users_mistake():
    with pytest.raises(UserError, match="other levels"):
        held_out([TASK], [99], 5, "test", 0)


def test_an_effort_is_asked_for_in_the_prompt_and_never_seen_by_a_grader():
    [held] = held_out([load_task("countdown")], (1,), 1, "test", 3)
    answer = held.problem.reference.answer
    texts: list[str] = []

    async def strategy(question, sampler, chat, budget, decoding, seed):
        texts.append(question.text)
        trace = Trace(question, "fixed", [Span(SpanKind.PROMPT, tuple(chat.prompt(question.text)))])
        trace.leaves, trace.answers, trace.answer = [0], [answer], answer
        return trace

    found = run([held], ScriptedSampler(guessing, chat()), strategy=strategy, effort="low")
    assert texts == [f"{held.problem.question.text}\neffort: low"] and found.chosen.mean == 1
