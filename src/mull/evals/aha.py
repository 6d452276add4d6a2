"""The "aha moment", measured: do second thoughts help, or do they merely stand there?

Four questions about one model, each answered without a judge:

- how often chains check, backtrack or change approach: `evals/behaviour.py` counts them from the tasks' own verdicts;
- whether chains with such a step are right more often than chains without, at the *same* question (`within`), which
  is still no proof: chains that check may differ in other ways;
- by how much accuracy drops when the words that begin such steps can no longer be written (`bans`, `Banning`);
- what going on from the very point where a chain began to check is worth (`around`), against going on from there
  without checking, and against stopping there.

What a ban forbids. A word is banned where a word may begin: behind a line break, a space, or the opening tag. A model
that spells "check" letter by letter has decided at the "c": forbidding the "k" of "chec" would only make it write
nonsense. So there the ban is on the shortest beginning of the word that is not in the question: the work lines of our
puzzles are written in the letters of their question, so that nothing else begins like that (`c` may be a variable; then
it is `ch`, and a chain that meant to check is left behind with a `c`). Where the tokenizer has the word as one token,
the whole word is banned, and longer words that begin with it. The mass of what is banned goes to the other tokens in
proportion, one token at a time: that is not the model conditioned on never checking, which would also look ahead.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mull.chat import Chat
from mull.chat.steps import thought_end
from mull.engine.sampler import Sampler, derive_seed
from mull.engine.together import together
from mull.errors import StopReason, UserError
from mull.evals.behaviour import Thought, last_word
from mull.evals.correction import Correction, correction
from mull.evals.evaluate import Evaluation, Held, thought_tokens
from mull.evals.grade import judge
from mull.evals.metrics import Estimate, paired_difference, pass_at_1
from mull.ledger import Budget
from mull.types import Completion, Cost, SamplingParams, StepKind, Trace, Verdict

MAX_BANNED = 20_000  # sequences; more would make every token slow


# -------------------------------------------------------------------------------------------------- bans


def beginning(chat: Chat, word: str, question: str) -> str:
    """What of a word is to be banned: see the module's text.

    (With a tokenizer of bytes: "c" of "check" for the question "a=1;b=a+2;b?", "ch" where a variable is called c.)
    """
    if len(chat.encode(word)) == 1:
        return word
    return next((word[:n] for n in range(1, len(word)) if word[:n] not in question), word)


def bans(chat: Chat, words: Sequence[str], question: str) -> tuple[tuple[int, ...], ...]:
    """Token sequences for `SamplingParams.banned`: no word of a chain begins with the `beginning` of one of `words`."""
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        start = beginning(chat, word, question)
        for mark in ("\n", " "):
            found |= dict.fromkeys(spellings(chat, mark + start))
        found |= dict.fromkeys((*chat.think_open, *rest) for rest in _continuations(chat, start))
    if len(found) > MAX_BANNED:
        raise UserError(f"banning {', '.join(words)} takes {len(found)} token sequences: ban fewer or longer words")
    return tuple(found)


@functools.lru_cache(maxsize=256)
def spellings(chat: Chat, text: str) -> list[tuple[int, ...]]:
    """The token sequences that write `text`: the first token may have something before it, the last one behind it."""
    out: list[tuple[int, ...]] = []
    for token, piece in _pieces(chat):
        if text in piece:
            out.append((token,))
            continue
        for n in range(1, min(len(piece), len(text) - 1) + 1):
            if piece.endswith(text[:n]):
                out += [(token, *rest) for rest in _continuations(chat, text[n:])]
    return out


@functools.lru_cache(maxsize=256)
def _continuations(chat: Chat, text: str) -> list[tuple[int, ...]]:
    """The token sequences that go on with `text`, the last token possibly further."""
    out: list[tuple[int, ...]] = []
    for token, piece in _pieces(chat):
        if piece.startswith(text):
            out.append((token,))
        elif text.startswith(piece):
            out += [(token, *rest) for rest in _continuations(chat, text[len(piece) :])]
    return out


@functools.lru_cache(maxsize=16)
def _pieces(chat: Chat) -> list[tuple[int, str]]:
    """(token, text) of all tokens that write text."""
    pieces = [(i, chat.decode([i])) for i in range(chat.vocab_size) if i not in chat.end_ids]
    return [(i, piece) for i, piece in pieces if piece]


class Banning:
    """A sampler that bans token sequences, whatever is asked of it: any strategy runs under a ban unchanged."""

    def __init__(self, sampler: Sampler, banned: tuple[tuple[int, ...], ...]):
        self.sampler, self.banned = sampler, banned

    @property
    def policy_version(self) -> int:
        return self.sampler.policy_version

    async def sample(self, prefix_tokens: Sequence[int], params: SamplingParams, n: int = 1) -> list[Completion]:
        return await self.sampler.sample(prefix_tokens, replace(params, banned=params.banned + self.banned), n)


# ------------------------------------------------------------------------------------------------ chains

Has = Callable[[Thought], bool]


def has(*kinds: StepKind) -> Has:
    """Whether a thought has a step of one of these kinds."""
    return lambda thought: any(step.kind in kinds for step in thought.steps)


def within(thoughts: Sequence[Thought], has: Has) -> Estimate:
    """Accuracy of thoughts with the behaviour minus those without, at problems that have both; paired by problem."""
    marks: dict[tuple[str, str], tuple[list[bool | None], list[bool | None]]] = {}
    for thought in thoughts:
        pair = marks.setdefault((thought.task, thought.problem), ([], []))
        pair[has(thought)].append(thought.correct)
    both = [m for m in marks.values() if m[0] and m[1]]
    return paired_difference([without for without, _ in both], [with_ for _, with_ in both])


def approaches(thought: Thought) -> int:
    """How many times a thought gives something up, in a line that ends in `no` or `back`, and goes on with a line that
    is no check. Lines that are written again count once together, also where no line said why."""
    count, given_up, rewriting = 0, False, False
    for step in thought.steps:
        gives_up = step.kind in (StepKind.CHECK, StepKind.BACKTRACK) and last_word(step) in ("no", "back")
        if step.kind is not StepKind.CHECK:
            rewrites = step.kind is StepKind.BACKTRACK and not gives_up
            count += given_up or (rewrites and not rewriting)
            given_up, rewriting = False, rewrites
        given_up |= gives_up
    return count


def cut(chat: Chat, tokens: Sequence[int], word: str) -> tuple[int, int] | None:
    """Where `word` first begins in a thought: (tokens before it, tokens with it); None where it does not stand.

    A token that holds both the word's beginning and what stands before it counts as the word's.
    """
    close = thought_end(chat, tokens)
    stream, text, ends = chat.stream(), "", list[int]()
    for token in tokens[:close]:
        text += stream.push(token)
        ends.append(len(text))
    found = re.search(rf"(?<![^\n ]){re.escape(word)}(?!\w)", text)
    if found is None:
        return None
    before = sum(end <= found.start() for end in ends)
    return before, next(i + 1 for i, end in enumerate(ends) if end >= found.end())


# ---------------------------------------------------------------------------------------- counterfactuals


@dataclass(frozen=True, slots=True)
class Around:
    """What a chain's first `word` was worth. Accuracies are means over problems, differences are paired by chain's
    problem, and everything is about the chains that had the word: none of it speaks for the others."""

    word: str
    chains: int
    problems: int
    stopped: Estimate  # the answer that was forced at that point
    checking: Estimate  # going on with the word
    without: Estimate  # going on from the same point, the word banned
    gain: Estimate  # checking minus without: the counterfactual benefit
    going_on: Correction  # from the answer at that point to the chain's own: mended is wrong to right
    cost: Cost

    def as_dict(self) -> dict[str, object]:
        names = ("stopped", "checking", "without", "gain")
        return {
            "word": self.word,
            "chains": self.chains,
            "problems": self.problems,
            **{name: getattr(self, name).as_dict() for name in names},
            "going_on": self.going_on.as_dict(),
        }


async def around(
    evaluation: Evaluation,
    sampler: Sampler,
    chat: Chat,
    budget: Budget,
    word: str,
    each: int = 2,
    seed: int = 0,
) -> Around:
    """Goes back to where chains of `evaluation` began with `word`, at most `each` chains of a problem, and samples on:
    `budget.samples` times with the word, as often with it banned, and once stopping there (greedily).

    A chain has think_tokens + answer_tokens in all, those before the point and those of the word included. The word is
    part of the given prefix, so that "with" is the model's own distribution of what comes after it.
    """

    async def one(h: Held, trace: Trace, leaf: int, place: tuple[int, int], number: int):
        tokens = thought_tokens(trace, leaf)
        prompt, (before, behind) = chat.prompt(h.problem.question.text), place
        left = max(1, budget.think_tokens + budget.answer_tokens - before)
        params = SamplingParams(left, seed=derive_seed(seed, number))
        behind_word = replace(params, max_tokens=max(1, left - (behind - before)))
        banned = bans(chat, [word], h.problem.question.text)
        stop = _without_trailing_space(chat, tokens[:before])
        free, held, [ended] = await together(
            (
                sampler.sample([*prompt, *tokens[:behind]], behind_word, budget.samples),
                sampler.sample([*prompt, *tokens[:before]], replace(params, banned=banned), budget.samples),
                sampler.sample([*prompt, *stop, *chat.think_close], SamplingParams(budget.answer_tokens, 0.0)),
            )
        )
        verdicts = [
            [_verdict(h, chat, [*start, *c.tokens], c) for c in found]
            for start, found in (
                (tokens[:behind], free),
                (tokens[:before], held),
                ([*stop, *chat.think_close], [ended]),
            )
        ]
        cost = sum((c.cost for c in (*free, *held, ended)), Cost())
        return verdicts, (verdicts[2][0], trace.verdicts[trace.leaves.index(leaf)]), cost

    work, owners = [], []
    for i, (h, trace) in enumerate(zip(evaluation.held, evaluation.traces, strict=True)):
        places = [(leaf, place) for leaf in trace.leaves if (place := cut(chat, thought_tokens(trace, leaf), word))]
        for leaf, place in places[:each]:
            work.append(one(h, trace, leaf, place, len(work)))
            owners.append(i)
    found = await together(work)
    by_problem: dict[int, list] = {}
    for owner, result in zip(owners, found, strict=True):
        by_problem.setdefault(owner, []).append(result)

    def marks(which: int) -> list[list[bool | None]]:
        return [[v.correct for result in of for v in result[0][which]] for of in by_problem.values()]

    return Around(
        word=word,
        chains=len(found),
        problems=len(by_problem),
        stopped=pass_at_1(marks(2)),
        checking=pass_at_1(marks(0)),
        without=pass_at_1(marks(1)),
        gain=paired_difference(marks(1), marks(0), seed),
        going_on=correction([[result[1] for result in of] for of in by_problem.values()]),
        cost=sum((result[2] for result in found), Cost()),
    )


def _verdict(h: Held, chat: Chat, tokens: Sequence[int], completion: Completion) -> Verdict:
    _, answer, closed = chat.split(tokens)
    whole = closed and completion.stop is StopReason.STOP
    return judge(h.task.check, h.problem, answer if whole else "")


def _without_trailing_space(chat: Chat, tokens: Sequence[int]) -> list[int]:
    kept = list(tokens)
    while kept and not chat.decode(kept[-1:]).strip():
        kept.pop()
    return kept


def words_written(evaluation: Evaluation, chat: Chat, words: Sequence[str]) -> dict[str, float]:
    """The share of chains that write each word."""
    chains = [thought_tokens(trace, leaf) for trace in evaluation.traces for leaf in trace.leaves]
    counts = Counter(word for tokens in chains for word in words if cut(chat, tokens, word))
    return {word: counts[word] / max(1, len(chains)) for word in words}
