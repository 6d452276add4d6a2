"""What is seen of a strategy that does more than go on from the question."""

from collections.abc import Sequence

import pytest

from mull.chat import Chat
from mull.errors import StopReason
from mull.models.nano import shipped_folder
from mull.serve.live import Live
from mull.types import Completion, Cost


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat.load(shipped_folder())


def drawn(live: Live, prefix: Sequence[int], tokens: Sequence[int]) -> None:
    [branch] = live.begin(prefix, 1)
    for token in tokens:
        live.token(branch, token)
    live.end(branch, prefix, Completion(tuple(tokens), (0.0,) * len(tokens), StopReason.STOP, 0, cost=Cost()))


@pytest.mark.parametrize("shown", [False, True], ids=["thoughts of earlier turns are left out", "they are shown"])
def test_a_thought_in_a_further_turn_is_a_thought(chat: Chat, shown: bool):
    """`revise:how=turn` goes on in a conversation that may hold closed thoughts of earlier turns."""
    asked = chat.prompt([{"role": "user", "content": "y=1;y?"}])
    first = [*chat.encode("y=1\n"), *chat.think_close, *chat.encode("2"), chat.turn_end]
    said = [{"role": "assistant", "content": "2"}, {"role": "user", "content": "no"}]
    turn = chat.prompt([{"role": "user", "content": "y=1;y?"}, *said])
    if shown:  # as a template writes it that keeps them
        turn = [*asked, *first, *turn[len(turn) - len(asked) :]]
    live = Live(chat, asked, 100)
    drawn(live, asked, first)
    [branch] = live.begin(turn, 1)
    assert not branch.answering and live.thinking is branch and live.branches == 2
    live.leave(branch)
    drawn(live, turn, [*chat.encode("y=1 ok\n"), *chat.think_close, *chat.encode("1"), chat.turn_end])
    seen = [(step.text.strip(), step.answer) for step in live.steps if step.text != "</think>"]
    assert seen == [("y=1", False), ("2", True), ("y=1 ok", False), ("1", True)]
    answers = len(chat.encode("2")) + len(chat.encode("1")) + 2
    assert live.answer_tokens == answers
    assert live.begin([*turn, *chat.encode("z\n"), *chat.think_close], 1)[0].answering


def test_an_answer_is_never_forced_from_another_conversation(chat: Chat):
    asked = chat.prompt([{"role": "user", "content": "y=1;y?"}])
    other = chat.prompt([{"role": "user", "content": "y=1;y?"}, {"role": "user", "content": "look again at it"}])
    live = Live(chat, asked, 100)
    drawn(live, other, chat.encode("y=1\ny=1\n"))
    assert live.partial() == []
    drawn(live, asked, chat.encode("y\n"))
    assert live.partial() == chat.encode("y\n")
