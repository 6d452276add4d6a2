"""Grading traces: the one place where a question meets its reference again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mull.errors import Unscorable, UserError
from mull.tasks.base import Checked
from mull.types import Problem, Trace, Verdict


def judge(check: Callable[[Problem, str], Verdict], problem: Problem, answer: str) -> Verdict:
    """The task's verdict; a grader that could not judge, or crashed, makes an unscorable verdict, never a wrong one."""
    try:
        return check(problem, answer)
    except Unscorable as reason:
        return Verdict(None, error=str(reason) or "the grader gave no reason")
    except UserError:
        raise
    except Exception as crash:  # on an answer that nobody foresaw: one sample's trouble, counted, not the run's end
        return Verdict(None, error=f"the grader crashed: {type(crash).__name__}: {crash}")


def grade(task: Checked, problem: Problem, trace: Trace) -> Trace:
    """Fills in the verdicts of all leaves and of the chosen answer; returns the trace."""
    seen: dict[str, Verdict] = {}
    for answer in [*trace.answers, trace.answer]:
        if answer not in seen:
            seen[answer] = judge(task.check, problem, answer)
    trace.verdicts = [seen[answer] for answer in trace.answers]
    trace.verdict = seen[trace.answer]
    return trace


def unscorable(traces: Sequence[Trace]) -> int:
    return sum(v.correct is None for trace in traces for v in trace.verdicts)
