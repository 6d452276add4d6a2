"""Second thoughts: what a ban forbids and what not, where a word begins, and what going on from there was worth."""

from __future__ import annotations

import asyncio
import random
import re

import pytest

from mull.chat import Chat
from mull.errors import StopReason, UserError
from mull.evals import aha
from mull.evals.aha import Banning, approaches, around, bans, beginning, cut, has, spellings, within
from mull.evals.behaviour import Thought
from mull.evals.evaluate import Evaluation, Held
from mull.evals.grade import grade
from mull.ledger import Budget
from mull.models.nano import write_tokenizer
from mull.tasks.load import load_task
from mull.types import (
    Completion,
    Cost,
    Problem,
    Question,
    Reference,
    SamplingParams,
    Span,
    SpanKind,
    StepKind,
    StepVerdict,
    Trace,
)
from tests.test_chat import QWEN_ADDED, QWEN_LIKE, byte_level, write

MERGES = (("e", "c"), ("c", "h"), ("ch", "ec"), ("chec", "k"), ("Ġ", "chec"), ("Ċ", "c"), (".", "Ċ"), ("Ċ", "Ċ"))


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    folder = tmp_path_factory.mktemp("nano")
    write_tokenizer(folder)
    return Chat.load(folder)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    folder = tmp_path_factory.mktemp("qwen")
    return Chat.load(write(folder, byte_level(QWEN_ADDED, MERGES), QWEN_LIKE, eos_token="<|endoftext|>"))


# -------------------------------------------------------------------------------------------------- bans


def test_how_much_of_a_word_is_banned(nano: Chat, qwen: Chat):
    assert beginning(nano, "check", "a=1;b=a+2;b?") == "c"
    assert beginning(nano, "check", "a=1;c=a+2;c?") == "ch", "c may begin a line of work"
    assert beginning(nano, "check", "check it") == "check"
    assert beginning(nano, "no", "3 7 12 -> 33") == "n"
    assert beginning(qwen, "check", "3 7") == "check", "one token, one decision"
    assert beginning(qwen, "back", "3 7") == "b"


def test_the_bans_of_a_byte_tokenizer_by_hand(nano: Chat):
    newline, space, c, h = nano.encode("\n ch")
    [opened] = nano.think_open
    assert set(bans(nano, ["check"], "a=1;b?")) == {(newline, c), (space, c), (opened, c)}
    assert set(bans(nano, ["check"], "c=1;c?")) == {(newline, c, h), (space, c, h), (opened, c, h)}
    assert len(bans(nano, ["check", "back"], "1 2 -> 3")) == 6


@pytest.mark.parametrize("which", ["nano", "qwen"])
@pytest.mark.parametrize(("word", "question"), [("check", "1"), ("check", "c=1"), ("back", "1"), ("no", "n")])
def test_a_ban_forbids_the_beginning_of_a_word_and_nothing_else(which, word, question, request):
    """For random tokens: a banned sequence is completed exactly where the text has it at the start of a word."""
    chat: Chat = request.getfixturevalue(which)
    banned, start = bans(chat, [word], question), beginning(chat, word, question)
    alphabet = [i for i, piece in aha._pieces(chat) if set(piece) <= set("\n .check=no" + word)]
    rng, seen = random.Random(f"{which}{word}{question}"), [0, 0]
    for _ in range(3000):
        tokens = [rng.choice(alphabet) for _ in range(rng.randint(1, 9))]
        text = chat.decode(tokens)
        whole = (*chat.think_open, *tokens)
        hit = any(whole[i : i + len(b)] == b for b in banned for i in range(len(whole)))
        assert hit == bool(re.search(rf"(?<![^\n ]){re.escape(start)}", text)), (text, tokens)
        seen[hit] += 1
    assert min(seen) > 8, seen


def test_spellings_of_a_piece_with_something_before_it(qwen: Chat):
    found = {qwen.decode(s) for s in spellings(qwen, "\nch")}
    assert {"\nch", "\ncheck", ".\nch", "\n\nch"} <= found and all("\nch" in text for text in found)


def test_too_many_sequences_are_refused(nano: Chat, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(aha, "MAX_BANNED", 2)
    with pytest.raises(UserError, match="takes 3 token sequences"):
        bans(nano, ["check"], "1")


def test_a_sampler_under_a_ban_hands_everything_else_on():
    asked = []

    class Inner:
        policy_version = 7

        async def sample(self, prefix_tokens, params, n=1):
            asked.append((list(prefix_tokens), params, n))
            return []

    held = Banning(Inner(), ((1, 2),))
    params = SamplingParams(5, seed=3, top_k=4, banned=((9,),))
    asyncio.run(held.sample([1], params, 2))
    assert held.policy_version == 7 and asked == [([1], SamplingParams(5, seed=3, top_k=4, banned=((9,), (1, 2))), 2)]


# ------------------------------------------------------------------------------------------------ chains


def thought(correct: bool | None, kinds: str, problem: str = "p") -> Thought:
    of = {"w": StepKind.WORK, "c": StepKind.CHECK, "b": StepKind.BACKTRACK}
    return Thought("t", problem, correct, [StepVerdict("x", True, of[k]) for k in kinds], len(kinds))


def test_with_and_without_at_the_same_question():
    thoughts = [
        *(thought(True, "wc"), thought(False, "w"), thought(False, "wc")),  # 0.5 against 0
        *(thought(True, "w", "q"), thought(True, "cb", "q")),  # 1 against 1
        *(thought(False, "w", "only without"), thought(True, "c", "only with")),
    ]
    assert (within(thoughts, has(StepKind.CHECK)).mean, within(thoughts, has(StepKind.CHECK)).n) == (0.25, 2)
    assert within(thoughts, has(StepKind.BACKTRACK)).n == 1
    assert within(thoughts, has(StepKind.CHECK, StepKind.BACKTRACK)).n == 2
    assert within([], has(StepKind.CHECK)).n == 0


@pytest.mark.parametrize(
    ("name", "question", "lines", "count"),
    [
        ("countdown", "3 7 12 -> 33", "3+7=10 10+12=22 no", 0),
        ("countdown", "3 7 12 -> 33", "3+7=10 back\n7*3=21 21+12=33 yes", 1),
        ("countdown", "3 7 12 -> 33", "3+7=10 back\n12-7=5 no\n7*3=21 21+12=33 yes\ncheck 7*3+12=33 ok", 2),
        ("chain", "a=2;b=a+3;c=b*2;c?", "b=2+3=6\ncheck 2+3=6 no\nb=2+3=5\nc=5*2=10", 1),
        ("chain", "a=2;b=a+3;c=b*2;c?", "b=2+3=6\nc=6*2=12\ncheck 2+3=6 no\nb=2+3=5\nc=5*2=10", 1),
        ("chain", "a=2;b=a+3;c=b*2;c?", "b=2+3=6\nc=6*2=12\nb=2+3=5\ncheck 2+3=5 ok\nc=5*2=10", 1),
        ("chain", "a=2;b=a+3;c=b*2;c?", "b=2+3=5\nc=5*2=10\ncheck 5*2=10 no", 0),
        ("chain", "a=2;b=a+3;c=b*2;c?", "b=2+3=5\ncheck 2+3=5 ok\nc=5*2=10", 0),
    ],
)
def test_given_up_and_gone_on_from(name, question, lines, count):
    steps = load_task(name).check_steps(Problem(Question(question, name, question, 1), Reference("")), lines)
    assert all(step.kind is not StepKind.OTHER for step in steps), steps
    assert approaches(Thought(name, question, None, steps, 1)) == count


@pytest.mark.parametrize("which", ["nano", "qwen"])
@pytest.mark.parametrize(
    ("text", "before", "with_word"),
    [
        ("a=1\ncheck 1 ok", "a=1\n", "a=1\ncheck"),
        ("check 1 ok\ncheck 2 ok", "", "check"),
        ("12*7=84 check", "12*7=84 ", "12*7=84 check"),
        ("a=1\nchecks 1\n checked", None, None),
        ("a=1 recheck", None, None),
        ("a=1 check, then", "a=1 ", "a=1 check"),
        ("a=1</think>check", None, None),
    ],
)
def test_where_a_word_begins(which, text, before, with_word, request):
    chat: Chat = request.getfixturevalue(which)
    thought_text, tag, rest = text.partition("</think>")
    tokens = [*chat.encode(thought_text), *(chat.think_close if tag else []), *chat.encode(rest)]
    place = cut(chat, tokens, "check")
    if before is None:
        assert place is None
        return
    assert place is not None
    start, end = (chat.decode(tokens[:n]) for n in place)
    assert end == with_word
    # A token may hold what stands before the word, too: then it is the word's.
    assert start == before if which == "nano" else before.startswith(start) and len(before) - len(start) <= 1


def test_a_word_may_end_in_punctuation(nano: Chat):
    tokens = nano.encode("3+4=7\nwait, no\ncheck 7 ok")
    assert cut(nano, tokens, "wait,") == (6, 11) and cut(nano, tokens, "wait") == (6, 10)


# ---------------------------------------------------------------------------------------- counterfactuals


class Script:
    """Right with the word (every second time), wrong without it; stopping gives "3"."""

    policy_version = 0

    def __init__(self, chat: Chat):
        self.chat, self.calls = chat, []

    async def sample(self, prefix_tokens, params, n=1):
        prefix = self.chat.decode(prefix_tokens)
        self.calls.append((prefix, params, n))
        texts = ["9</think>1" if params.banned else f" ok</think>{2 - i % 2}" for i in range(n)]
        if prefix.endswith("</think>"):
            texts = ["3"] * n
        out = []
        for text in texts:
            thought_text, tag, answer = text.partition("</think>")
            tokens = self.chat.encode(thought_text)
            closing = list(self.chat.think_close) if tag else []
            tokens = tuple([*tokens, *closing, *self.chat.encode(answer), 260])
            out.append(Completion(tokens, (0.0,) * len(tokens), StopReason.STOP, 0, cost=Cost(len(tokens))))
        return out


def chains(chat: Chat, task, question: str, answer: str, texts: list[str]) -> tuple[Held, Trace]:
    problem = Problem(Question(question, "addition", question, 1), Reference(answer))
    trace = Trace(problem.question, "sample", [Span(SpanKind.PROMPT, tuple(chat.prompt(question)))])
    for text in texts:
        tokens = tuple(chat.reply(*text.split(">")))
        trace.spans.append(Span(SpanKind.SAMPLED, tokens, 0, (0.0,) * len(tokens), stop=StopReason.STOP))
        trace.leaves.append(len(trace.spans) - 1)
        trace.answers.append(text.split(">")[1])
    return Held(task, problem), grade(task, problem, trace)


def test_what_going_on_was_worth_by_hand(nano: Chat):
    task = load_task("addition")
    made = [
        chains(nano, task, "1+1=?", "2", ["2\ncheck 2 ok>2", "5>5", "7\ncheck 7 no>7", "2\ncheck 2 ok>2"]),
        chains(nano, task, "1+2=?", "3", ["4\ncheck 4 no>4", "5>5"]),
        chains(nano, task, "2+3=?", "5", ["5>5"]),
    ]
    evaluation = Evaluation([h for h, _ in made], [trace for _, trace in made])
    script = Script(nano)
    budget = Budget(think_tokens=30, answer_tokens=5, samples=4)
    seen = asyncio.run(around(evaluation, script, nano, budget, "check", each=2, seed=1))
    assert (seen.chains, seen.problems) == (3, 2), "two chains of the first problem, one of the second"
    # with the word: 2, 1, 2, 1: half right on 1+1, none on 1+2; without: 1; stopping: 3
    assert (seen.checking.mean, seen.without.mean, seen.stopped.mean) == (0.25, 0.0, 0.5)
    assert seen.gain.mean == 0.25 and seen.checking.samples == 12
    # from 3 to the chains' own 2 and 7 (wrong to right, wrong to wrong), and from 3 to 4 (right to wrong)
    assert (seen.going_on.mended.mean, seen.going_on.spoiled.mean) == (0.25, 0.5)
    prefixes = {(prefix.rpartition("<think>")[2], bool(p.banned), n, p.max_tokens) for prefix, p, n in script.calls}
    assert prefixes == {
        *(("2\ncheck", False, 4, 28), ("2\n", True, 4, 33), ("2</think>", False, 1, 5)),  # 5 bytes are spent on "check"
        *(("7\ncheck", False, 4, 28), ("7\n", True, 4, 33), ("7</think>", False, 1, 5)),
        *(("4\ncheck", False, 4, 28), ("4\n", True, 4, 33), ("4</think>", False, 1, 5)),
    }
    assert seen.cost.sampled_tokens == 3 * (4 * len(" ok.1.") + 4 * len("9.1.") + len("3."))
    assert len({p.seed for _, p, n in script.calls if n > 1}) == 3


def test_nothing_to_go_back_to(nano: Chat):
    task = load_task("addition")
    made = [chains(nano, task, "1+1=?", "2", ["2>2"])]
    evaluation = Evaluation([made[0][0]], [made[0][1]])
    seen = asyncio.run(around(evaluation, Script(nano), nano, Budget(samples=2), "check"))
    assert seen.chains == seen.problems == 0 and seen.gain.n == 0 and seen.cost == Cost()
    assert aha.words_written(evaluation, nano, ["check", "2"]) == {"check": 0.0, "2": 1.0}
