"""Which part of a conversation is kept when all of it does not fit."""

import pytest

from mull.serve.responses_items import fitting, messages
from tests.serve.tools import nano

SYSTEM = {"id": "s", "type": "message", "role": "system", "content": [{"text": "be kind"}]}
THOUGHT = {"id": "r", "type": "reasoning", "summary": []}


def said(role: str, text: str) -> dict:
    return {"id": text[:9], "type": "message", "role": role, "content": [{"type": "input_text", "text": text}]}


def conversation(turns: int) -> list[dict]:
    pairs = [(said("user", f"{n}? " + "x" * 50), THOUGHT, said("assistant", f"{n}! " + "y" * 20)) for n in range(turns)]
    return [SYSTEM, *(item for turn in pairs for item in turn), said("user", "last?")]


def tokens(items, instructions=None) -> int:
    chat = nano()[1]
    return len(chat.prompt(messages(items, instructions)))


@pytest.mark.parametrize("most", [1, 40, 60, 130, 200, 300, 400, 500, 1000, 5000])
@pytest.mark.parametrize("instructions", [None, "be short, and shorter than that"])
def test_what_is_kept_fits_and_no_turn_more_would(most, instructions):
    whole = conversation(8)
    kept = fitting(whole, instructions, nano()[1], most)
    assert kept[0] == SYSTEM and kept[-1] == whole[-1]
    assert kept[1]["role"] == "user" and kept[1:] == whole[len(whole) - len(kept) + 1 :]
    turns = (len(kept) - 2) // 3
    assert tokens(kept, instructions) <= most or turns == 0
    if turns < 8:  # 8 tokens a message are to spare, and a few around all
        more = [SYSTEM, *whole[len(whole) - len(kept) - 2 :]]
        assert tokens(more, instructions) > most - 8 * len(more) - 24
    assert (kept == whole) == (turns == 8)
    assert most < 5000 or kept == whole


def test_what_the_developer_says_in_the_middle_stays():
    rules = {**SYSTEM, "role": "developer", "id": "d"}
    whole = [said("user", "x" * 500), rules, said("assistant", "fine"), said("user", "last?")]
    assert fitting(whole, None, nano()[1], 100) == [rules, whole[-1]]
    assert fitting(whole, None, nano()[1], 1000) == whole


def test_a_conversation_that_begins_with_an_answer_or_has_no_question():
    whole = [said("assistant", "hello"), said("user", "x" * 100), said("user", "last?")]
    for most, first in ((1000, 0), (150, 1), (100, 2), (1, 2)):
        assert fitting(whole, None, nano()[1], most) == whole[first:]
    assert fitting(whole[:1], None, nano()[1], 1) == whole[:1]
    assert fitting([SYSTEM], None, nano()[1], 1) == [SYSTEM]
