"""From the graded traces of one question to training samples: which token is trained on, and with what weight.

The three lists that belong together, `rewards`, `truncated` and the advantages, have one entry per *leaf*, over all
traces in order. Entries are set to None, never removed, so they cannot slip out of step.

Trees. A sampled span that several leaves share (siblings in a search tree) was sampled once, so it is trained on
once: the first leaf that is trained on carries it, with the mean advantage of all the trained leaves below it (the
Monte-Carlo value of the prefix, minus the baseline); in the other leaves it is context. Its gradient is then the
average over its continuations, and its tokens count once in the denominator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from mull.errors import StopReason
from mull.types import Sample, Span, SpanKind, Trace


def rewards(traces: Sequence[Trace]) -> list[float | None]:
    """The reward of every leaf of every trace, None where it could not be judged. ValueError if not graded."""
    out: list[float | None] = []
    for trace in traces:
        if len(trace.verdicts) != len(trace.leaves):
            raise ValueError(
                f"the trace of {trace.question.id} has {len(trace.leaves)} leaves and {len(trace.verdicts)} verdicts; "
                "grade it first"
            )
        out.extend(verdict.reward for verdict in trace.verdicts)
    return out


def truncated(traces: Sequence[Trace]) -> list[bool]:
    """Whether each leaf was cut off: anything but a sampled span that ended by itself is."""
    return [_cut(trace.spans[leaf], trace) for trace in traces for leaf in trace.leaves]


def from_rollouts(traces: Sequence[Trace], advantages: Sequence[float | None], group: int = 0) -> list[Sample]:
    """One sample per leaf that has an advantage and a token of its own to train on.

    `tokens` is the whole path. The mask is True on sampled tokens (the sampled end token included) and False on the
    prompt, on forced tokens and on tool output; nothing is added to the path, so a truncated rollout gets no end
    token. Shared spans: see the module's text. `policy_version` is the oldest on the path. Greedy spans
    (temperature 0) have log-probabilities at temperature 1, so 1 is what the sample says.

    ValueError: a sampled token without a finite log-probability; two temperatures among the trained spans of one
    path (a `Sample` has one); a list of the wrong length.
    """
    leaves = [(trace, leaf) for trace in traces for leaf in trace.leaves]
    if len(leaves) != len(advantages):
        raise ValueError(f"{len(leaves)} leaves and {len(advantages)} advantages")
    paths = [
        (trace.path(leaf), float(advantage))
        for (trace, leaf), advantage in zip(leaves, advantages, strict=True)
        if advantage is not None
    ]
    return _samples([(path, [[a] * len(span.tokens) for span in path]) for path, a in paths], group)


def from_tokens(traces: Sequence[Trace], advantages: Sequence[Sequence[float] | None], group: int = 0) -> list[Sample]:
    """`from_rollouts` with an advantage for every token: entry t of a leaf's list is that of its path's token t.

    For methods that tell the tokens of a chain apart. Masks, shared spans (each token gets the mean over the trained
    leaves below it), temperatures and kept sets are as in `from_rollouts`. Tokens that nobody sampled need a zero.

    ValueError, besides those of `from_rollouts`: a list that is not as long as its path, a number that is not finite,
    or an advantage on a token of the prompt, a forced or a tool token (the list has slipped).
    """
    leaves = [(trace, leaf) for trace in traces for leaf in trace.leaves]
    if len(leaves) != len(advantages):
        raise ValueError(f"{len(leaves)} leaves and {len(advantages)} lists of advantages")
    weighed = []
    for (trace, leaf), values in zip(leaves, advantages, strict=True):
        if values is None:
            continue
        path, start, by_span = trace.path(leaf), 0, []
        if len(values) != sum(len(span.tokens) for span in path):
            raise ValueError(f"{len(values)} advantages for a path of {sum(len(s.tokens) for s in path)} tokens")
        if not all(map(math.isfinite, values)):
            raise ValueError("an advantage is not finite")
        for span in path:
            by_span.append(list(values[start : start + len(span.tokens)]))
            if span.kind is not SpanKind.SAMPLED and any(by_span[-1]):
                raise ValueError(f"an advantage on a {span.kind} token, which nobody sampled")
            start += len(span.tokens)
        weighed.append((path, by_span))
    return _samples(weighed, group)


def supervised(prompt: Sequence[int], completion: Sequence[int], weight: float = 1.0, group: int = 0) -> Sample:
    """A demonstration: cross-entropy on the completion, the prompt is context. `completion` ends as it should end.

    With an empty prompt (pretraining) the first token of the completion is context: nothing comes before it.
    """
    tokens = [*prompt, *completion]
    context = max(len(prompt), 1)
    zeros = [0.0] * len(tokens)
    ce = [0.0] * context + [weight] * (len(tokens) - context)
    return Sample(tokens, advantages=zeros, mask=[False] * len(tokens), logprobs=zeros, ce=ce, group=group)


def _cut(leaf: Span, trace: Trace) -> bool:
    if leaf.kind is SpanKind.SAMPLED and leaf.stop is None:
        raise ValueError(f"a sampled leaf of the trace of {trace.question.id} has no stop reason")
    return leaf.kind is not SpanKind.SAMPLED or leaf.stop is not StopReason.STOP


def _samples(weighed: Sequence[tuple[list[Span], list[list[float]]]], group: int) -> list[Sample]:
    """From paths with their advantages span by span: shared spans get the mean, and one leaf carries them."""
    below: dict[int, list[list[float]]] = {}  # advantages of the trained leaves below a span, by its identity
    for path, by_span in weighed:
        for span, values in zip(path, by_span, strict=True):
            below.setdefault(id(span), []).append(values)
    samples, taken = [], set()
    for path, _ in weighed:
        own = {id(span) for span in path if span.kind is SpanKind.SAMPLED} - taken
        taken |= own
        if any(span.tokens for span in path if id(span) in own):
            weights = {i: [math.fsum(column) / len(column) for column in zip(*below[i], strict=True)] for i in own}
            samples.append(_sample(path, weights, group))
    return samples


def _sample(path: Sequence[Span], weights: dict[int, list[float]], group: int) -> Sample:
    tokens: list[int] = []
    advantages: list[float] = []
    mask: list[bool] = []
    logprobs: list[float] = []
    kept: list = []
    temperatures, versions = set(), []
    for span in path:
        n = len(span.tokens)
        tokens.extend(span.tokens)
        trained = id(span) in weights
        advantages.extend(weights[id(span)] if trained else [0.0] * n)
        mask.extend([trained] * n)
        if not trained:
            logprobs.extend([0.0] * n)
            kept.extend([None] * n)
            continue
        if len(span.logprobs) != n or not all(map(math.isfinite, span.logprobs)):
            raise ValueError(
                f"a sampled span of {n} tokens has {len(span.logprobs)} log-probabilities, "
                f"{sum(map(math.isfinite, span.logprobs))} of them finite; training needs the sampler's own for each"
            )
        if span.kept is not None and len(span.kept) != n:
            raise ValueError(f"a sampled span of {n} tokens has {len(span.kept)} kept sets")
        logprobs.extend(span.logprobs)
        kept.extend(span.kept if span.kept is not None else [None] * n)
        temperatures.add(span.temperature or 1.0)
        versions.append(span.policy_version)
    if len(temperatures) > 1:
        raise ValueError(f"one path was sampled at several temperatures: {sorted(temperatures)}")
    return Sample(
        tokens,
        advantages,
        mask,
        logprobs,
        temperature=temperatures.pop(),
        kept=kept if any(ids is not None for ids in kept) else None,
        policy_version=min(versions),
        group=group,
    )
