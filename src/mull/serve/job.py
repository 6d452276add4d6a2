"""One request at work: a question and a plan become events, and at the end a result that is never empty.

    job = Job(question, plan, tools, seed=0)
    async for event in follow(job):        # Progress, Thought, Section, Delta …, and last the Result
        …

Every API, the page and the terminal are translations of these events. Leaving the loop (a client that goes away)
withdraws the whole tree. `job.answer_now()` and the limit on wall-clock time end the thinking, not the request: an
answer is chosen from what there is, or forced from the longest thought.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mull.chat import Chat
from mull.chat.steps import thought_end
from mull.engine.sampler import derive_seed
from mull.errors import SamplerLost, StopReason
from mull.ledger import Budget
from mull.search.choose import same_text
from mull.search.named import named
from mull.search.sample import Decoding
from mull.search.sources import Opened
from mull.search.tree import NO_ANSWER
from mull.serve.live import Live, Step
from mull.serve.plan import Plan
from mull.serve.summary import Section, Summary
from mull.serve.written import Written, patience
from mull.types import Question, SamplingParams, SpanKind, Trace

GRACE = 10.0  # seconds that a forced answer may take when time is up
GATHER = 0.03  # seconds between two pieces of a text that is streamed
Early = Literal["", "asked", "time", "lost"]


@dataclass(frozen=True)
class Progress:
    tokens: int
    most_tokens: int
    done: int  # branches that have an answer
    branches: int  # at most, as `most_tokens` is: a vote that is clear ends before
    seconds: float


@dataclass(frozen=True)
class Thought:
    """Raw text of a single chain's thought, as it comes. Whether it may be shown is not decided here."""

    text: str


@dataclass(frozen=True)
class Delta:
    """Text of the answer."""

    text: str


@dataclass
class Result:
    plan: Plan
    content: str  # never empty
    thought: str  # of the path that the answer came from, "" where it came from no single one
    finish: Literal["stop", "length"]
    prompt_tokens: int
    cached_tokens: int  # of the prompt, not computed again
    completion_tokens: int  # all that was sampled, in every branch
    answer_tokens: int  # of those, the ones of the answer that is returned
    votes: list[tuple[str, int]]  # answers of all branches, the most frequent first
    seconds: float
    first_token: float | None  # seconds
    summary: list[Section] = field(default_factory=list)  # as `follow` told it
    early: Early = ""  # why thinking was ended before the strategy was done
    exhausted: bool = False
    looped: int = 0  # branches that went round in circles and were closed
    lost: list[str] = field(default_factory=list)
    scorer_tokens: int = 0
    flops: float = 0.0
    trace: Trace | None = None  # None when thinking was ended early
    steps: list[Step] = field(default_factory=list)  # the tree as it was seen, also then
    winner: int = -1  # the step that is the answer; -1: no single one is
    policy_version: int = 0

    @property
    def reasoning_tokens(self) -> int:
        return self.completion_tokens - self.answer_tokens

    @property
    def wasted_tokens(self) -> int:
        """Sampled in branches that the answer did not come from."""
        return self.reasoning_tokens - self.path_tokens - self.summary_tokens

    summary_tokens: int = 0  # sampled for a summary in the model's own words, used or not; no thought of any branch
    path_tokens: int = 0  # thought tokens on the path that the answer came from


Event = Progress | Thought | Section | Delta | Result


class Job:
    """A request's work. Give the same seed, and the same answer comes, whoever else is served."""

    def __init__(
        self,
        question: Question,
        plan: Plan,
        tools: Opened,
        *,
        seed: int = 0,
        stop: tuple[str, ...] = (),
        calibration: str = "",
        most_seconds: float | None = None,
        gather: Callable[[], float] = lambda: GATHER,
    ):
        self.question, self.plan, self.tools, self.seed, self.stop = question, plan, tools, seed, stop
        self.calibration, self.most_seconds, self.gather = calibration, most_seconds, gather
        self.live = Live(tools.chat, tools.chat.prompt(question.asked), plan.most_tokens)
        self.result: Result | None = None  # once there is one, for who looks after a job but does not follow it
        self.written = Written(plan, tools, seed, self.live.changed) if plan.summary else None
        self._now = asyncio.Event()

    def answer_now(self) -> None:
        """Thinking ends as soon as possible, with an answer from what there is."""
        self._now.set()
        self.live.tell()  # whoever waits for a summary

    @property
    def hurried(self) -> bool:
        return self._now.is_set()

    @property
    def summary_tokens(self) -> int:
        return self.written.live.sampled if self.written else 0

    @property
    def sampled(self) -> int:
        """Tokens, of thoughts, answers and summary."""
        return self.live.sampled + self.summary_tokens

    async def run(self) -> Result:
        """The work itself. Cancelling it withdraws everything that it has asked for. UserError for what cannot be
        asked at all, such as a prompt that is too long."""
        p = self.plan
        watched = replace(
            self.tools, sampler=self.live.sampler(self.tools.sampler), scorer=self.live.scorer(self.tools.scorer)
        )
        budget = Budget(p.tokens, p.think_tokens, p.answer_tokens, p.samples)
        strategy = watched.bind(named(p.strategy), same_text, self.calibration)
        decoding = Decoding(temperature=p.temperature, top_p=p.top_p)
        thinking = asyncio.ensure_future(
            strategy(self.question, watched.sampler, watched.chat, budget, decoding=decoding, seed=self.seed)
        )
        hurry = asyncio.ensure_future(self._now.wait())
        try:
            await asyncio.wait({thinking, hurry}, timeout=self.most_seconds, return_when=asyncio.FIRST_COMPLETED)
            if thinking.done():
                try:
                    return self._result(thinking.result())
                except SamplerLost as gone:
                    return self._early_result("lost", *self._best(), [str(gone)])
            early: Early = "asked" if hurry.done() else "time"
            if p.single and self.live.speaking in self.live.running:  # what was said is not taken back
                await asyncio.wait({thinking}, timeout=GRACE)
                if thinking.done() and not thinking.exception():
                    return self._result(thinking.result())
            partial = self.live.partial()  # before the cancelling, which forgets what is under way
            await _cancelled(thinking)
            try:
                step, cut = await asyncio.wait_for(self._answer(partial), GRACE)
            except (SamplerLost, TimeoutError) as problem:
                return self._early_result(early, None, True, [f"no answer could be forced: {problem}"])
            return self._early_result(early, step, cut, [])
        finally:
            await _cancelled(thinking, hurry)

    # ------------------------------------------------------------------------------------------- endings

    def _result(self, trace: Trace) -> Result:
        chat, path = self.tools.chat, trace.path(trace.chosen) if trace.chosen >= 0 else []
        sampled = [s for s in path if s.kind is SpanKind.SAMPLED]
        answer = sampled[-1] if sampled else None
        tokens = [t for s in path if s.kind is not SpanKind.PROMPT for t in s.tokens]
        drawn = [s.kind is SpanKind.SAMPLED for s in path if s.kind is not SpanKind.PROMPT for _ in s.tokens]
        closed = thought_end(chat, tokens) or 0  # a thought and its answer may be one span
        cut = answer is not None and answer.stop is StopReason.LENGTH
        return self._made(
            trace.answer,
            chat.split(tokens)[0],
            cut=cut or trace.answer == NO_ANSWER,
            answer_tokens=sum(drawn[closed:]),
            path_tokens=sum(drawn[:closed]),
            votes=trace.answers,
            exhausted=trace.exhausted,
            lost=list(trace.lost),
            trace=trace,
            winner=self.live.find([t for s in path for t in s.tokens]),
            policy_version=answer.policy_version if answer else self.tools.sampler.policy_version,
        )

    def _early_result(self, early: Early, step: Step | None, cut: bool, lost: list[str]) -> Result:
        path: list[Step] = []
        at = step.parent if step else -1
        while at >= 0:
            path.insert(0, self.live.steps[at])
            at = path[0].parent
        return self._made(
            step.text if step else NO_ANSWER,
            "".join(s.text for s in path).partition("</think>")[0].strip(),
            cut=cut,
            answer_tokens=step.tokens if step else 0,
            path_tokens=sum(s.tokens for s in path),
            votes=[s.text for s in self.live.answers],
            early=early,
            lost=lost,
            winner=step.id if step else -1,
            policy_version=self.tools.sampler.policy_version,
        )

    def _made(self, content: str, thought: str, *, cut: bool, votes: list[str], **more: Any) -> Result:
        live, cost = self.live, self.live.cost
        shown, stopped = until(content, self.stop)
        self.result = Result(
            self.plan,
            shown.rstrip() or content or NO_ANSWER,
            thought,
            "length" if cut and not stopped else "stop",
            len(live.prompt),
            live.cached,
            live.sampled,
            votes=Counter(votes).most_common(),
            seconds=live.seconds,
            first_token=live.first_token,
            looped=live.looped,
            scorer_tokens=cost.scorer_tokens,
            flops=cost.flops,
            steps=live.steps,
            **more,
        )
        return self.result

    def _best(self) -> tuple[Step | None, bool]:
        """The answer that most branches came to, by its best step; (it, whether it was cut off)."""
        answers = self.live.answers
        count = Counter(same_text(self.question, s.text) for s in answers)
        return max(
            answers, key=lambda s: (count[same_text(self.question, s.text)], s.score or 0.0), default=None
        ), False

    async def _answer(self, partial: list[int]) -> tuple[Step | None, bool]:
        """An answer from what there is: the branches', else one forced behind the longest thought."""
        if self.live.answers:
            return self._best()
        prefix = [*self.live.prompt, *partial, *self.tools.chat.think_close]
        params = SamplingParams(
            self.plan.answer_tokens, self.plan.temperature, self.plan.top_p, seed=derive_seed(self.seed, 1 << 40)
        )
        self.live.known(partial)
        [completion] = await self.live.sampler(self.tools.sampler).sample(prefix, params)
        found = self.live.answers
        return (found[-1] if found else None), completion.stop is StopReason.LENGTH


async def _cancelled(*tasks: asyncio.Future) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


# ------------------------------------------------------------------------------------------------ following


async def follow(job: Job, tick: float = 0.5) -> AsyncGenerator[Event]:
    """The events of a job: a `Progress` every `tick` seconds or sooner, text at most every `job.gather()` seconds (the
    first at once), the `Result` last. Closing the iterator (`contextlib.aclosing`) withdraws the job."""
    work, over, changed = asyncio.ensure_future(job.run()), asyncio.Event(), job.live.changed
    work.add_done_callback(lambda _: (over.set(), changed.set()))
    spoken, thought, summary = Spoken(job.tools.chat, job.stop), _Thinker(job), Summary(job.plan, job.written)
    told, writer = list[Section](), job.written

    def tell(found: Iterable[Section], answering: bool = False) -> Iterable[Section]:
        """These, and behind them what the writer has ready, or all that it owes when the answer begins."""
        for section in found:
            told.append(section)
            yield section
        for section in () if writer is None else writer.over() if answering else writer.ready():
            told.append(section)
            yield section

    try:
        last, told_any = -tick, not job.plan.single
        while not work.done():
            await _set(changed, tick)
            changed.clear()
            if job.plan.single:
                if text := thought.read():
                    told_any = True
                    yield Thought(text)
                for section in tell(summary.push(text)):
                    yield section
                if text := spoken.read(job.live):
                    told_any = True
                    for section in tell(summary.rest("", ()), answering=True):
                        yield section
                    yield Delta(text)
            if time.monotonic() - last >= tick:
                last = time.monotonic()
                yield progress(job)
                if not job.plan.single:
                    for section in tell(summary.branches(job.live)):
                        yield section
            if told_any and not work.done():
                await _set(over, job.gather())
        result = work.result()
        if job.plan.single and (text := thought.read()):
            yield Thought(text)
            for section in tell(summary.push(text)):
                yield section
        waits = _wait(job, result)
        for section in tell(summary.rest(result.thought, result.votes), answering=not waits):
            yield section
        if writer is not None and waits:
            end = time.monotonic() + waits
            while writer.busy and not job.hurried and (left := end - time.monotonic()) > 0:
                await _set(changed, left)
                changed.clear()
                for section in tell(()):
                    yield section
            for section in tell((), answering=True):
                yield section
            result.seconds = job.live.seconds
        if writer is not None:
            await _cancelled(*writer.tasks)
            result.summary_tokens = writer.live.sampled
            result.completion_tokens += writer.live.sampled
            result.flops += writer.live.cost.flops
        if text := spoken.rest(result.content):
            yield Delta(text)
        result.summary = told
        yield result
    finally:
        await _cancelled(work, *(writer.tasks if writer else ()))


def _wait(job: Job, result: Result) -> float:
    """Seconds that the answer of many branches may wait for words about the thought that won, of which nothing can be
    told before; 0 where somebody is in a hurry. Then the writer may spend what the request's budget has left, behind
    the tokens that are kept for the answer."""
    writer, plan, live = job.written, job.plan, job.live
    if writer is None or plan.single or result.early or job.hurried:
        return 0.0
    if plan.tokens is not None:
        writer.room = plan.tokens - plan.answer_tokens - (live.sampled - result.answer_tokens)
    left = patience(result.seconds) if job.most_seconds is None else job.most_seconds - live.seconds
    return max(0.0, min(patience(result.seconds), left))


async def _set(event: asyncio.Event, seconds: float) -> None:
    """Waits for it, but no longer. There are thousands of these waits a second: no task is made for one."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


def progress(job: Job) -> Progress:
    live, done = job.live, len(job.live.answers)
    return Progress(live.sampled, live.most_tokens, done, max(live.branches, job.plan.samples, done), live.seconds)


async def answered(job: Job) -> Result:
    """The result alone, for callers that stream nothing."""
    async with aclosing(follow(job)) as events:
        async for event in events:
            if isinstance(event, Result):
                return event
    raise AssertionError("a job ends with its result")


def until(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """(the text before the first stop string, whether there was one).

    >>> until("a, b. c", (".", ","))
    ('a', True)
    """
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    return (text[: min(ends)], True) if ends else (text, False)


class Spoken:
    """The answer of a single chain, as text that will not be taken back: white space at its end and what may be the
    beginning of a stop string wait for what comes next."""

    def __init__(self, chat: Chat, stops: tuple[str, ...]):
        self.chat, self.stops = chat, stops
        self.sent = ""  # all that was passed on
        self._branch: Any = None
        self._text, self._read = "", 0

    def read(self, live: Live) -> str:
        """What is new and safe."""
        branch = live.speaking
        if branch is None or branch is not self._branch:
            if self.sent:
                return ""
            self._branch, self._text, self._read, self._decoder = branch, "", 0, self.chat.stream()
            if branch is None:
                return ""
        for token in branch.tokens[self._read :]:
            if token not in self.chat.end_ids:
                self._text += self._decoder.push(token)
        self._read = len(branch.tokens)
        text, _ = until(self._text.lstrip(), self.stops)
        held = max((n for s in self.stops for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
        return self._send(text[: len(text) - held].rstrip())

    def rest(self, content: str) -> str:
        """What is missing of the whole answer."""
        return self._send(content)

    def _send(self, text: str) -> str:
        new = text[len(self.sent) :] if text.startswith(self.sent) else ""
        self.sent += new
        return new


class _Thinker:
    """The text of a single chain's thought, as far as it is drawn."""

    def __init__(self, job: Job):
        self._live, self._chat = job.live, job.tools.chat
        self._decoder, self._branch, self._read = job.tools.chat.stream(), None, 0

    def read(self) -> str:
        branch = self._live.thinking
        if branch is None:
            return ""
        if branch is not self._branch:
            self._branch, self._read = branch, 0
        new, self._read = branch.tokens[self._read :], len(branch.tokens)
        hidden = {*self._chat.end_ids, *(self._chat.think_close if len(self._chat.think_close) == 1 else ())}
        return "".join(self._decoder.push(token) for token in new if token not in hidden)
