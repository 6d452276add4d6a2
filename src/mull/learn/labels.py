"""What a scorer learns: labels for the steps of a chain, exact or estimated, and preferences between prefixes.

A label belongs to a prefix and stands where the prefix ends: `Label(end, value)` judges the tokens before index `end`,
and is learnt at token `end - 1`. Steps end where a search asks for scores (`mull.chat.steps`).

    | labels            | of                                | after                                          |
    |-------------------|-----------------------------------|------------------------------------------------|
    | outcome_labels    | every token: the chain's verdict  | Cobbe et al. 2110.14168                        |
    | exact_labels      | every step up to the first false  | Lightman et al. 2305.20050, checkers for people|
    | rollout_labels    | every step: k completions from it | Math-Shepherd, Wang et al. 2312.08935          |
    | omega_labels      | the first wrong step, bisected    | OmegaPRM, Luo et al. 2406.06592                |
    | outcome_pairs     | right chain over wrong chain      | Bradley-Terry preferences                      |
    | sibling_pairs     | right step over wrong step        |                                                |

A chain that could not be judged (`correct` is None) is not wrong: it has no labels, and a rollout that could not be
judged is left out of its share.
"""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from mull.chat import Chat
from mull.chat.steps import chain_ends, thought_end
from mull.types import Cost, StepVerdict


class Label(NamedTuple):
    """The value in [0, 1] of the prefix of `end` tokens."""

    end: int
    value: float


@dataclass(frozen=True)
class Chain:
    """One sampled path to learn from: prompt, thought, answer and end token, as they were sampled."""

    tokens: tuple[int, ...]
    prompt: int  # how many of the tokens are the question's
    ends: tuple[int, ...]  # where each of its whole steps ends, the answer's among them
    correct: bool | None  # the verdict on its answer; a chain without an answer is wrong
    steps: tuple[bool | None, ...] | None = None  # of each in `ends`: is it true? None: the lines could not be aligned
    answered: bool = True  # a whole answer that is not empty
    question: str = ""


Rollouts = tuple[Sequence[bool | None], Cost]  # verdicts of completions, and what they cost
Complete = Callable[[Sequence[int], int], Awaitable[Rollouts]]  # (prefix, how many)


@dataclass
class Estimated:
    """Labels that were sampled for, and what that took."""

    labels: list[Label] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)
    rollouts: int = 0


# ------------------------------------------------------------------------------------------------- chains


def make_chain(
    chat: Chat,
    prompt: Sequence[int],
    completion: Sequence[int],
    correct: bool | None,
    verdicts: Sequence[StepVerdict] = (),
    question: str = "",
    cut: bool = False,
) -> Chain:
    """A chain from what was sampled behind `prompt`, its answer's verdict, and those of its lines (`Task.check_steps`).

    `cut`: it ran out of tokens. The step that it was cut in is no step; its verdict, if the task gave one, is ignored.
    The truth of a step is that of the lines that end in it: false if one is, None if none makes a claim. The answer's
    is the chain's verdict. A thought whose end token came without a closing tag ends in a step that is wrong.
    """
    ends, answered = chain_ends(chat, completion)
    truths = line_truths(chat, completion, verdicts)
    ended = not answered and chat.decode(completion[-1:]).endswith("\n")  # cut just behind a line
    complete = ends[:-1] if cut and not ended else ends
    if truths is not None:
        if answered:
            truths = [*truths, correct]
        elif ends and completion[-1] in chat.end_ids:  # a turn that ended while thinking
            truths[-1] = False
        truths = truths[: len(complete)]
    at = len(prompt)
    return Chain(
        (*prompt, *completion),
        at,
        tuple(at + end for end in complete),
        correct,
        None if truths is None else tuple(truths),
        answered and not cut and bool(chat.split(completion)[1]),
        question,
    )


def line_truths(chat: Chat, completion: Sequence[int], verdicts: Sequence[StepVerdict]) -> list[bool | None] | None:
    """Of each step of the thought, the verdicts of the lines that end in it as one; None when there are not as many
    verdicts as non-empty lines, so that nobody can say which belongs to which."""
    closed = thought_end(chat, completion)
    thought = completion[: len(completion) if closed is None else closed]
    tagless = thought if closed is None else thought[: closed - len(chat.think_close)]
    while tagless and tagless[-1] in chat.end_ids:
        tagless = tagless[:-1]
    text = chat.decode(tagless)
    if chat.think_open and len(chat.think_open) == 1 and thought[:1] == chat.think_open:
        text = chat.decode(tagless[1:])
    filled = [bool(line.strip()) for line in text.split("\n")]
    if sum(filled) != len(verdicts):
        return None
    judged = iter(verdicts)
    oks = [next(judged).ok if full else None for full in filled]
    ends, _ = chain_ends(chat, thought)
    out: list[bool | None] = []
    start = line = 0
    for end in ends:
        until = line + chat.decode(tagless[start:end]).count("\n") if end < len(thought) else len(oks)
        out.append(_all(oks[line:until]))
        start, line = end, until
    return out


def _all(oks: Sequence[bool | None]) -> bool | None:
    claims = [ok for ok in oks if ok is not None]
    return all(claims) if claims else None


# ------------------------------------------------------------------------------------------------- labels


def outcome_labels(chain: Chain) -> list[Label]:
    """The verdict at every token behind the prompt (Cobbe et al. predict at each token of the solution)."""
    if chain.correct is None:
        return []
    return [Label(end, float(chain.correct)) for end in range(chain.prompt + 1, len(chain.tokens) + 1)]


def exact_labels(chain: Chain) -> list[Label]:
    """1 at each step up to the first false one, 0 at that, and nothing behind it.

    The answer is the last step: 1 or 0 by its verdict where no line before it was false, left out where it could not
    be judged. A step without a claim counts as right, as Lightman et al. count neutral ones.
    """
    labels: list[Label] = []
    if chain.steps is None:
        return labels
    for end, ok in zip(chain.ends, chain.steps, strict=True):
        if ok is None and chain.correct is None and end == chain.ends[-1]:
            break
        labels.append(Label(end, float(ok is not False)))
        if ok is False:
            break
    return labels


def spread(chain: Chain, labels: Sequence[Label]) -> list[Label]:
    """Each step's label at every token of the step, so that a value inside a step learns what the step will come to.

    What Cobbe et al. do with a chain's verdict, done with a step's. At a step's end nothing changes.
    """
    out: list[Label] = []
    for end, value in labels:
        start = max((e for e in (chain.prompt, *chain.ends) if e < end), default=chain.prompt)
        out += [Label(t, value) for t in range(start + 1, end + 1)]
    return out


async def rollout_labels(chain: Chain, complete: Complete, k: int, most: int | None = None) -> Estimated:
    """The share of right ones among `k` completions of the prefix at each step's end (Math-Shepherd's soft estimate;
    `hard` makes the other one of it). The end of the chain takes its verdict, which needs no sampling.

    `most`: label at most so many of the chain's first steps, besides its end.
    """
    out = Estimated()
    inner = [end for end in chain.ends if end < len(chain.tokens)][:most]
    for end in inner:
        share = await _share(chain, end, complete, k, out)
        if share is not None:
            out.labels.append(Label(end, share))
    if chain.correct is not None and chain.ends and chain.ends[-1] == len(chain.tokens):
        out.labels.append(Label(chain.ends[-1], float(chain.correct)))
    return out


def hard(labels: Iterable[Label]) -> list[Label]:
    """1 where any completion was right (Math-Shepherd's hard estimate)."""
    return [Label(end, float(value > 0)) for end, value in labels]


async def omega_labels(chain: Chain, complete: Complete, k: int) -> Estimated:
    """OmegaPRM's bisection: the first step from which none of `k` completions is right, in log2(steps) probes.

    It assumes that no prefix behind the first wrong step can be completed rightly. The last step of a wrong chain is
    wrong without a probe, and all steps of a right one are right. Steps before the found one are 1, it is 0, and later
    ones have no label. Departure: the paper keeps a tree and picks which of its rollouts to bisect next; here every
    chain is bisected once. A probe of which nothing could be judged ends the search without labels.
    """
    out, ends = Estimated(), list(chain.ends)
    if chain.correct is None or not ends:
        return out
    good, bad = -1, len(ends) - 1  # a right one (the question itself), and a wrong one
    if chain.correct:
        good, bad = bad, bad + 1
    elif ends[-1] < len(chain.tokens):
        bad = len(ends)  # cut off: its last whole step may be right
    while bad - good > 1:
        middle = (good + bad) // 2
        share = await _share(chain, ends[middle], complete, k, out)
        if share is None:
            return out
        good, bad = (middle, bad) if share > 0 else (good, middle)
    out.labels = [Label(end, 1.0) for end in ends[:bad]] + [Label(end, 0.0) for end in ends[bad : bad + 1]]
    return out


async def _share(chain: Chain, end: int, complete: Complete, k: int, out: Estimated) -> float | None:
    verdicts, cost = await complete(chain.tokens[:end], k)
    out.cost, out.rollouts = out.cost + cost, out.rollouts + len(verdicts)
    known = [v for v in verdicts if v is not None]
    return sum(known) / len(known) if known else None


# -------------------------------------------------------------------------------------------------- pairs


@dataclass(frozen=True)
class Pair:
    """Two prefixes of the same question, of which the first is the better one."""

    better: tuple[int, ...]
    worse: tuple[int, ...]


def outcome_pairs(chains: Sequence[Chain], rng: random.Random, most: int = 8) -> list[Pair]:
    """Up to `most` pairs of a right and a wrong chain of one question, different ones before any comes twice."""
    right = list(dict.fromkeys(c.tokens for c in chains if c.correct is True))
    wrong = list(dict.fromkeys(c.tokens for c in chains if c.correct is False))
    if not right or not wrong:
        return []
    rng.shuffle(right)
    rng.shuffle(wrong)
    n = min(most, len(right) * len(wrong))
    pairs: dict[Pair, None] = {}
    rounds = math.lcm(len(right), len(wrong))  # after so many steps both lists stand where they began
    for i in range(len(right) * len(wrong)):
        if len(pairs) == n:
            break
        pairs[Pair(right[i % len(right)], wrong[(i + i // rounds) % len(wrong)])] = None
    return list(pairs)


def sibling_pairs(chains: Sequence[Chain], rng: random.Random, most: int = 8) -> list[Pair]:
    """Up to `most` pairs of a right and a wrong next step behind the same right prefix, from exact step labels."""
    right: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    wrong: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for chain in chains:
        start = chain.prompt
        for end, value in exact_labels(chain):
            side = right if value == 1 else wrong
            side.setdefault(chain.tokens[:start], set()).add(chain.tokens[:end])
            start = end
    pairs = [
        Pair(better, worse)
        for prefix in sorted(right.keys() & wrong.keys())
        for better in sorted(right[prefix])
        for worse in sorted(wrong[prefix])
    ]
    return rng.sample(pairs, min(most, len(pairs)))
