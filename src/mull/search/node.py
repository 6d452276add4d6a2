"""A path of thought in a tree: whole steps, and what is known of them."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Steps:
    """Where a step ends. One that does not end within `max_tokens` is cut there, counted, and goes on as another."""

    separator: str = "\n"
    max_tokens: int = 64


LINES = Steps()


@dataclass(eq=False)
class Node:
    """A path of whole steps: prompt, thought so far, and the answer if it has one."""

    span: int  # its last span in `Trace.spans`
    tokens: tuple[int, ...]  # of the whole path, prompt included
    parent: Node | None = field(default=None, repr=False)  # a node must not print its whole tree
    order: tuple[int, ...] = ()  # its place in the tree, whatever arrived first; its seeds come from it
    asked: int = 0  # how many of its tokens are the prompt
    forced: bool = False  # written by the strategy, not a step of the model's
    children: list[Node] = field(default_factory=list, repr=False)
    depth: int = 0  # steps
    thought: int = 0  # tokens of thought on the path
    logprob: float = 0.0  # of all tokens sampled on the path
    sampled: int = 0  # their number
    closed: bool = False  # the thought has ended; what follows is the answer
    answer: str | None = None  # once the path is complete
    dead: bool = False  # cannot go on: the context is full, the turn ended without an answer, the sampler failed
    score: float | None = None  # in [0, 1]; 0 where the scorer failed
    extended: int = 0  # how often it was continued
    visits: int = 0

    @property
    def done(self) -> bool:
        return self.answer is not None

    @property
    def open(self) -> bool:
        return not self.done and not self.dead

    def path(self) -> list[Node]:
        """The model's steps from the first to this one: without the root and what the strategy wrote."""
        nodes: list[Node] = []
        node: Node | None = self
        while node is not None and node.parent is not None:
            if not node.forced:
                nodes.append(node)
            node = node.parent
        return nodes[::-1]
