"""The tree that every search grows: steps of thought, sampled, scored, and paid for.

A step ends with the separator (a line break), with the end of the thought, or with the answer: the answer is a path's
last step. A search asks for next steps of a node, has nodes scored, and decides; what can go wrong on the way is
handled here. Part of the budget is kept back for one forced answer until there is a first answer (see `purse.py`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

from mull.chat import Chat, Messages
from mull.chat.steps import separator_tokens, spelled_end, step_ends
from mull.engine.sampler import Sampler, derive_seed
from mull.engine.together import together
from mull.errors import SamplerLost, StopReason, UserError
from mull.ledger import Budget
from mull.scorers.base import Scorer
from mull.search.node import LINES, Node, Steps
from mull.search.purse import Purse
from mull.search.sample import ON_POLICY, Decoding
from mull.types import Completion, Cost, Question, SamplingParams, Span, SpanKind, Trace

NO_ANSWER = "(no answer within the budget)"


class Tree:
    """One question's tree under one budget; `trace` is what comes of it.

    `extend` and `complete` return fewer nodes than asked for, or none, when the budget, the context, the node limit or
    the sampler gives out; a node that cannot be extended for a reason of its own is `dead`. `finish` ends the search.
    """

    def __init__(
        self,
        strategy: str,
        question: Question,
        sampler: Sampler,
        chat: Chat,
        budget: Budget,
        decoding: Decoding = ON_POLICY,
        seed: int = 0,
        scorer: Scorer | None = None,
        steps: Steps = LINES,
        max_nodes: int = 20_000,
    ):
        self.sampler, self.chat, self.budget, self.decoding = sampler, chat, budget, decoding
        self.seed, self.scorer, self.steps, self.max_nodes = seed, scorer, steps, max_nodes
        prompt = tuple(chat.prompt(question.asked))
        self.trace = Trace(question, strategy, [Span(SpanKind.PROMPT, prompt)])
        self.root = Node(0, prompt, asked=len(prompt))
        self.purse = Purse(budget)
        self.nodes = [self.root]
        self.leaves: list[Node] = []  # complete paths
        self._separators = separator_tokens(chat, steps.separator)
        self._started = time.perf_counter()

    @property
    def spent_out(self) -> bool:
        """Whether no further token may be sampled (beyond what is kept back for a forced answer)."""
        return self.purse.free(0 if self.leaves else self.budget.answer_tokens) < 1

    # ------------------------------------------------------------------------------------------------ growing

    async def extend(self, node: Node, n: int = 1, decoding: Decoding | None = None) -> list[Node]:
        """Up to `n` next steps of an open node, as its children.

        A thought that has used up `budget.think_tokens` is closed by force, and its next step is the answer.
        """
        if node.done or node.dead:
            raise ValueError("a complete or dead path cannot be extended: ask for open nodes only")
        room = self.budget.think_tokens - node.thought
        if node.closed or room <= 0:
            return await self.force_answer(node, n, decoding)
        most = min(self.steps.max_tokens, room)
        seed, turn = self._seed(node), node.extended
        asked = await self._ask(node, self._params(most, seed, decoding, step=True), n)
        return [self._add(node, (turn, i), *got, most) for i, got in enumerate(asked)]

    async def complete(self, node: Node, n: int = 1, decoding: Decoding | None = None) -> list[Node]:
        """Up to `n` whole continuations of an open node, each to its answer; the nodes of their last steps.

        Steps are nodes here, too: a chain that was sampled in one go can be scored and forked like any other.
        """
        if node.done or node.dead:
            raise ValueError("a complete or dead path cannot be continued: ask for open nodes only")
        room = self.budget.think_tokens - node.thought
        if node.closed or room <= 0:
            return await self.force_answer(node, n, decoding)
        ends = await self.think(node, n, decoding)

        async def answered(end: Node) -> list[Node]:
            return await self.extend(end, 1, decoding) if end.open else [end]

        return [leaf for leaves in await together(answered(end) for end in ends) for leaf in leaves]

    async def think(self, node: Node, n: int = 1, decoding: Decoding | None = None) -> list[Node]:
        """Up to `n` continuations of an open thought to its end or its budget's, without the answer."""
        room = self.budget.think_tokens - node.thought
        seed, turn = self._seed(node), node.extended
        asked = await self._ask(node, self._params(room, seed, decoding, close=True), n)
        return [self._add_steps(node, (turn, i), *got, room) for i, got in enumerate(asked)]

    async def force_answer(self, node: Node, n: int = 1, decoding: Decoding | None = None) -> list[Node]:
        """Up to `n` answers from here; a thought that is still open is closed by force."""
        prefix = node if node.closed else self._close(node)
        most = self.budget.answer_tokens
        params, turn = self._params(most, self._seed(prefix), decoding), prefix.extended
        grown = []
        for i, (completion, granted) in enumerate(await self._ask(prefix, params, n, answer=True)):
            self.trace.exhausted |= granted < most
            grown.append(child := self._grow(prefix, (turn, i), completion, 0, len(completion.tokens)))
            self._complete(child, self.chat.split(child.tokens[child.asked :])[1])
        if prefix in node.children and not prefix.children:  # a closing tag behind which nothing could be sampled
            node.children.remove(prefix)
            self.nodes.remove(prefix)
        node.dead |= prefix.dead
        return grown

    def insert(self, node: Node, tokens: Sequence[int], closed: bool = False) -> Node:
        """A child that the strategy writes itself (a "Wait", a closing tag): forced, and never trained on."""
        self.trace.spans.append(Span(SpanKind.FORCED, tuple(tokens), node.span))
        order = (*node.order, 0, len(node.children))
        child = Node(len(self.trace.spans) - 1, (*node.tokens, *tokens), node, order, node.asked, True)
        child.depth = node.depth
        child.closed = node.closed or closed
        child.thought = node.thought + (0 if child.closed else len(tokens))
        child.logprob, child.sampled = node.logprob, node.sampled
        node.children.append(child)
        self.nodes.append(child)
        return child

    def ask(self, messages: Messages) -> Node:
        """A further root: the question asked anew in a longer conversation, whose paths answer it as well."""
        prompt = tuple(self.chat.prompt(messages))
        self.trace.spans.append(Span(SpanKind.PROMPT, prompt))
        # Behind every place below the first root.
        root = Node(len(self.trace.spans) - 1, prompt, order=(1 << 32, len(self.trace.spans)), asked=len(prompt))
        self.nodes.append(root)
        return root

    def take_back(self, node: Node) -> Node:
        """An open thought in place of one that the model has just ended, by its closing tag or by ending its turn.

        What ended it is a dead, pruned branch from now on: it was sampled, so it stays in the trace and in the cost.
        A tag that shares its first token with the line before it takes that token along.
        """
        span = self.trace.spans[node.span]
        n = len(span.tokens) - self._ending(span.tokens)
        assert n < len(span.tokens) and not node.children, "the node does not end a thought, or was continued"
        if n == 0:
            assert node.parent is not None
            node.closed, node.dead = False, True
            self.prune(node)
            return node.parent
        tag = replace(span, parent=node.span, tokens=span.tokens[n:], logprobs=span.logprobs[n:], pruned=True)
        span.tokens, span.logprobs, span.stop = span.tokens[:n], span.logprobs[:n], StopReason.STOP
        if span.kept is not None:
            span.kept, tag.kept = span.kept[:n], span.kept[n:]
        self.trace.spans.append(tag)
        order = (*node.order, 0, 0)
        end = Node(len(self.trace.spans) - 1, node.tokens, node, order, node.asked, depth=node.depth + 1, dead=True)
        end.thought, end.logprob, end.sampled = node.thought, node.logprob, node.sampled
        node.children.append(end)
        self.nodes.append(end)
        node.tokens = node.tokens[: len(node.tokens) - len(tag.tokens)]
        node.thought -= len(tag.tokens)
        node.sampled -= len(tag.tokens)
        node.logprob -= math.fsum(tag.logprobs)
        node.closed = node.dead = False
        return node

    # ------------------------------------------------------------------------------------------------ judging

    async def score(self, nodes: Sequence[Node], whole_path: bool = False) -> bool:
        """Gives every node a score that has none, and with `whole_path` the steps before it. Of equal
        paths one is read.

        False where the scorer was lost: the scores are 0 then, and say nothing.
        """
        if self.scorer is None:
            raise ValueError(f"the strategy {self.trace.strategy} needs a scorer")
        wanted = [step for node in nodes for step in (node.path() if whole_path else [node])]
        todo = [node for node in dict.fromkeys(wanted) if node.score is None]
        if not todo:
            return True
        if (of_sampled := getattr(self.scorer, "of_sampled", None)) is not None and self._by_the_policy():
            for node in [node for node in todo if node.sampled == len(node.tokens) - node.asked]:
                value = of_sampled(node.logprob, node.sampled)
                if math.isfinite(value):
                    self.rate(node, value)
            todo = [node for node in todo if node.score is None]
        if not todo:
            return True
        paths: dict[tuple[int, ...], list[Node]] = {}
        for node in todo:
            paths.setdefault(self.as_asked(node), []).append(node)
        try:
            scores = await self.scorer.score(list(paths))
        except SamplerLost as gone:
            self.lose(f"the scorer was lost: {gone}")
            for node in todo:
                self.rate(node, 0.0)
            return False
        for equal, score in zip(paths.values(), scores, strict=True):
            self.charge(score.cost)
            if not math.isfinite(score.value):
                self.lose("the scorer gave no number for a step, which counts as its lowest score")
            for node in equal:
                self.rate(node, score.value if math.isfinite(score.value) else 0.0)
        return True

    def as_asked(self, node: Node) -> tuple[int, ...]:
        """The path as one that answers the question itself, whatever conversation it stands in: what scorers read."""
        return (*self.root.tokens, *node.tokens[node.asked :])

    def rate(self, node: Node, value: float) -> None:
        """Gives a node a score that the strategy found in another way."""
        node.score = value
        self.trace.spans[node.span].score = value

    def charge(self, cost: Cost) -> None:
        """What was spent on this question by anything but the policy's own tokens, too: scorers, critics, probes."""
        self.trace.cost = self.trace.cost + cost
        self.budget.charge(cost)

    def prune(self, node: Node) -> None:
        """Marks a node that the search will not go on from."""
        self.trace.spans[node.span].pruned = True

    def visit(self, node: Node) -> None:
        node.visits += 1
        self.trace.spans[node.span].visits = node.visits

    def lose(self, what: str) -> None:
        self.trace.lost.append(what)

    # ------------------------------------------------------------------------------------------------ ending

    async def finish(self, chosen: Node | str | None) -> Trace:
        """The trace, with the answer that the strategy chose: a leaf, or an answer's text.

        Where there is no answer at all, one is forced from the best node with the tokens that were kept back.
        """
        if not self.leaves:
            self.trace.exhausted |= self.spent_out
            open_nodes = [node for node in self.nodes if node.open]
            for node in sorted(open_nodes, key=lambda node: (-(node.score or 0.0), -node.thought))[:3]:
                if not self.leaves and self.budget.tokens_left > 0:
                    await self.force_answer(node)
            chosen = self.leaves[0] if self.leaves else None
        self.leaves.sort(key=lambda leaf: leaf.order)
        self.trace.leaves = [leaf.span for leaf in self.leaves]
        self.trace.answers = [leaf.answer or "" for leaf in self.leaves]
        if chosen is None or chosen == "":
            chosen = next((leaf for leaf in self.leaves if leaf.answer), None) or NO_ANSWER
        if isinstance(chosen, Node):
            self.trace.chosen, self.trace.answer = chosen.span, chosen.answer or NO_ANSWER
        else:
            self.trace.answer = chosen
            self.trace.chosen = next((leaf.span for leaf in self.leaves if leaf.answer == chosen), -1)
        self.trace.cost = replace(self.trace.cost, seconds=time.perf_counter() - self._started)
        return self.trace

    # ------------------------------------------------------------------------------------------------ inside

    def _by_the_policy(self) -> bool:
        """Whether log-probabilities of sampled tokens are the policy's own, at temperature 1 and with full support."""
        d = self.decoding
        return d.temperature in (0, 1) and d.top_p == 1 and d.top_k == 0

    def _seed(self, node: Node) -> int:
        """Of the next request from here: a function of the node's place, not of what arrived when."""
        node.extended += 1
        return derive_seed(self.seed, *node.order, node.extended)

    def _params(
        self, most: int, seed: int, decoding: Decoding | None, step: bool = False, close: bool = False
    ) -> SamplingParams:
        d = decoding or self.decoding
        tag = self.chat.think_close
        stop: tuple[str, ...] = ()
        tokens: tuple[int, ...] = ()
        if step or close:
            if len(tag) == 1:
                tokens = tag
            else:
                stop = (self.chat.decode(tag),)
        if step:
            if self._separators is None:
                stop = (*stop, self.steps.separator)
            else:
                tokens = (*tokens, *self._separators)
        return SamplingParams(most, d.temperature, d.top_p, d.top_k, stop, tokens, seed)

    async def _ask(
        self, node: Node, params: SamplingParams, n: int, answer: bool = False
    ) -> list[tuple[Completion, int]]:
        """(completion, tokens that it was granted) of up to n requests; empty when nothing can be had."""
        out: list[tuple[Completion, int]] = []
        while n > 0 and not node.dead:
            if len(self.nodes) + n > self.max_nodes:
                self.trace.exhausted = True
                self.lose(f"the tree has reached its limit of {self.max_nodes} nodes")
                break
            kept = 0 if self.leaves or answer else self.budget.answer_tokens
            many, most = await self.purse.reserve(n, params.max_tokens, kept)
            if many == 0:
                self.trace.exhausted = True
                break
            asked = replace(params, max_tokens=most, first=len(out))
            try:
                got = await self._sample(node, asked, many)
            finally:
                self.purse.settle(many * most)
            out += [(completion, most) for completion in got]
            n -= many
        return out

    async def _sample(self, node: Node, params: SamplingParams, n: int) -> list[Completion]:
        got: Sequence[Completion] = ()
        try:
            got = await self.sampler.sample(node.tokens, params, n)
        except SamplerLost as gone:
            self.lose(f"the sampler was lost: {gone}")
            node.dead, got = True, gone.completions  # some of a call's may have come before it went
        except UserError as refused:
            if node is self.root:
                raise  # the question itself cannot be asked
            self.lose(f"a path could not go on: {refused}")
            node.dead = True
        except (MemoryError, RuntimeError) as problem:
            if not isinstance(problem, MemoryError) and type(problem).__name__ != "OutOfMemoryError":
                raise
            self.lose("a path could not go on: the sampler is out of memory")
            node.dead = True
        for completion in got:
            self.charge(completion.cost)
        return list(got)

    def _add(self, parent: Node, place: tuple[int, ...], completion: Completion, granted: int, whole: int) -> Node:
        """A step of thought as a child; the budget granted so many tokens of a whole step's."""
        child = self._grow(parent, place, completion, 0, len(completion.tokens))
        if self._settle(child, completion, granted < whole, whole) and whole == self.steps.max_tokens:
            self.lose(f"a step did not end within {whole} tokens and was cut there")
        return child

    def _add_steps(
        self, parent: Node, place: tuple[int, ...], completion: Completion, granted: int, whole: int
    ) -> Node:
        """A thought that was sampled in one go, as one node for each step; returns the last."""
        node, start = parent, 0
        for end in step_ends(self.chat, completion.tokens, self.steps.separator):
            node, start = self._grow(node, place if node is parent else (0, 0), completion, start, end), end
        self._settle(node, completion, granted < whole, whole)
        return node

    def _settle(self, node: Node, completion: Completion, cut: bool, whole: int) -> bool:
        """What state the end of a completion leaves its node in; whether it ran into its limit of `whole` tokens."""
        if completion.stop is StopReason.STOP:
            if completion.tokens[-1] in self.chat.end_ids:
                node.dead = True  # ended its turn while thinking
            elif self._ends_thought(node):
                node.closed = True
            return False
        if cut:
            self.trace.exhausted = True
            return False
        if len(completion.tokens) < whole:
            node.dead = True
            self.lose("a path reached the end of the model's context")
            return False
        return True

    def _grow(self, parent: Node, place: tuple[int, ...], completion: Completion, start: int, end: int) -> Node:
        tokens, logprobs = completion.tokens[start:end], completion.logprobs[start:end]
        last = end == len(completion.tokens)
        self.trace.spans.append(
            Span(
                SpanKind.SAMPLED,
                tokens,
                parent.span,
                logprobs,
                completion.policy_version,
                completion.temperature,
                completion.stop if last else StopReason.STOP,
                completion.kept[start:end] if completion.kept is not None else None,
            )
        )
        order = (*parent.order, *place)
        child = Node(len(self.trace.spans) - 1, (*parent.tokens, *tokens), parent, order, parent.asked)
        child.depth = parent.depth + 1
        child.thought = parent.thought + (0 if parent.closed else len(tokens))
        child.logprob, child.sampled = parent.logprob + math.fsum(logprobs), parent.sampled + len(tokens)
        child.closed = parent.closed
        parent.children.append(child)
        self.nodes.append(child)
        return child

    def _ends_thought(self, node: Node) -> bool:
        return spelled_end(self.chat, self.trace.spans[node.span].tokens) > 0

    def _ending(self, tokens: Sequence[int]) -> int:
        """How many of the last tokens of a thought are what ended it: the tag, or an end token."""
        return 1 if tokens[-1] in self.chat.end_ids else spelled_end(self.chat, tokens)

    def _close(self, node: Node) -> Node:
        tag = tuple(self.chat.think_close)
        for child in node.children:
            if child.forced and child.closed:
                return child
        return self.insert(node, tag, closed=True)

    def _complete(self, node: Node, answer: str) -> None:
        """Makes a leaf of it. An empty answer is no answer: the path is dead."""
        if answer:
            node.answer = answer
            self.leaves.append(node)
        else:
            node.dead = True
