"""What search found, as lessons: preferences between steps or chains, and paths to imitate. Plain data, no torch.

The correction of the sampling distribution. A path that a search kept is *not* a sample of the policy: its steps were
drawn by the policy, and then selected, by a scorer, by visits or by the verdict. Each use does another thing about it:

- Imitation (`sft_samples_from_search`) is behaviour cloning of the improved policy "policy, then search", as in expert
  iteration and AlphaZero. Cross-entropy asks for samples of its target, and the selected paths are just that, so no
  correction is due. Weight 1 clones the choice; weights by visits clone the search's own distribution over next steps
  (N(s, a) / sum of N(s, b)), as far as its paths were kept.
- A policy gradient on the same traces would need the probability with which the *search* proposed each path, policy
  and selection together, for its importance ratio, and no search here can state it. `samples.from_rollouts` anchors its
  ratio at the policy's own log-probability: it is right for chains that nothing selected (`sample`, a vote's leaves),
  and biased towards what the selection liked for all others. Do not use it on them.
- Preferences need none: the loss is a function of each pair, whoever proposed it, and its minimiser prefers the better
  of any two. But it bounds a ratio to the reference, so the reference must have had support on both sides. Steps that
  the policy itself sampled have it, and their stored log-probabilities are the reference's, at no cost (Agent Q).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mull.errors import StopReason, UserError
from mull.learn import labels
from mull.types import Sample, Span, SpanKind, Trace

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Side:
    """What was said behind a prompt. `mask` is False on forced and tool tokens, which are context and never learnt."""

    tokens: Tokens
    mask: tuple[bool, ...]
    logprobs: tuple[float, ...] | None = None  # the sampler's, 0 outside the mask; None: not the policy's own

    @property
    def trained(self) -> int:
        return sum(self.mask)


@dataclass(frozen=True)
class Pair:
    """Two continuations of the same prompt (the question, or the question and the steps before), the better one first.

    >>> Pair((1, 2), Side((3, 4), (True, True)), Side((5,), (True,)), gap=1.0).chosen.tokens
    (3, 4)
    """

    prompt: Tokens
    chosen: Side
    rejected: Side
    gap: float = 1.0  # by how much it is better: the difference of values


@dataclass(frozen=True)
class Path:
    """One leaf of a trace: all that stands behind its prompt."""

    prompt: Tokens
    side: Side
    correct: bool | None
    cut: bool  # it did not end by itself
    visits: int  # of the leaf
    score: float  # of the leaf; -inf: it has none
    chosen: bool  # the strategy answered with it
    weights: tuple[float, ...]  # of each token: its step's share of its siblings' visits (1 where nobody counted)


def paths_of(trace: Trace) -> list[Path]:
    """One for each leaf, in order. ValueError for a trace that is not graded.

    The prompt is the one that the leaf's own path begins with: in a revision, the longer conversation.
    """
    if len(trace.verdicts) != len(trace.leaves):
        raise ValueError(f"the trace of {trace.question.id} is not graded")
    shares = visit_shares(trace)
    out = []
    for leaf, verdict in zip(trace.leaves, trace.verdicts, strict=True):
        spans = [(i, trace.spans[i]) for i in _ancestors(trace, leaf)]
        behind = [(i, span) for i, span in spans if span.kind is not SpanKind.PROMPT]
        end = trace.spans[leaf]
        out.append(
            Path(
                tuple(t for _, span in spans if span.kind is SpanKind.PROMPT for t in span.tokens),
                _joined([span for _, span in behind]),
                verdict.correct,
                end.kind is not SpanKind.SAMPLED or end.stop is not StopReason.STOP,
                end.visits,
                -math.inf if end.score is None else end.score,
                leaf == trace.chosen,
                tuple(shares[i] for i, span in behind for _ in span.tokens),
            )
        )
    return out


# ------------------------------------------------------------------------------------------------ preferences


def step_pairs(trace: Trace, theta: float = 0.2, *, outcomes: float = 1.0, least: int = 1, most: int = 4) -> list[Pair]:
    """Sibling steps of one tree whose values differ by more than `theta` (Agent Q, 2408.07199; Step-DPO, 2406.18629).

    A step's value is `outcomes` times the mean verdict of the chains below it, plus 1 - `outcomes` times its score:
    Agent Q's mixture of the tree's Q and the critic's. Both siblings must be explored: with outcomes, at least `least`
    judged chains below each; with scores alone, a visit each where the search counts visits. At most `most` pairs for
    one parent, widest first.

    Equal steps behind equal prefixes are one step, wherever the tree keeps them, and pool what stands below. A step
    that begins another is not compared with it. Forced steps are no choices of the model, and have no preference.
    """
    if not 0 <= outcomes <= 1 or theta < 0:
        raise ValueError(f"outcomes={outcomes} must be in [0, 1] and theta={theta} not below 0")
    if outcomes and len(trace.verdicts) != len(trace.leaves):
        raise ValueError(f"the trace of {trace.question.id} is not graded")
    below: dict[int, list[float]] = {}
    for leaf, verdict in zip(trace.leaves, trace.verdicts, strict=False):
        for i in _ancestors(trace, leaf) if verdict.reward is not None else ():
            below.setdefault(i, []).append(float(verdict.reward or 0.0))
    counted = any(span.visits for span in trace.spans)
    found: list[Pair] = []
    for prefix, steps in _siblings(trace).items():
        rated: list[tuple[float, Span]] = []
        for group in steps.values():
            ends = [reward for i in group for reward in below.get(i, ())]
            scores = [s for i in group if (s := trace.spans[i].score) is not None]
            visits = sum(trace.spans[i].visits for i in group)
            if outcomes and len(ends) < max(least, 1):
                continue
            if outcomes < 1 and not scores:
                continue
            if not outcomes and counted and not visits:
                continue
            value = outcomes * (math.fsum(ends) / len(ends)) if outcomes else 0.0
            value += (1 - outcomes) * scores[0] if outcomes < 1 else 0.0
            rated.append((value, trace.spans[group[0]]))
        gaps = [
            (better - worse, a, b)
            for a, (better, _) in enumerate(rated)
            for b, (worse, _) in enumerate(rated)
            if better - worse > theta and not _begins(rated[a][1].tokens, rated[b][1].tokens)
        ]
        for gap, a, b in sorted(gaps, key=lambda g: (-g[0], g[1], g[2]))[:most]:
            found.append(Pair(prefix, _joined([rated[a][1]]), _joined([rated[b][1]]), gap))
    return found


def outcome_pairs(traces: Sequence[Trace], rng: random.Random, most: int = 4) -> list[Pair]:
    """Up to `most` pairs of a right and a wrong chain for each prompt, different ones before any comes twice.

    A wrong chain may be one that was cut off. A right one that was cut off is no example, and is left out.
    """
    pairs: list[Pair] = []
    for prompt, paths in _by_prompt(traces).items():
        usable = {p.side.tokens: p for p in paths if p.side.trained and not (p.correct and p.cut)}
        chains = [labels.Chain((*prompt, *p.side.tokens), len(prompt), (), p.correct) for p in usable.values()]
        n = len(prompt)
        for pair in labels.outcome_pairs(chains, rng, most):
            pairs.append(Pair(prompt, usable[pair.better[n:]].side, usable[pair.worse[n:]].side))
    return pairs


# ------------------------------------------------------------------------------------------------ imitation


def sft_samples_from_search(
    traces: Sequence[Trace], most: int = 1, weight: Literal["one", "visits"] = "one"
) -> list[Sample]:
    """Up to `most` of the best right paths of each question, to be cloned; each token once.

    Best: what the strategy answered with, then more visits, a higher score, fewer tokens. Paths stand behind the
    question's own prompt, whatever conversation they were found in: the model is to say at once what took revisions.
    What a later path shares with an earlier one is context in it. Cut paths and forced tokens are not learnt.

    `weight`: 1, or each step's share of the visits of its siblings. UserError where a trace counts no visits.
    """
    out: list[Sample] = []
    by_question: dict[str, list[Trace]] = {}
    for trace in traces:
        if weight == "visits" and not any(span.visits for span in trace.spans):
            raise UserError(f"the strategy {trace.strategy} counts no visits: weigh its paths by one")
        by_question.setdefault(trace.question.id, []).append(trace)
    for group, found in enumerate(by_question.values()):
        prompt = found[0].spans[0].tokens
        right = [p for trace in found for p in paths_of(trace) if p.correct and not p.cut]
        right.sort(key=lambda p: (not p.chosen, -p.visits, -p.score, len(p.side.tokens)))
        unique: dict[Tokens, Path] = {}
        for path in right:
            unique.setdefault(path.side.tokens, path)
        taken = list(unique.values())[:most]
        for i, path in enumerate(taken):
            known = max((_common(path.side.tokens, before.side.tokens) for before in taken[:i]), default=0)
            if (sample := sft_sample(prompt, path, known, weight, group)) is not None:
                out.append(sample)
    return out


def sft_sample(
    prompt: Tokens, path: Path, known: int = 0, weight: Literal["one", "visits"] = "one", group: int = 0
) -> Sample | None:
    """Cross-entropy on the sampled tokens of a path behind its first `known` ones; None where nothing is left."""
    given = path.weights if weight == "visits" else (1.0,) * len(path.side.tokens)
    ce = [w if on and t >= known else 0.0 for t, (w, on) in enumerate(zip(given, path.side.mask, strict=True))]
    if not any(ce):
        return None
    tokens = [*prompt, *path.side.tokens]
    zeros = [0.0] * len(tokens)
    return Sample(tokens, zeros, [False] * len(tokens), zeros, [0.0] * len(prompt) + ce, group=group)


def visit_shares(trace: Trace) -> list[float]:
    """Of each span, its step's share of the visits of all steps behind the same prefix; 1 where none was visited."""
    shares = [1.0] * len(trace.spans)
    for steps in _siblings(trace).values():
        visits = {tokens: sum(trace.spans[i].visits for i in group) for tokens, group in steps.items()}
        total = sum(visits.values())
        for tokens, group in steps.items() if total else ():
            for i in group:
                shares[i] = visits[tokens] / total
    return shares


# ------------------------------------------------------------------------------------------------ inside


def _siblings(trace: Trace) -> dict[Tokens, dict[Tokens, list[int]]]:
    """By the tokens before it, and by its own: the sampled spans that are the same step."""
    before: list[Tokens] = []
    found: dict[Tokens, dict[Tokens, list[int]]] = {}
    for i, span in enumerate(trace.spans):
        parent = span.parent
        before.append((*before[parent], *trace.spans[parent].tokens) if parent >= 0 else ())
        if span.kind is SpanKind.SAMPLED and span.tokens:
            found.setdefault(before[i], {}).setdefault(span.tokens, []).append(i)
    return found


def _ancestors(trace: Trace, leaf: int) -> list[int]:
    """The indices of the spans from the root to `leaf`."""
    path = []
    while leaf >= 0:
        path.append(leaf)
        leaf = trace.spans[leaf].parent
    return path[::-1]


def _joined(spans: Sequence[Span]) -> Side:
    logprobs: list[float] | None = []
    for span in spans:
        own = _of_policy(span)
        logprobs = None if own is None or logprobs is None else [*logprobs, *own]
    return Side(
        tuple(t for span in spans for t in span.tokens),
        tuple(span.kind is SpanKind.SAMPLED for span in spans for _ in span.tokens),
        None if logprobs is None else tuple(logprobs),
    )


def _of_policy(span: Span) -> Sequence[float] | None:
    """Its log-probabilities where they are the policy's own: at temperature 1 (as greedy ones are), with full support
    and none missing."""
    if span.kind is not SpanKind.SAMPLED:
        return [0.0] * len(span.tokens)
    cut = span.kept is not None and any(ids is not None for ids in span.kept)
    whole = len(span.logprobs) == len(span.tokens) and all(map(math.isfinite, span.logprobs))
    return span.logprobs if span.temperature in (0, 1) and whole and not cut else None


def _by_prompt(traces: Sequence[Trace]) -> dict[Tokens, list[Path]]:
    found: dict[Tokens, list[Path]] = {}
    for trace in traces:
        for path in paths_of(trace):
            found.setdefault(path.prompt, []).append(path)
    return found


def _begins(a: Tokens, b: Tokens) -> bool:
    n = min(len(a), len(b))
    return a[:n] == b[:n]


def _common(a: Tokens, b: Tokens) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
