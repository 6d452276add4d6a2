"""RefAug's training samples (Zhang et al. 2024, arXiv 2406.12050): a worked solution with a reflection behind it.

    <|user|> question <|end|> <|assistant|> <think> thought </think> answer <|end|> reflection <|end|>

The paper writes "Reflection:" behind the answer, trains on everything, and stops generation at that word. Here the
token that ends a turn stands there instead. It is what the model must say after an answer in any case, every engine and
server stops at it, and so nobody needs to know of a stop string: the reflection is learnt and never written. The model
does not unlearn to end its turn, for it is trained to end it exactly where it did before.
"""

from __future__ import annotations

from mull.chat import Chat
from mull.learn.samples import supervised
from mull.types import Sample


def with_reflection(
    chat: Chat, question: str, thought: str, answer: str, section: str = "", weight: float = 1.0
) -> Sample:
    """Cross-entropy on thought, answer and end (weight 1) and, behind them, on `section` and its end (`weight`).

    Without a section it is an ordinary demonstration. A section of weight 0 changes no gradient: it stands behind all
    that is learnt, and nothing before it can see it.
    """
    prompt, reply = chat.prompt(question), chat.reply(thought, answer)
    if not section:
        return supervised(prompt, reply)
    behind = [*chat.encode(section), chat.turn_end]
    sample = supervised(prompt, [*reply, *behind])
    assert sample.ce is not None
    sample.ce = [*sample.ce[: len(prompt) + len(reply)], *[weight] * len(behind)]
    return sample
